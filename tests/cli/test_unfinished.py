"""Which run goes on when a command is started again, and what is not done twice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.cli import journey
from pillsnap.cli.unfinished import ResumableRun, resumable_run
from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import read_json
from pillsnap.core.manifest import Manifest

Call = Callable[..., tuple[int, str, str]]
Open = Callable[..., ResumableRun]
HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "r+")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""
NAME = "resnet18 32px · 2 epochs · seed 0 · tiny"
GOES_ON = "goes on with the unfinished run"


def runs(store: MlflowClient) -> list[Run]:
    """The oldest first."""
    found = store.get_experiment_by_name("pillsnap")
    return [] if found is None else store.search_runs([found.experiment_id], order_by=["attributes.start_time"])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def call(call: Call, caplog: pytest.LogCaptureFixture) -> Call:
    """Under pytest, what is logged does not reach standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        caplog.clear()
        status, out, err = call(*arguments)
        return status, out, err + caplog.text

    return run


@pytest.fixture
def command(prepared: Path, tmp_path: Path) -> tuple[object, ...]:
    """Options of a training of four epochs of three updates."""
    arguments = ("--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w")
    settings = ("training.epochs=4", "logging.every_steps=1", "training.mixed_precision=false")
    return (*arguments, *(part for setting in settings for part in ("--set", setting)))


# --- which run


@pytest.fixture
def open_run(prepared: Path, tmp_path: Path, store: MlflowClient) -> Open:
    """``open_run(error, command=, fresh=, key=value)``: a run that is left with this error; None: it ends well."""
    manifest = Manifest.load(prepared / "data")

    def run(
        error: BaseException | None,
        overrides: dict[str, Any] | None = None,
        command: str = "train",
        fresh: bool = False,
    ) -> ResumableRun:
        config = ExperimentConfig.load(prepared / "tiny.yaml", overrides)
        opened: list[ResumableRun] = []

        def work() -> None:
            with resumable_run(command, config, manifest, tmp_path / "w", experiment="pillsnap", fresh=fresh) as ours:
                opened.append(ours)
                ours.tracked.log_config(config.model_dump(mode="json"))
                if error is not None:
                    raise error

        if error is None:
            work()
        else:
            with pytest.raises(type(error)):
                work()
        return opened[0]

    return run


def test_a_run_that_was_interrupted_goes_on(
    open_run: Open, store: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pillsnap")
    first = open_run(KeyboardInterrupt())
    [run] = runs(store)
    assert (run.info.run_id, run.info.status) == (first.tracked.run_id, "KILLED")
    assert run.data.tags["pillsnap.resumable"] == "true"
    assert "can go on: start the same command again" in caplog.text
    again = open_run(None)
    assert again.tracked.run_id == first.tracked.run_id
    assert f"{GOES_ON} {first.tracked.run_id}" in caplog.text
    [run] = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.tags["pillsnap.resumable"] == "false"
    assert "ended_because" not in run.data.tags
    assert read_json(again.folder / "run.json")["finished"] is True


def test_only_what_has_a_checkpoint_is_said_to_go_on_after_an_error(
    open_run: Open, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_run(TrainingError("weights that do not fit"))
    assert "can go on" not in caplog.text
    (first.folder / "checkpoints").mkdir()
    open_run(TrainingError("the disk is full"))
    assert "can go on: start the same command again" in caplog.text


def test_while_it_goes_on_it_is_running(open_run: Open, store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = open_run(RuntimeError()).tracked.run_id
    assert store.get_run(run_id).info.status == "FAILED"
    seen = []
    note = ResumableRun.note
    monkeypatch.setattr(
        ResumableRun,
        "note",
        lambda self, **values: (
            self.tracked.flush(),
            seen.append(store.get_run(run_id).info.status),
            note(self, **values),
        )[2],
    )
    open_run(None)
    assert seen == ["RUNNING", "FINISHED"], "marked as finished when MLflow has it too"


def test_a_finished_run_is_left_alone(open_run: Open, store: MlflowClient) -> None:
    assert open_run(None).tracked.run_id != open_run(None).tracked.run_id
    assert [run.info.status for run in runs(store)] == ["FINISHED", "FINISHED"]


def test_a_run_that_is_not_finished_goes_on_though_it_ended_well(open_run: Open) -> None:
    first = open_run(None)
    first.note(finished=False)
    assert open_run(None).tracked.run_id == first.tracked.run_id


def test_what_was_misconfigured_is_not_called_resumable(open_run: Open, caplog: pytest.LogCaptureFixture) -> None:
    open_run(ConfigError("no such backbone"))
    assert "can go on" not in caplog.text


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ({}, True),
        ({"fresh": True}, False),
        ({"command": "run"}, False),
        ({"overrides": {"training.base_lr": 0.002}}, False),
        ({"overrides": {"name": "other"}}, False),
        ({"overrides": {"data.workers": 3, "logging.every_steps": 2}}, True),
    ],
    ids=str,
)
def test_only_the_same_command_goes_on(
    open_run: Open, store: MlflowClient, change: dict[str, Any], goes_on: bool
) -> None:
    first = open_run(RuntimeError("died"))
    again = open_run(None, **change)
    assert (again.tracked.run_id == first.tracked.run_id) == goes_on
    if "data.workers" in change.get("overrides", {}):  # a parameter cannot change in MLflow
        run = store.get_run(first.tracked.run_id)
        assert (run.data.params["cfg.data.workers"], run.data.tags["changed.cfg.data.workers"]) == ("0", "3")
        assert "changed.cfg.training.base_lr" not in run.data.tags


def test_the_newest_of_several_goes_on(open_run: Open) -> None:
    open_run(RuntimeError())
    newest = open_run(RuntimeError(), fresh=True)
    assert open_run(None).tracked.run_id == newest.tracked.run_id


def test_a_run_that_a_living_process_works_on_is_left_alone(
    open_run: Open, store: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_run(RuntimeError())
    holder = [sys.executable, "-c", HOLD, str(first.folder / ".lock")]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        open_run(None)
        process.kill()
    assert f"another process works on the run {first.tracked.run_id} of the same experiment" in caplog.text
    assert [run.info.status for run in runs(store)] == ["FAILED", "FINISHED"]
    assert open_run(None).tracked.run_id == first.tracked.run_id, "a dead process holds nothing"


def test_weights_go_on_in_a_new_run_where_the_store_has_forgotten_the_old_one(
    open_run: Open, store: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_run(RuntimeError())
    (first.folder / "checkpoints").mkdir()
    (first.folder / "checkpoints" / "last.pt").write_text("weights")
    store.delete_run(first.tracked.run_id)
    again = open_run(None)
    assert f"no longer knows the run {first.tracked.run_id}: its weights go on in a new run" in caplog.text
    assert again.tracked.run_id != first.tracked.run_id
    assert (again.folder / "checkpoints" / "last.pt").read_text() == "weights"
    assert not (first.folder / "checkpoints").exists()
    assert read_json(first.folder / "run.json")["finished"] is True, "it is not asked for again"
    assert read_json(again.folder / "run.json")["run_id"] == again.tracked.run_id


def test_under_mlflow_run_the_new_run_points_at_the_one_that_goes_on(
    open_run: Open, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_run(KeyboardInterrupt()).tracked.run_id
    opened = store.create_run(store.create_experiment("elsewhere")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    assert open_run(None).tracked.run_id == first
    assert store.get_run(first).info.status == "FINISHED"
    pointer = store.get_run(opened)
    assert (pointer.info.status, pointer.info.run_name) == ("FINISHED", f"goes on in: {NAME}")
    assert pointer.data.tags["pillsnap.continues_in"] == first
    assert first in pointer.data.tags["mlflow.note.content"]
    assert pointer.data.params == {}


def test_another_commit_is_said(open_run: Open, store: MlflowClient, caplog: pytest.LogCaptureFixture) -> None:
    first = open_run(RuntimeError()).tracked.run_id
    open_run(RuntimeError())
    assert "the code was commit" not in caplog.text
    store.set_tag(first, "git_commit", "c" * 40)
    open_run(None)
    assert "the code was commit cccccccccccc when the run began" in caplog.text


def test_the_pointer_ends_as_the_run_does(open_run: Open, store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    open_run(RuntimeError())
    opened = store.create_run(store.create_experiment("elsewhere")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    open_run(KeyboardInterrupt())
    assert store.get_run(opened).info.status == "KILLED"


def test_data_that_is_refused_ends_the_run_of_mlflow_run(
    call: Call, store: MlflowClient, command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = store.create_run(store.create_experiment("elsewhere")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    assert call("train", *command, "--data", tmp_path / "none")[0] == 1
    run = store.get_run(opened)
    assert run.info.status == "FAILED"
    assert run.data.tags["ended_because"].startswith("DataError: ")


def test_a_file_is_made_once_from_one_source(open_run: Open) -> None:
    made: list[str] = []

    def make(ours: ResumableRun, source: str) -> Path:
        def write() -> Path:
            made.append(source)
            (ours.folder / "a.onnx").write_text(source)
            return ours.folder / "a.onnx"

        return ours.once("exported", source, write)

    make(open_run(RuntimeError()), "one")
    ours = open_run(RuntimeError())
    make(ours, "one")
    assert made == ["one"]
    make(ours, "two")
    (ours.folder / "a.onnx").write_text("damaged")
    make(ours, "two")
    assert made == ["one", "two", "two"]


# --- whole trainings


def test_an_interrupted_training_goes_on_and_is_whole(
    call: Call, store: MlflowClient, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_epoch = journey.RunLogger.on_epoch

    def interrupt(self: journey.RunLogger, epoch: int, metrics: dict[str, float]) -> None:
        on_epoch(self, epoch, metrics)
        if epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journey.RunLogger, "on_epoch", interrupt)
        status, _, err = call("train", *command)
    assert status == 1
    assert "error: interrupted" in err
    status, out, err = call("train", *command)
    assert status == 0, err
    [run] = runs(store)
    run_id = run.info.run_id
    assert f"{GOES_ON} {run_id}" in err
    assert "the training goes on after epoch 2 of 4 (6 updates)" in err
    assert f"run: {run_id}" in out
    assert (run.info.status, run.data.tags["pillsnap.resumed_after"]) == ("FINISHED", "epoch 2, update 6")
    for key, steps in {"val/top1": 4, "train/loss": 4, "train/step_loss": 12, "train/step_lr": 12}.items():
        points = store.get_metric_history(run_id, key)
        assert Counter(point.step for point in points) == Counter(range(1, steps + 1)), key
    assert run.data.metrics["best_epoch"] >= 1
    assert not [key for key in run.data.params if key.startswith("cfg.tuning.")], "a training is not tuned"


def test_a_new_run_gets_the_figures_of_the_epochs_that_the_forgotten_one_had(
    call: Call, store: MlflowClient, command: tuple[object, ...]
) -> None:
    assert call("train", *command, "--time-budget", "0.001s")[0] == 0
    [first] = runs(store)
    store.delete_run(first.info.run_id)
    assert call("train", *command)[0] == 0
    [run] = runs(store)
    assert run.data.tags["pillsnap.resumed_after"] == "epoch 1, update 3"
    points = Counter(point.step for point in store.get_metric_history(run.info.run_id, "val/top1"))
    assert points == Counter([1, 2, 3, 4])


def test_what_died_after_the_training_is_not_trained_again(
    call: Call, store: MlflowClient, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in the export, once in the gate: one run, one training, one model."""
    with monkeypatch.context() as patch:
        patch.setattr(journey, "export_step", lambda *_: (_ for _ in ()).throw(RuntimeError("export died")))
        assert call("run", *command)[0] == 1
    with monkeypatch.context() as patch:
        patch.setattr(journey, "gate_step", lambda *_: (_ for _ in ()).throw(RuntimeError("gate died")))
        status, _, err = call("run", *command)
        assert (status, GOES_ON in err, "epoch 1 of 4" in err) == (1, True, False)
    status, out, err = call("run", *command)
    assert (status, GOES_ON in err, "exported before: " in err, "epoch 1 of 4" in err) == (0, True, True, False)
    assert "verdict: " in out
    [run] = runs(store)
    assert run.info.status == "FINISHED"
    assert len(run.outputs.model_outputs) == 1
    assert [point.step for point in store.get_metric_history(run.info.run_id, "val/top1")] == [1, 2, 3, 4]


def test_the_time_budget_of_one_night_and_the_next(
    call: Call, store: MlflowClient, command: tuple[object, ...]
) -> None:
    status, out, _ = call("train", *command, "--time-budget", "0.001s")
    assert status == 0
    assert "stopped: time budget: 1 of 4 epochs; the same command again trains the rest" in out
    [run] = runs(store)
    assert (run.info.status, run.data.tags["pillsnap.stopped"]) == ("FINISHED", "time budget: 1 of 4 epochs")
    assert run.data.tags["pillsnap.resumable"] == "true"
    status, out, err = call("train", *command, "--time-budget", "8h")
    assert (status, GOES_ON in err, "stopped" in out) == (0, True, False)
    [run] = runs(store)
    assert (run.data.tags["pillsnap.stopped"], run.data.tags["pillsnap.resumable"]) == ("", "false")
    assert run.data.metrics["val/top1"] >= 0


@pytest.mark.parametrize("name", ["train", "run"])
def test_a_dry_run_leaves_nothing(
    call: Call,
    store: MlflowClient,
    command: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    status, out, err = call(name, *command, "--dry-run")
    assert status == 0, err
    assert "trained one update of 8 images on CPU" in out
    assert "validated 9 images; checkpoint 0.4 MB" in out
    assert "exported 0." in out
    assert "dry run: all well after" in out
    assert runs(store) == []
    assert not (tmp_path / "w").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_dry_run_meets_what_the_run_would_meet(call: Call, store: MlflowClient, command: tuple[object, ...]) -> None:
    status, _, err = call("train", *command, "--dry-run", "--set", "model.backbone=resnet81")
    assert status == 2
    assert "timm has no model 'resnet81'" in err
