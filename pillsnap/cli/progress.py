"""Progress of long work: a bar on a terminal, otherwise a plain line now and then, on standard error."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from typing import Any

import click

from pillsnap.core.durations import duration

_log = logging.getLogger(__name__)
_LINE_SECONDS = 8.0
"""So that with an item of two seconds a line still comes every ten."""
_FIRST_GUESS_S = 5.0
_LONG_TRAINING_S, _LONG_LINE_SECONDS = 600.0, 60.0


class Progress:
    """How far a piece of work is: a bar on a terminal, otherwise a line at once, one every 8 s, and one at the end.

    Called with stage, done and total; a context manager that closes the bar.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage: str | None = None
        self._started = self._last = time.monotonic()
        self._done_at_start = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if sys.stderr.isatty():
            self._draw(stage, done, total)
            return
        now = time.monotonic()
        is_new = stage != self._stage
        if is_new:
            self._stage, self._started, self._done_at_start = stage, now, done
        if is_new or done == total or now - self._last >= _LINE_SECONDS:
            self._last = now
            click.echo(f"{stage}: {done:,} of {total:,}{self._to_go(now, done, total)}", err=True)

    def _to_go(self, now: float, done: int, total: int) -> str:
        """``, 40 s to go``; empty where too little is done to tell."""
        so_far = done - self._done_at_start
        if so_far <= 0 or done >= total or now - self._started < 1:
            return ""
        return f", {duration((now - self._started) / so_far * (total - done))} to go"

    def _draw(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage, self._bar = stage, tqdm(total=total, desc=stage)
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, None


class TrainingProgress:
    """How far a training is: a bar on a terminal, otherwise a line every 8 s (after ten minutes: a minute) and one an
    epoch.

    The time that is left is told from what this process has done: what another process did before says nothing of this
    machine.
    """

    def __init__(self, epochs: int, updates_per_epoch: int) -> None:
        self._epochs = epochs
        self._per_epoch = max(updates_per_epoch, 1)
        self._epochs_before = 0.0
        self._epoch = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        self._closing = ExitStack()

    def __enter__(self) -> TrainingProgress:
        self._started = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._closing.enter_context(logging_redirect_tqdm())  # lines above the bar, not through it
            self._bar = tqdm(total=self._epochs * self._per_epoch, desc="epoch 1", unit="update", dynamic_ncols=True)
            self._closing.callback(self._bar.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        self._bar = None

    def goes_on(self, epoch: int, step: int) -> None:
        """``epoch`` epochs and ``step`` updates were done before."""
        self._epoch, self._epochs_before = epoch, step / self._per_epoch
        if self._bar is not None:
            self._bar.initial = step  # its rate and its time to go are those of this process
            self._move_bar(step)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """After some updates; ``metrics`` holds ``step_loss`` and ``step_images_per_s``."""
        figures = f"loss {metrics['step_loss']:.3f}, {metrics['step_images_per_s']:.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._move_bar(step)
        elif (now := time.monotonic()) - self._last_line >= self._line_seconds(now):
            self._last_line = now
            in_epoch = step - self._epoch * self._per_epoch
            _log.info(
                "epoch %d of %d, update %d of %d: %s%s",
                self._epoch + 1, self._epochs, in_epoch, self._per_epoch, figures, self._to_go(step / self._per_epoch),
            )  # fmt: skip

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """After an epoch."""
        self._epoch = epoch
        self._last_line = time.monotonic()
        real = f", real {metrics['val_real_top1']:.1%}" if "val_real_top1" in metrics else ""
        _log.info(
            "epoch %d of %d: loss %.3f, validation top-1 %.1f %%, top-5 %.1f %%%s, %.0f images/s%s",
            epoch, self._epochs, metrics["train_loss"], 100 * metrics["val_top1"], 100 * metrics["val_top5"], real,
            metrics["images_per_s"], self._to_go(epoch),
        )  # fmt: skip
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {min(epoch + 1, self._epochs)}", refresh=False)
            self._move_bar(epoch * self._per_epoch)

    def _line_seconds(self, now: float) -> float:
        return _LINE_SECONDS if now - self._started < _LONG_TRAINING_S else _LONG_LINE_SECONDS

    def _move_bar(self, step: int) -> None:
        self._bar.n = min(step, self._bar.total)
        self._bar.refresh()

    def _to_go(self, epochs_done: float) -> str:
        """``, 1 h 02 min to go``; empty where this process has done too little to tell."""
        taken_s, done = time.monotonic() - self._started, epochs_done - self._epochs_before
        if done <= 0 or (taken_s < _FIRST_GUESS_S and done < 1):
            return ""
        each_s = taken_s / done
        return f", {duration(each_s * (self._epochs - epochs_done))} to go"
