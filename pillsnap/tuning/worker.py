"""A process that does one trial, and is gone: so is its memory.

Optuna's own loop asks for the trial, keeps its heart beating and tells its end. Knows nothing of what a trial does.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from types import FrameType
from typing import Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from pillsnap.core.errors import ConfigError, PillSnapError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.interruption import look_again, must_wait
from pillsnap.core.passwords import STAMPED, WithoutPasswords
from pillsnap.tuning.storage import open_storage
from pillsnap.tuning.study import ERROR, SURPLUS, WORKER, counted, load_study, on_stale, over, try_again

_log = logging.getLogger(__name__)
STOPPED = 75
"""Exit status: ended because it was told to; its trial will be tried again."""
WRONG = 2
"""Exit status: the experiment is wrong; no other trial would do better."""


_LAST_WORDS_S = 60.0
_STORES = ("sqlalchemy", "optuna.storages", "psycopg", "mlflow")


class Job(Protocol):
    """What a trial does; must travel to another process (pickle)."""

    def __call__(self, trial: optuna.Trial, alive: Callable[[], None]) -> float:
        """Value of the objective. ``alive`` is to be called whenever something was achieved."""


@dataclass(frozen=True)
class Order:
    """What a worker is to do."""

    config: ExperimentConfig
    study: str
    storage_url: str
    trials: int
    """In all; a trial beyond that is given up."""
    worker: str
    """A name that no other process has."""
    stream: int
    """Its place among the workers of this machine."""
    job: Job


class _SurplusError(Exception):
    """Enough trials are there already."""


class _Stop:
    """SIGTERM ends a trial, but not the asking for it or the telling of its end: these are short.

    Nor is a call of a database cut in two: the connection would keep its lock, and whoever tells the trial's end would
    wait for it.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._within = False

    def listen(self) -> None:
        """Become the handler of the signals of this process."""
        signal.signal(signal.SIGTERM, self)
        signal.signal(signal.SIGALRM, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The handler."""
        self._wanted = True
        if self._within and (_is_in_store(frame) or must_wait(frame)):
            look_again()
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not self._within:
            return
        self._within = False
        raise KeyboardInterrupt("SIGTERM")

    def __enter__(self) -> None:
        self._within = True
        if self._wanted:
            self._within = False
            raise KeyboardInterrupt("SIGTERM")

    def __exit__(self, *_: object) -> None:
        self._within = False

    def look(self) -> None:
        """Between trials: raises KeyboardInterrupt where it was told to stop."""
        if self._wanted:
            raise KeyboardInterrupt("SIGTERM")


def _is_in_store(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_STORES):
            return True
        frame = frame.f_back
    return False


def run_worker(order: Order, progress: Synchronized[float]) -> None:
    """Do one trial, or several. The entry point of the process; ends it with a status of its own.

    Args:
        order: what to do.
        progress: set to the time (`time.monotonic`) at which something was last achieved.
    """
    stop = _Stop()
    stop.listen()
    log = logging.StreamHandler()
    log.setFormatter(WithoutPasswords(*STAMPED))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    logging.getLogger("pillsnap").setLevel(logging.INFO)
    threading.Thread(target=_end_with_parent, daemon=True, name="parent-watch").start()

    def alive() -> None:
        progress.value = time.monotonic()

    try:
        do_trials(order, alive, stop)
        status = 0
    except KeyboardInterrupt:
        status = STOPPED
    except PillSnapError as error:
        _log.error("error: %s", error)
        status = WRONG if isinstance(error, ConfigError) else 1
    sys.exit(status)


def do_trials(order: Order, alive: Callable[[], None], stop: _Stop) -> None:
    """Do as many trials as one process may (``tuning.trials_per_process``), while there are any to do.

    Raises:
        ConfigError: as `do_one_trial`.
        KeyboardInterrupt: as `do_one_trial`.
    """
    for _ in range(order.config.tuning.trials_per_process):
        do_one_trial(order, alive, stop)
        stop.look()
        if not _is_more_to_do(order):
            return


def _is_more_to_do(order: Order) -> bool:
    storage = open_storage(order.storage_url, wait=True)
    try:
        trials = load_study(order.config, order.study, storage, stream=order.stream).get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()
    return len(counted(trials)) < order.trials or any(trial.state == TrialState.WAITING for trial in trials)


def do_one_trial(order: Order, alive: Callable[[], None], stop: AbstractContextManager[None]) -> None:
    """Ask for a trial, do it, tell its end.

    Args:
        order: what to do.
        alive: to be called whenever something was achieved.
        stop: entered around the trial; what may interrupt it.

    Raises:
        ConfigError: the database cannot be used, or the very first trial shows that the experiment is wrong.
        KeyboardInterrupt: it was told to stop; the trial waits to be tried again.
    """
    tuning = order.config.tuning
    storage = open_storage(order.storage_url, heartbeat_s=tuning.heartbeat_s, on_stale=on_stale(tuning), wait=True)
    study = load_study(order.config, order.study, storage, stream=order.stream)
    objective = _Objective(order, study, alive, stop)
    try:
        study.optimize(objective, n_trials=1, catch=(Exception,))
    except KeyboardInterrupt:
        trial = objective.find()
        if trial is not None and trial.state == TrialState.FAIL:
            _log.warning("%s", try_again(study, trial, "interrupted", tuning.retries, blamed=False))
        raise
    except (UpdateFinishedTrialError, ValueError):  # Optuna's, where a trial was ended by somebody else
        trial = objective.find()
        if trial is None or not trial.state.is_finished():
            raise
        _log.warning("trial %d was taken for lost and is done by another worker", trial.number)
    finally:
        storage.engine.dispose()
    if objective.wrong is not None:
        raise objective.wrong


class _Objective:
    """Keeps the notes on the trial, whatever it does."""

    def __init__(
        self, order: Order, study: optuna.Study, alive: Callable[[], None], stop: AbstractContextManager[None]
    ) -> None:
        self._order = order
        self._study = study
        self._alive = alive
        self._stop = stop
        self._number: int | None = None
        self.wrong: ConfigError | None = None

    def find(self) -> FrozenTrial | None:
        """The trial as it stands in the database."""
        if self._number is None:
            return None
        return next(trial for trial in self._study.get_trials(deepcopy=False) if trial.number == self._number)

    def __call__(self, trial: optuna.Trial) -> float:
        self._number = trial.number
        trial.set_user_attr(WORKER, self._order.worker)
        self._alive()
        before = [other for other in counted(self._study.get_trials(deepcopy=False)) if other.number < trial.number]
        if len(before) >= self._order.trials:  # workers that begin at once agree: the first are wanted
            trial.set_user_attr(SURPLUS, True)
            raise _SurplusError
        try:
            with self._stop:
                return self._order.job(trial, self._alive)
        except (optuna.TrialPruned, UpdateFinishedTrialError):
            raise
        except Exception as error:
            trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}"[:2000])
            _log.warning("trial %d failed: %s", trial.number, error, exc_info=not isinstance(error, PillSnapError))
            if isinstance(error, ConfigError) and not over(before):
                self.wrong = error
            raise


def _end_with_parent() -> None:
    """A supervisor that was killed cannot end its workers: they end themselves, and what they do is tried again."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_WORDS_S)
    os._exit(1)
