"""One run from its start to its end: what is logged, and how it ends whatever happens."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.code_version import CodeVersion
from pillsnap.core.errors import StoreError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tracking import run as run_module
from pillsnap.tracking.fetching import find_artifact
from pillsnap.tracking.journal import Journal
from pillsnap.tracking.resuming import ending_the_run_of_mlflow, pointing_at
from pillsnap.tracking.run import tell_run, tracked_run
from pillsnap.tracking.run_model import log_bundle
from pillsnap.tracking.store import ensure_experiment, experiment_name
from pillsnap.tracking.sync import sync_run


def only_run(store: MlflowClient, experiment: str = "exp") -> Run:
    found = store.get_experiment_by_name(experiment)
    assert found is not None
    [run] = store.search_runs([found.experiment_id])
    return run


def test_a_run_of_its_own(store: MlflowClient) -> None:
    with tracked_run("first", experiment="exp") as tracked:
        assert store.get_run(tracked.run_id).info.status == "RUNNING"
    run = only_run(store)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (tracked.run_id, "FINISHED", "first")
    assert run.info.end_time is not None
    assert "ended_because" not in run.data.tags


def test_attaches_to_the_run_of_mlflow_run_and_only_once(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = store.create_run(store.create_experiment("projects"))
    store.log_param(opened.info.run_id, "data", "'a b'")  # as `mlflow run` logs it, quoted for the shell
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    with tracked_run("attached", experiment="exp") as tracked:
        tracked.log_config({"data": "a b", "seed": 1})
        assert "MLFLOW_RUN_ID" not in os.environ
        with tracked_run("child", experiment="", parent=tracked) as child:
            pass
    run = store.get_run(opened.info.run_id)
    assert (tracked.run_id, run.info.status, run.info.run_name) == (opened.info.run_id, "FINISHED", "attached")
    assert run.data.params == {"data": "'a b'", "cfg.data": "a b", "cfg.seed": "1"}
    assert store.get_experiment_by_name("exp") is None, "the experiment is the one that mlflow run chose"
    nested = store.get_run(child.run_id)
    assert nested.data.tags["mlflow.parentRunId"] == tracked.run_id
    assert nested.info.experiment_id == run.info.experiment_id
    with tracked_run("second", experiment="exp") as second:
        assert second.run_id != tracked.run_id


def test_attaching_to_a_run_that_the_store_does_not_have(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with (
        pytest.raises(StoreError, match=r"MLFLOW_RUN_ID names the run 'f{32}'.*unset"),
        tracked_run("x", experiment="e"),
    ):
        pass


@pytest.mark.parametrize(
    ("status", "begun", "said"),
    [
        ("FINISHED", False, "which is FINISHED"),
        ("FAILED", True, "which is FAILED"),
        ("RUNNING", True, "in which other work was begun"),
    ],
)
def test_a_run_that_was_left_over_is_not_written_over(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, status: str, begun: bool, said: str
) -> None:
    """Also not pointed away from, nor ended, by work that fails before its own run is opened."""
    left = store.create_run(store.create_experiment("elsewhere"), run_name="theirs")
    if begun:
        store.set_tag(left.info.run_id, "git_commit", "c" * 40)
    store.update_run(left.info.run_id, status=status)
    before = store.get_run(left.info.run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", left.info.run_id)
    message = rf"MLFLOW_RUN_ID names the run {left.info.run_id} \(theirs\), {said}.*unset MLFLOW_RUN_ID"
    with pytest.raises(StoreError, match=message), tracked_run("new", experiment="exp"):
        pass
    other = store.create_run(store.create_experiment("exp"))
    with pytest.raises(StoreError, match=message), pointing_at(other):
        pass
    if status != "RUNNING":
        monkeypatch.setenv("MLFLOW_RUN_ID", left.info.run_id)
        with pytest.raises(TrainingError), ending_the_run_of_mlflow():
            raise TrainingError("no data")
    assert store.get_run(left.info.run_id).to_dictionary() == before


def test_a_workspace_that_cannot_be_written_ends_the_run(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").write_text("a file")
    with pytest.raises(OSError, match="w"), tracked_run("r", experiment="exp", workspace=tmp_path / "w"):
        pass
    run = only_run(store)
    assert run.info.status == "FAILED"
    assert run.data.tags["ended_because"].startswith("NotADirectoryError")


def test_the_experiment_of_the_environment(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable, raising=False)
    assert experiment_name() == "pillsnap"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    assert experiment_name() == "ours"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.create_experiment("theirs"))
    assert experiment_name() == "theirs", "as mlflow run, which sets it"
    assert "(theirs) is taken, not MLFLOW_EXPERIMENT_NAME=ours" in caplog.text
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "4711")
    with pytest.raises(StoreError, match=r"MLFLOW_EXPERIMENT_ID=4711: .*No Experiment with id=4711"):
        experiment_name()


@pytest.mark.parametrize(("experiment", "said"), [("Default", True), ("elsewhere", False)])
def test_a_run_of_mlflow_in_the_experiment_default_says_so(
    store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    experiment: str,
    said: bool,
) -> None:
    opened = store.create_run(ensure_experiment(store, experiment))
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    with tracked_run("attached", experiment="exp") as tracked:
        assert tracked.run_id == opened.info.run_id, "whoever started mlflow run looks for it there"
    assert ("mlflow run --experiment-name pillsnap" in caplog.text) is said


def test_every_value_of_the_experiment_is_a_parameter(store: MlflowClient) -> None:
    config = ExperimentConfig.build({"model": {"kwargs": {"layers": [1, 2], "note": "x" * 900}}}, None, "test")
    with tracked_run("r", experiment="exp") as tracked:
        tracked.log_config(config.model_dump(mode="json"))
    params = only_run(store).data.params
    assert set(params) == {f"cfg.{key}" for key in config.flat()}
    assert params["cfg.training.base_lr"] == "0.001"
    assert params["cfg.model.kwargs.layers"] == "[1,2]"
    assert params["cfg.model.kwargs.note"].endswith("x…")
    assert len(params["cfg.model.kwargs.note"]) == 500


def test_all_metrics_are_there_at_the_end(store: MlflowClient) -> None:
    with tracked_run("r", experiment="exp") as tracked:
        for step in range(1, 701):  # more than one batch
            tracked.log_metrics({"step_loss": 1 / step}, step)
        for epoch in (1, 2, 3):
            tracked.log_metrics({"val_top1": epoch / 10, "val_loss": float("inf")}, epoch)
        tracked.log_metrics({"best_epoch": 3})
    history = store.get_metric_history(tracked.run_id, "step_loss")
    assert sorted((m.step, m.value) for m in history) == [(step, 1 / step) for step in range(1, 701)]
    epochs = store.get_metric_history(tracked.run_id, "val_top1")
    assert sorted((m.step, m.value) for m in epochs) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert only_run(store).data.metrics["best_epoch"] == 3


def test_the_data_set_with_its_digest(store: MlflowClient, toys: SimpleNamespace, tmp_path: Path) -> None:
    manifest = toys.save_manifest(
        tmp_path / "data", toys.toy_colors(2), [(0, 0, "train", "real"), (1, 1, "val", "real")]
    )
    with tracked_run("r", experiment="exp") as tracked:
        tracked.log_dataset(manifest)
    run = only_run(store)
    [entry] = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("toy", manifest.hash[:36])
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
    assert '"images":2' in entry.dataset.profile
    assert run.data.tags["manifest_hash"] == manifest.hash


def test_test_figures_are_those_of_the_logged_model_and_its_data_set(
    store: MlflowClient, toys: SimpleNamespace, tmp_path: Path
) -> None:
    manifest = toys.save_manifest(tmp_path / "data", toys.toy_colors(2), [(0, 0, "test", "real")])
    bundle = toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(2), manifest.hash)
    with tracked_run("r", experiment="exp") as tracked:
        model_id = str(log_bundle(tracked, bundle)).removeprefix("models:/")
        tracked.log_dataset(manifest, "test")
        tracked.log_test_metrics({"test_top1": 0.9}, manifest)
    with tracked_run("another", experiment="others") as other:
        other.log_test_metrics({"gate_top1": 0.8}, manifest, model_id)
    tell_run(store, tracked.run_id, {"gate_top1": 0.8}, manifest)
    [metric, theirs] = sorted(store.get_logged_model(model_id).metrics, key=lambda metric: -metric.value)
    assert (metric.key, metric.value, metric.run_id) == ("test_top1", 0.9, tracked.run_id)
    assert (metric.dataset_name, metric.dataset_digest) == ("toy", manifest.hash[:36])
    assert (theirs.key, theirs.run_id) == ("gate_top1", other.run_id)
    run = store.get_run(tracked.run_id)
    assert run.data.metrics == {"test_top1": 0.9, "gate_top1": 0.8}
    [entry] = run.inputs.dataset_inputs
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "test")]

    store.delete_logged_model(model_id)
    with tracked_run("late", experiment="others") as late:
        late.log_test_metrics({"gate_top1": 0.7}, manifest, model_id)
    assert store.get_run(late.run_id).data.metrics == {"gate_top1": 0.7}, "the run's alone"
    store.delete_run(late.run_id)
    with tracked_run("no model", experiment="exp") as bare:
        bare.log_test_metrics({"test_top1": 0.5}, manifest)
    assert store.get_run(bare.run_id).data.metrics == {"test_top1": 0.5}
    with pytest.raises(StoreError, match="does not take the figures for run"):
        tell_run(store, late.run_id, {"gate_top1": 0.7}, manifest)


def test_the_code_version(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodeVersion, "current", classmethod(lambda cls: cls("c" * 40, True)))
    with tracked_run("r", experiment="exp"):
        pass
    tags = only_run(store).data.tags
    assert (tags["git_commit"], tags["git_dirty"]) == ("c" * 40, "true")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("the loss is nan after 3 updates"), "FAILED"),
        (ValueError("a fault"), "FAILED"),
        (SystemExit(3), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_run_left_by_an_exception(store: MlflowClient, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), tracked_run("r", experiment="exp") as tracked:  # noqa: PT012
        tracked.log_metrics({"loss": 2.0}, 1)
        raise error
    run = only_run(store)
    assert run.info.status == status
    assert run.data.tags["ended_because"] == f"{type(error).__name__}: {error}"
    assert run.data.metrics["loss"] == 2.0, "what was logged before is kept"


def test_ctrl_c_right_after_the_run_was_opened(store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cls: type) -> CodeVersion:
        raise KeyboardInterrupt

    monkeypatch.setattr(CodeVersion, "current", classmethod(interrupted))
    with pytest.raises(KeyboardInterrupt), tracked_run("r", experiment="exp"):
        pass
    assert only_run(store).info.status == "KILLED"


def test_a_nested_run_and_its_parent_both_end(store: MlflowClient) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        tracked_run("parent", experiment="exp") as parent,
        tracked_run("child", experiment="", parent=parent) as child,
    ):
        raise KeyboardInterrupt
    assert {store.get_run(run.run_id).info.status for run in (parent, child)} == {"KILLED"}


def test_metrics_survive_a_store_that_fails_for_a_while(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    working = MlflowClient.log_batch
    failures = iter([MlflowException("the server is restarting")])

    def fails_once(client: MlflowClient, run_id: str, **kwargs: object) -> object:
        if kwargs.get("metrics"):
            for failure in failures:
                raise failure
        return working(client, run_id, **kwargs)

    with caplog.at_level(logging.WARNING), tracked_run("r", experiment="exp") as tracked:
        monkeypatch.setattr(MlflowClient, "log_batch", fails_once)
        tracked.log_metrics({"loss": 3.0}, 1)
        assert not tracked.flush()
        assert store.get_run(tracked.run_id).data.metrics == {}
        tracked.log_metrics({"loss": 2.0}, 2)
    assert "(the server is restarting); the work goes on" in caplog.text
    assert [m.value for m in store.get_metric_history(tracked.run_id, "loss")] == [3.0, 2.0]
    assert only_run(store).info.status == "FINISHED"


def test_a_store_that_is_gone_at_the_end_does_not_hide_the_result(
    store: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        ExitStack() as outage,
        tracked_run("r", experiment="exp", workspace=tmp_path / "w") as tracked,
    ):
        tracked.log_metrics({"loss": 1.0}, 1)
        for method in ("log_batch", "set_terminated"):
            gone = mock.patch.object(MlflowClient, method, side_effect=MlflowException("connection refused"))
            outage.enter_context(gone)
    assert f"not taken all of run {tracked.run_id}, which ended as FINISHED (connection refused)" in caplog.text
    assert f"pillsnap tracking sync --workspace {tmp_path / 'w'}" in caplog.text
    assert store.get_run(tracked.run_id).info.status == "RUNNING"


def test_without_a_workspace_the_outbox_lasts_as_long_as_something_waits(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracked_run("r", experiment="exp") as tracked:
        assert (tracked.folder / "outbox").is_dir()
    assert not tracked.folder.exists()
    with ExitStack() as outage, tracked_run("r", experiment="exp") as kept:
        outage.enter_context(mock.patch.object(MlflowClient, "log_batch", side_effect=MlflowException("gone")))
    assert sync_run(kept.folder.parents[1], kept.run_id).waiting == 0
    shutil.rmtree(kept.folder.parents[1])


def test_a_full_disk_ends_the_run_all_the_same(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (  # noqa: PT012
        pytest.raises(OSError, match="No space left"),
        tracked_run("r", experiment="exp", workspace=tmp_path) as tracked,
    ):
        monkeypatch.setattr(Journal, "add", full)
        tracked.log_metrics({"loss": 1.0}, 1)
    run = only_run(store)
    assert (run.info.status, run.data.tags["ended_because"]) == (
        "FAILED",
        "OSError: [Errno 28] No space left on device",
    )


def test_a_run_that_was_killed_goes_on_and_tells_nothing_twice(store: MlflowClient, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracked_run("r", experiment="exp", workspace=tmp_path) as first:  # noqa: PT012
        for step in (1, 2, 3):
            first.log_metrics({"step_loss": 1 / step, "images_per_s": 10 * step}, step)
        raise KeyboardInterrupt
    with tracked_run("ignored", workspace=tmp_path, resume=first.run_id) as again:
        again.flush()
        assert store.get_run(first.run_id).info.status == "RUNNING"
        for step in (2, 3, 4):  # the last checkpoint is that of step 1
            again.log_metrics({"step_loss": 1 / step, "images_per_s": 7 * step}, step)
    run = only_run(store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "r")
    assert "ended_because" not in run.data.tags
    for key, values in (("step_loss", [1, 1 / 2, 1 / 3, 1 / 4]), ("images_per_s", [10, 20, 30, 28])):
        assert [(m.step, m.value) for m in store.get_metric_history(first.run_id, key)] == list(enumerate(values, 1))


def test_one_process_works_on_a_run(store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_WAIT_FOR_OUTBOX_S", 0.0)
    run_id = store.create_run(store.create_experiment("exp")).info.run_id
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "runs" / run_id / "outbox")], stdout=-1)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreError, match="another process"), tracked_run("r", workspace=tmp_path, resume=run_id):
            pass
        synced = sync_run(tmp_path, run_id)
        assert (synced.sent, "another process is at work" in synced.problem) == (0, True)
    finally:
        holder.kill()
        holder.communicate()
    with tracked_run("r", workspace=tmp_path, resume=run_id):
        pass  # a killed process holds nothing


HOLD = """
import sys, time
from pathlib import Path
from pillsnap.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_artifacts(store: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "one.txt").write_text("약")
    with tracked_run("r", experiment="exp") as tracked:
        tracked.log_folder(folder, "evaluation")
        tracked.log_file(folder / "one.txt")
        tracked.log_text("# words", "notes/words.md")
    assert find_artifact(tracked.run_id, "evaluation/one.txt", tmp_path).read_text() == "약"
    assert find_artifact(tracked.run_id, "notes/words.md", tmp_path).read_text() == "# words"
    beside = tmp_path / "mlartifacts" / "exp" / tracked.run_id / "artifacts" / "one.txt"
    assert beside.is_file(), "the artifacts of a local store lie beside its database"
    with pytest.raises(StoreError):
        find_artifact(tracked.run_id, "none.txt", tmp_path)


def test_a_deleted_experiment_is_used_again(store: MlflowClient) -> None:
    store.delete_experiment(store.create_experiment("exp"))
    with tracked_run("r", experiment="exp"):
        pass
    assert only_run(store).info.status == "FINISHED"


def test_a_data_set_that_another_run_logs_at_the_same_time(
    store: MlflowClient, toys: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = toys.save_manifest(
        tmp_path / "data", toys.toy_colors(2), [(0, 0, "train", "real"), (1, 1, "val", "studio")]
    )
    with tracked_run("raced", experiment="exp") as run:
        real, calls = MlflowClient.log_inputs, []

        def first_fails(client: MlflowClient, *arguments: Any, **keywords: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise MlflowException("UNIQUE constraint failed: datasets.experiment_id, datasets.name")
            real(client, *arguments, **keywords)

        monkeypatch.setattr(MlflowClient, "log_inputs", first_fails)
        run.log_dataset(manifest)
    [logged] = store.get_run(run.run_id).inputs.dataset_inputs
    assert logged.dataset.digest == manifest.hash[:36]
