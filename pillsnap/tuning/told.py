"""A study's log: a line for each trial that is over, whoever did it. Knows no MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial

from pillsnap.core.durations import duration
from pillsnap.tuning.study import best_of, over
from pillsnap.tuning.words import ended_words, params_words

_log = logging.getLogger(__name__)


@dataclass
class StudyLog:
    """Says once of each trial how it ended, what it drew, the best so far, and how long the rest will take."""

    wanted: int
    """Trials in all."""
    objective: str
    epochs: int
    """Of a trial."""
    deadline: float | None
    """Of `time.monotonic`; None: none."""
    on_end: Callable[[list[FrozenTrial]], None]
    """Called with all trials when some are over that were not."""
    _told: set[int] = field(default_factory=set)
    _before: int = 0
    _started: float = field(default_factory=time.monotonic)

    def begin(self, trials: list[FrozenTrial]) -> None:
        """What is over at the start was told by others."""
        self._told = {trial.number for trial in over(trials)}
        self._before = len(self._told)

    def look(self, trials: list[FrozenTrial]) -> None:
        """Say what is new."""
        ended = over(trials)
        new = sorted(
            (trial for trial in ended if trial.number not in self._told),
            key=lambda trial: (trial.datetime_complete is None, trial.datetime_complete, trial.number),
        )
        for trial in new:
            self._told.add(trial.number)
            known = [other for other in ended if other.number in self._told]
            _log.info("%s", self._line(trial, known))
        if new:
            self.on_end(trials)

    def _line(self, trial: FrozenTrial, ended: list[FrozenTrial]) -> str:
        best = best_of(ended)
        parts = [
            f"{len(ended)} of {self.wanted}: trial {trial.number} {ended_words(trial, self.objective, self.epochs)}",
            params_words(trial),
            f"best: trial {best.number}, {100 * (best.value or 0):.1f} %" if best else "none is complete yet",
            self._left(len(ended)),
        ]
        return "; ".join(part for part in parts if part)

    def _left(self, done: int) -> str:
        """By what the trials of this process took; with a deadline no longer than to that."""
        remaining = self.wanted - done
        if remaining <= 0:
            return ""
        now = time.monotonic()
        left_s = (now - self._started) / max(done - self._before, 1) * remaining
        if self.deadline is not None and self.deadline - now < left_s:
            return f"time is up in {duration(self.deadline - now)}"
        return f"{duration(left_s)} to go"
