"""What a trial does in the tests of its supervision: nothing, in epochs, with a checkpoint and some mischief.

Imported by the workers' processes too, by this module's name.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.tuning.study import LINEAGE, RETRIES


@dataclass(frozen=True)
class ToyJob:
    """Draws a drop rate; 0.3 is the best."""

    folder: Path
    epochs: int = 3
    epoch_s: float = 0.05
    mischief: dict[int, str] = field(default_factory=dict)
    """Number of the first trial of a lineage → what it does in its second epoch."""

    def __call__(self, trial: optuna.Trial, alive: Callable[[], None]) -> float:
        rate = trial.suggest_float("model.drop_rate", 0.0, 0.5)
        lineage = int(trial.user_attrs.get(LINEAGE, trial.number))
        checkpoint = self.folder / f"checkpoint-{lineage}"
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        value = 1 - abs(rate - 0.3)
        trial.set_user_attr("threads", os.environ.get("OMP_NUM_THREADS"))
        for epoch in range(done + 1, self.epochs + 1):
            time.sleep(self.epoch_s)
            if epoch == 2:
                self._misbehave(self.mischief.get(lineage, ""), trial.user_attrs.get(RETRIES, 0))
            if epoch not in trial.storage.get_trial(trial._trial_id).intermediate_values:
                trial.report(value, epoch)
            beside = checkpoint.with_suffix(f".{os.getpid()}")
            beside.write_text(str(epoch))
            os.replace(beside, checkpoint)
            with (self.folder / "epochs").open("a") as log:
                log.write(f"{trial.number} {lineage} {epoch} {os.getpid()}\n")
            alive()
        return value

    def _misbehave(self, how: str, retries: int) -> None:
        if how == "dies" or (how == "dies once" and not retries):
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hangs" or (how == "hangs once" and not retries):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        if how == "memory":
            raise MemoryError("no room for 8 GiB")
        if how == "nan":
            raise TrainingError("the loss is nan after 3 updates")
        if how == "fault":
            raise ZeroDivisionError("a fault in the code")
        if how == "wrong":
            raise ConfigError("tuning asks for what is not measured")
        if how == "slow":
            time.sleep(1000)

    def log(self) -> list[tuple[int, int, int, int]]:
        """(trial, lineage, epoch, process) of each epoch that was trained."""
        path = self.folder / "epochs"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(a), int(b), int(c), int(d)) for a, b, c, d in (line.split() for line in lines)]
