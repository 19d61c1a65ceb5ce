"""What a training says while it works, on a terminal and elsewhere, and what it leaves as a report."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from pillsnap.cli import progress as progress_module
from pillsnap.cli.progress import TrainingProgress, duration
from pillsnap.cli.run_logger import RunLogger, training_report

STEP = {"step_loss": 1.5, "step_images_per_s": 200.0}
EPOCH = {"train_loss": 1.25, "val_loss": 1.0, "val_top1": 0.5, "val_top5": 0.75, "images_per_s": 200.0, "lr": 0.001}


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Recorder:
    def __init__(self) -> None:
        self.metrics: list[tuple[dict[str, float], int]] = []
        self.tags: dict[str, str] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.append((metrics, step))

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "pillsnap")
    return caplog


def test_a_line_every_eight_seconds_and_one_an_epoch(clock: Clock, lines: pytest.LogCaptureFixture) -> None:
    with TrainingProgress(epochs=3, updates_per_epoch=100) as progress:
        for step in range(1, 101):
            clock.now += 0.3
            progress.update(step, STEP)
        progress.epoch(1, EPOCH)
        clock.now += 15
        progress.update(150, STEP)
    assert lines.messages == [
        "epoch 1 of 3, update 27 of 100: loss 1.500, 200 images/s, 82 s to go",
        "epoch 1 of 3, update 54 of 100: loss 1.500, 200 images/s, 74 s to go",
        "epoch 1 of 3, update 81 of 100: loss 1.500, 200 images/s, 66 s to go",
        "epoch 1 of 3: loss 1.250, validation top-1 50.0 %, top-5 75.0 %, 200 images/s, 60 s to go",
        "epoch 2 of 3, update 50 of 100: loss 1.500, 200 images/s, 45 s to go",
    ]


def test_a_long_training_says_less(clock: Clock, lines: pytest.LogCaptureFixture) -> None:
    with TrainingProgress(epochs=1, updates_per_epoch=1000) as progress:
        for step in range(1, 1001):
            clock.now += 1.0
            progress.update(step, STEP)
    steps = [int(line.split("update ")[1].split()[0]) for line in lines.messages]
    assert steps == [*range(8, 600, 8), *range(652, 1001, 60)]


def test_the_time_to_go_is_told_from_the_epochs_of_this_process(clock: Clock, lines: pytest.LogCaptureFixture) -> None:
    run = Recorder()
    with TrainingProgress(epochs=10, updates_per_epoch=10) as progress:
        logger = RunLogger(run, progress)  # type: ignore[arg-type]
        logger.on_resume(8, 80)
        clock.now += 50
        logger.on_step(85, STEP)
        logger.on_epoch(9, {**EPOCH, "val_real_top1": 0.25})
    assert lines.messages[-1].endswith("top-5 75.0 %, real 25.0%, 200 images/s, 50 s to go")
    assert run.tags == {"pillsnap.resumed_after": "epoch 8, update 80"}
    assert [step for _, step in run.metrics] == [85, 9]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with TrainingProgress(epochs=2, updates_per_epoch=10) as progress:
        progress.goes_on(0, 0)
        progress.update(5, STEP)
        time.sleep(0.01)
        progress.epoch(1, EPOCH)
        progress.update(30, STEP)
    drawn = terminal.getvalue()
    for words in ("epoch 1", "epoch 2", "5/20", "10/20", "20/20", "loss 1.500, 200 images/s"):
        assert words in drawn


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (99.4, "99 s"), (150, "2 min"), (5900, "98 min"), (6001, "1 h 40 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_report_has_a_row_an_epoch() -> None:
    history = [{"epoch": 1.0, **EPOCH, "train_s": 2.0}, {"epoch": 2.0, **EPOCH, "val_plain_top1": 0.25, "train_s": 3.0}]
    report = training_report("demo", history, best_epoch=2)
    assert "# Training demo" in report
    assert "Best epoch: 2 of 2" in report
    assert "in all: 5" in report
    rows = [line for line in report.splitlines() if line.startswith("|")]
    assert rows[0] == (
        "| epoch | training loss | validation loss | top-1 | top-5 | top-1 without EMA | learning rate | images/s |"
    )
    assert rows[2] == "| 1 | 1.250 | 1.000 | 50.0 % | 75.0 % |  | 0.001 | 200 |"
    assert rows[3] == "| **2** (best) | 1.250 | 1.000 | 50.0 % | 75.0 % | 25.0 % | 0.001 | 200 |"
