"""A training that ended early goes on, and ends with the very weights of one that was left alone."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.batches import TrainingData
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.device import Device
from pillsnap.training.sealed import load_sealed
from pillsnap.training.state import find_state, random_state, restore_random_state, training_identity
from pillsnap.training.trainer import FitResult, fit

Config = Callable[..., ExperimentConfig]
EPOCHS = 4
STEPS = 6
"""Updates of one epoch."""
EVERYTHING = {
    "training.epochs": EPOCHS,
    "training.ema_decay": 0.9,
    "model.drop_rate": 0.3,
    "augmentation.random_erasing": 0.5,
    "augmentation.mix_probability": 0.7,
    "checkpoints.keep_best": 2,
    "logging.every_steps": 1,
}
"""All that is random, and all that has a state."""
QUIET = SimpleNamespace(on_step=lambda *_: None, on_epoch=lambda *_: None, on_resume=lambda *_: None)


class Stopped(Exception):
    pass


class StopsAt:
    """Ends the training when it is told a certain step or epoch; writes down what it is told."""

    def __init__(self, step: int = 0, epoch: int = 0) -> None:
        self._step, self._epoch = step, epoch
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self.resumed: list[tuple[int, int]] = []

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append(step)
        if step == self._step:
            raise Stopped

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs.append(epoch)
        if epoch == self._epoch:
            raise Stopped

    def on_resume(self, epoch: int, step: int) -> None:
        self.resumed.append((epoch, step))


CLOCKS = ("images_per_s", "train_s", "val_s")


def measured(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without what a clock says."""
    return [{k: v for k, v in entry.items() if k not in CLOCKS} for entry in history]


def same(first: Any, second: Any) -> bool:
    """Whether two states are equal, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return bool(first == second)


def assert_same_end(folder: Path, result: FitResult, undisturbed: SimpleNamespace) -> None:
    assert measured(result.history) == measured(undisturbed.result.history)
    assert result.best_checkpoint.name == undisturbed.result.best_checkpoint.name
    assert {path.name for path in folder.iterdir()} == {path.name for path in undisturbed.folder.iterdir()}
    for name in ("last.pt", result.best_checkpoint.name):
        ours, theirs = load_sealed(folder / name), load_sealed(undisturbed.folder / name)
        for state in (ours, theirs):
            state.pop("history", None)
            for key in CLOCKS:
                state["metrics"].pop(key)
        assert same(ours, theirs), name


@pytest.fixture(scope="module")
def undisturbed(data: TrainingData, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("undisturbed")
    return SimpleNamespace(folder=folder, result=fit(tiny_config(EVERYTHING), data, folder, QUIET))


@pytest.fixture
def stopped(data: TrainingData, tiny_config: Config, tmp_path: Path) -> Callable[..., Path]:
    """``stopped(epoch=3)``: a folder with the checkpoints of a training that ended when it was told this."""

    def train(**when: int) -> Path:
        with pytest.raises(Stopped):
            fit(tiny_config(EVERYTHING), data, tmp_path / "c", StopsAt(**when))
        return tmp_path / "c"

    return train


@pytest.mark.parametrize(
    ("when", "done"),
    [({"step": 3}, 0), ({"epoch": 1}, 0), ({"step": 7}, 1), ({"step": 17}, 2), ({"epoch": 4}, 3)],
    ids=str,
)
def test_it_goes_on_after_the_last_whole_epoch(
    data: TrainingData,
    tiny_config: Config,
    stopped: Callable[..., Path],
    undisturbed: SimpleNamespace,
    when: dict[str, int],
    done: int,
) -> None:
    folder, seen = stopped(**when), StopsAt()
    torch.rand(5)
    np.random.rand(5)  # noqa: NPY002
    random.random()
    result = fit(tiny_config(EVERYTHING), data, folder, seen)
    assert_same_end(folder, result, undisturbed)
    assert seen.resumed == ([(done, done * STEPS)] if done else [])
    assert seen.epochs == list(range(done + 1, EPOCHS + 1))
    assert seen.steps == list(range(done * STEPS + 1, EPOCHS * STEPS + 1))


def test_it_may_stop_again_and_again(
    data: TrainingData, tiny_config: Config, undisturbed: SimpleNamespace, tmp_path: Path
) -> None:
    for epoch in (2, 3, 4):
        with pytest.raises(Stopped):
            fit(tiny_config(EVERYTHING), data, tmp_path, StopsAt(step=epoch * STEPS - 1))
    assert_same_end(tmp_path, fit(tiny_config(EVERYTHING), data, tmp_path, QUIET), undisturbed)


def test_a_loss_scale_goes_on_too(
    data: TrainingData, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "needs_scaler", property(lambda self: True))
    config = tiny_config({"training.epochs": 2, "logging.every_steps": 1})
    with pytest.raises(Stopped):
        fit(config, data, tmp_path, StopsAt(step=STEPS + 1))
    before = load_sealed(tmp_path / "last.pt")["scaler"]
    fit(config, data, tmp_path, QUIET)
    after = load_sealed(tmp_path / "last.pt")["scaler"]
    assert before["_growth_tracker"] == STEPS
    assert after["_growth_tracker"] == 2 * STEPS


def test_what_is_complete_is_not_trained_again(
    data: TrainingData, tiny_config: Config, undisturbed: SimpleNamespace, tmp_path: Path
) -> None:
    folder, seen = Path(shutil.copytree(undisturbed.folder, tmp_path / "c")), StopsAt()
    result = fit(tiny_config(EVERYTHING), data, folder, seen)
    assert (seen.steps, seen.epochs, seen.resumed) == ([], [], [])
    assert result.history == undisturbed.result.history
    assert result.best_metrics == undisturbed.result.best_metrics
    assert result.best_checkpoint == folder / undisturbed.result.best_checkpoint.name
    for path in folder.glob("best-*.pt"):
        path.unlink()
    with pytest.raises(TrainingError, match="its best checkpoint is gone"):
        fit(tiny_config(EVERYTHING), data, folder, seen)


def test_a_damaged_newest_falls_back_to_the_one_before(
    data: TrainingData,
    tiny_config: Config,
    stopped: Callable[..., Path],
    undisturbed: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, seen = stopped(epoch=4), StopsAt()
    whole = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(whole[: len(whole) // 2] + b"\0" * 100 + whole[len(whole) // 2 + 100 :])
    with caplog.at_level(logging.WARNING):
        result = fit(tiny_config(EVERYTHING), data, folder, seen)
    assert "last.pt: is damaged (its sha256" in caplog.text
    assert "goes on from the checkpoint before it" in caplog.text
    assert seen.resumed == [(2, 2 * STEPS)]
    assert_same_end(folder, result, undisturbed)


def test_with_both_damaged_it_starts_again(
    data: TrainingData, tiny_config: Config, stopped: Callable[..., Path], undisturbed: SimpleNamespace
) -> None:
    folder, seen = stopped(epoch=4), StopsAt()
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"PK")
    assert_same_end(folder, fit(tiny_config(EVERYTHING), data, folder, seen), undisturbed)
    assert (seen.resumed, seen.epochs) == ([], [1, 2, 3, 4])


def test_without_resume_it_starts_anew(data: TrainingData, tiny_config: Config, stopped: Callable[..., Path]) -> None:
    seen = StopsAt()
    fit(tiny_config(EVERYTHING), data, stopped(epoch=3), seen, resume=False)
    assert (seen.resumed, seen.epochs) == ([], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("overrides", "goes_on"),
    [
        ({"training.base_lr": 0.02}, False),
        ({"training.epochs": 5}, False),
        ({"seed": 2}, False),
        ({"augmentation.blur.sigma": [0.1, 1.0]}, False),
        ({"name": "other", "logging.every_steps": 9, "checkpoints.every_epochs": 1, "tuning.trials": 3}, True),
        ({"data.pin_memory": False, "data.persistent_workers": False, "data.workers": 3}, True),
    ],
    ids=str,
)
def test_only_the_same_experiment_goes_on(
    data: TrainingData, tiny_config: Config, undisturbed: SimpleNamespace, overrides: dict[str, Any], goes_on: bool
) -> None:
    config = tiny_config({**EVERYTHING, **overrides})
    found = find_state(undisturbed.folder, training_identity(config, data))
    assert (found is not None) == goes_on


def test_other_rows_are_another_training(data: TrainingData, tiny_config: Config, undisturbed: SimpleNamespace) -> None:
    part = data.with_train_share(0.8, 1)
    assert find_state(undisturbed.folder, training_identity(tiny_config(EVERYTHING), part)) is None


def test_a_checkpoint_of_an_older_version_is_nothing_to_go_on_from(
    data: TrainingData,
    tiny_config: Config,
    undisturbed: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Checkpoint.load(undisturbed.folder / "last.pt").save(tmp_path / "last.pt")
    with caplog.at_level(logging.WARNING):
        assert find_state(tmp_path, training_identity(tiny_config(EVERYTHING), data)) is None
    assert "last.pt: holds no state to go on from" in caplog.text


def test_the_generators_come_back() -> None:
    def draw() -> list[float]:
        return [float(torch.rand(1)), float(np.random.standard_normal()), random.gauss(0, 1)]  # noqa: NPY002

    draw()  # leaves the second number of a pair in both normal generators
    state = random_state()
    first = draw()
    draw()
    restore_random_state(state)
    assert draw() == first


def test_it_goes_on_without_its_pretrained_weights(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    start = fit(tiny_config({"training.epochs": 1}), data, tmp_path / "first", QUIET).best_checkpoint
    backbone = {k.removeprefix("backbone."): v for k, v in Checkpoint.load(start).state_dict.items()}
    torch.save(backbone, tmp_path / "weights.pth")
    config = tiny_config(
        {"model.pretrained": True, "model.weights": str(tmp_path / "weights.pth"), "training.epochs": 2}
    )
    with pytest.raises(Stopped):
        fit(config, data, tmp_path / "c", StopsAt(epoch=2))
    (tmp_path / "weights.pth").unlink()
    assert len(fit(config, data, tmp_path / "c", QUIET).history) == 2


# --- with a teacher


@pytest.fixture
def teacher(trained: SimpleNamespace, tmp_path: Path) -> Path:
    """A teacher's checkpoint, to move and to change."""
    return Path(shutil.copy(trained.result.best_checkpoint, tmp_path / "teacher.pt"))


def taught(tiny_config: Config, teacher: Path) -> ExperimentConfig:
    return tiny_config({**EVERYTHING, "distillation.teacher": str(teacher), "distillation.weight": 0.7})


def test_a_taught_training_goes_on_too(
    data: TrainingData, tiny_config: Config, teacher: Path, undisturbed: SimpleNamespace, tmp_path: Path
) -> None:
    config = taught(tiny_config, teacher)
    whole = SimpleNamespace(folder=tmp_path / "whole", result=fit(config, data, tmp_path / "whole", QUIET))
    assert measured(whole.result.history) != measured(undisturbed.result.history)
    with pytest.raises(Stopped):
        fit(config, data, tmp_path / "c", StopsAt(step=2 * STEPS + 3))
    torch.rand(5)
    seen = StopsAt()
    assert_same_end(tmp_path / "c", fit(config, data, tmp_path / "c", seen), whole)
    assert seen.resumed == [(2, 2 * STEPS)]


def test_it_is_the_teachers_content_that_counts(
    data: TrainingData, tiny_config: Config, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A teacher that was moved is the same one; another one in its place begins another training."""
    with pytest.raises(Stopped):
        fit(taught(tiny_config, teacher), data, tmp_path / "c", StopsAt(epoch=2))
    moved = Path(shutil.move(teacher, tmp_path / "moved.pt"))
    with pytest.raises(TrainingError, match=r"distillation\.teacher: .*teacher\.pt: no such file"):
        fit(taught(tiny_config, teacher), data, tmp_path / "c", QUIET)
    seen = StopsAt(step=STEPS + 1)
    with pytest.raises(Stopped):
        fit(taught(tiny_config, moved), data, tmp_path / "c", seen)
    assert seen.resumed == [(1, STEPS)]
    loaded = Checkpoint.load(moved)
    replace(loaded, epoch=loaded.epoch + 1).save(moved)
    seen = StopsAt(step=1)
    with caplog.at_level(logging.WARNING), pytest.raises(Stopped):
        fit(taught(tiny_config, moved), data, tmp_path / "c", seen)
    assert "belongs to another experiment, teacher or data set: this training starts anew" in caplog.text
    assert (seen.resumed, seen.steps) == ([], [1])


# --- the end of the time, the disk and the numbers


def test_no_epoch_is_begun_that_would_end_too_late(
    data: TrainingData,
    tiny_config: Config,
    undisturbed: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=100.0)

    class EpochsOfTenSeconds(StopsAt):
        def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
            super().on_epoch(epoch, metrics)
            clock.now += 10

    fake = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter)
    monkeypatch.setattr("pillsnap.training.trainer.time", fake)
    seen = EpochsOfTenSeconds()
    result = fit(tiny_config(EVERYTHING), data, tmp_path, seen, deadline=135.0)
    assert (seen.epochs, result.stopped) == ([1, 2, 3], "time budget: 3 of 4 epochs")
    assert measured(result.history) == measured(undisturbed.result.history[:3]), "the schedule is that of 4 epochs"
    assert result.best_checkpoint.is_file()
    result = fit(tiny_config(EVERYTHING), data, tmp_path, seen)
    assert result.stopped == ""
    assert_same_end(tmp_path, result, undisturbed)


def test_the_time_of_former_epochs_counts(
    data: TrainingData, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock takes five seconds, so an epoch ten and its validation five."""
    fake = SimpleNamespace(monotonic=lambda: 100.0, perf_counter=itertools.count(0, 5).__next__)
    monkeypatch.setattr("pillsnap.training.trainer.time", fake)
    assert len(fit(tiny_config(EVERYTHING), data, tmp_path, QUIET, deadline=0.0).history) == 1
    result = fit(tiny_config(EVERYTHING), data, tmp_path, QUIET, deadline=109.0)
    assert result.stopped == "time budget: 1 of 4 epochs", "begun again, it knows how long an epoch is"
    assert len(fit(tiny_config(EVERYTHING), data, tmp_path, QUIET, deadline=1000.0).history) == 4


def test_one_epoch_is_always_trained(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    result = fit(tiny_config(EVERYTHING), data, tmp_path, QUIET, deadline=0.0)
    assert (len(result.history), result.stopped) == (1, "time budget: 1 of 4 epochs")


@pytest.mark.parametrize("full_after", [0, 2])
def test_a_full_disk_ends_the_training_with_its_reason(
    data: TrainingData,
    tiny_config: Config,
    undisturbed: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full_after: int,
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, content: Any) -> int:
        if (
            len(list(tmp_path.glob("last.pt"))) and load_sealed(tmp_path / "last.pt")["epoch"] >= full_after
        ) or not full_after:
            write_bytes(path, bytes(content)[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    last = r"the last good checkpoint is \S+last\.pt" if full_after else "there is no checkpoint yet"
    with pytest.raises(TrainingError, match=rf"the disk is full in epoch {full_after + 1} .*{last}: free some space"):
        fit(tiny_config(EVERYTHING), data, tmp_path, QUIET)
    assert not list(tmp_path.glob(".*")), "nothing half written stays"
    monkeypatch.undo()
    assert_same_end(tmp_path, fit(tiny_config(EVERYTHING), data, tmp_path, QUIET), undisturbed)


def test_other_errors_of_the_disk_stay_what_they_are(data: TrainingData, tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file, no folder")
    with pytest.raises(FileExistsError):
        fit(tiny_config(EVERYTHING), data, tmp_path / "c", QUIET)


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(
    data: TrainingData, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_number(logits_NK: torch.Tensor, *_: Any) -> torch.Tensor:
        return logits_NK.sum() * float("nan")

    class Poisoned(StopsAt):
        def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
            super().on_epoch(epoch, metrics)
            if epoch == 2:
                monkeypatch.setattr("pillsnap.training.trainer.weighted_loss", no_number)

    message = r"the loss is nan after 13 updates.*the last good checkpoint is \S+last\.pt"
    with pytest.raises(TrainingError, match=message):
        fit(tiny_config(EVERYTHING), data, tmp_path, Poisoned())
    assert load_sealed(tmp_path / "last.pt")["epoch"] == 2


# --- killed


def _train(config: ExperimentConfig, data: TrainingData, folder: Path) -> None:
    torch.set_num_threads(1)
    fit(config, data, folder, QUIET)


def _kill_when(process: Any, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_killed_in_an_epoch_and_while_a_checkpoint_is_written(
    data: TrainingData, tiny_config: Config, undisturbed: SimpleNamespace, tmp_path: Path, forkserver: Any
) -> None:
    def written(name: str) -> Callable[[], bool]:
        return (tmp_path / name).exists

    def half_written() -> bool:
        return any(tmp_path.glob(".last.pt.*.part"))

    ends = []
    for ready in (written("last.pt"), half_written, written("previous.pt")):
        process = forkserver.Process(target=_train, args=(tiny_config(EVERYTHING), data, tmp_path))
        process.start()
        _kill_when(process, ready)
        ends.append(process.exitcode)
    assert -signal.SIGKILL in ends
    assert_same_end(tmp_path, fit(tiny_config(EVERYTHING), data, tmp_path, QUIET), undisturbed)
