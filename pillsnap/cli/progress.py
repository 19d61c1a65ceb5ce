"""Progress of long work: a bar on a terminal, otherwise a plain line now and then, on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

_LINE_SECONDS = 10.0


class Progress:
    """Called with stage, done and total; a context manager that closes the bar."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._last = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if sys.stderr.isatty():
            self._draw(stage, done, total)
        elif done == total or time.monotonic() - self._last > _LINE_SECONDS:
            self._last = time.monotonic()
            click.echo(f"{stage}: {done} of {total}", err=True)

    def _draw(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._stage, self._bar = stage, tqdm(total=total, desc=stage, unit=" images")
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""
