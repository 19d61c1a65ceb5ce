"""The supervisor: starts a process for each trial, ends those that hang, and notices those that were killed.

It schedules nothing: which trial is next, and whether there is one, the study's database says, so that several
supervisors (on several machines) may work at one study. Knows nothing of MLflow or trainings.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.interruption import deaf_children, is_new_wish
from pillsnap.tuning.storage import GRACE
from pillsnap.tuning.study import ERROR, WORKER, counted, give_up, over
from pillsnap.tuning.worker import WRONG, Order, run_worker

_log = logging.getLogger(__name__)
_THREADS = "OMP_NUM_THREADS"
_POLL_S = 0.5
STOP_S = 40.0
"""So long may a worker that was told to stop take: it saves its state, and closes its MLflow run."""
_STILLBORN_LIMIT = 21
_KILLED, _FAILED = 1, 7
"""What a worker that ended without a trial weighs; one that was killed may have had bad luck."""


@dataclass
class _Worker:
    name: str
    stream: int
    process: SpawnProcess
    progress: Any
    """Shared: time at which something was last achieved."""
    why: str = ""
    """Why it was killed by the supervisor."""


@dataclass
class Supervisor:
    """Works at a study until it is done, time is up, or somebody says stop."""

    study: optuna.Study
    order: Order
    """What each worker is to do; names and streams are filled in."""
    workers: int
    deadline: float | None
    """Of `time.monotonic`; None: none."""
    on_lost: Callable[[], None]
    """Called when a worker was killed, and at the end: its traces elsewhere are to be removed."""
    on_look: Callable[[list[FrozenTrial]], None] = lambda trials: None
    """Called with all trials now and then, and at the end."""
    _running: list[_Worker] = field(default_factory=list)
    _stillborn: int = 0
    _orphans: dict[int, float] = field(default_factory=dict)
    _next_check: float = 0.0

    def run(self) -> bool:
        """Work; True when the study is done, False when time is up (trials that were begun wait to be gone on with).

        Raises:
            ConfigError: the experiment is wrong.
            TrainingError: workers end before they begin.
            KeyboardInterrupt: as it came; no worker and no running trial is left behind.
        """
        with _hearing() as told:
            try:
                return self._work(told)
            finally:
                self._stop_all()
                self.on_lost()
                self.on_look(self.study.get_trials(deepcopy=False))

    def _work(self, told: list[str]) -> bool:
        while True:
            if told:
                raise KeyboardInterrupt(told[0])
            lost = self._reap()
            self._end_hanging()
            self._give_up_forsaken()
            if lost:
                self.on_lost()
            trials = self.study.get_trials(deepcopy=False)
            self.on_look(trials)
            if not self._running and len(over(trials)) >= self.order.trials:
                return True
            if self.deadline is not None and time.monotonic() >= self.deadline:
                _log.info("time is up; what was begun waits for the next start")
                return False
            self._start(trials)
            sentinels = [worker.process.sentinel for worker in self._running]
            if sentinels:
                multiprocessing.connection.wait(sentinels, timeout=_POLL_S)
            else:
                time.sleep(_POLL_S)

    def _start(self, trials: list[FrozenTrial]) -> None:
        """As many workers as there are trials to do, those that another supervisor does left out."""
        begun = {trial.user_attrs.get(WORKER) for trial in trials}
        asking = sum(worker.name not in begun for worker in self._running)
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        room = waiting + max(self.order.trials - len(counted(trials)), 0) - asking
        while room > 0 and len(self._running) < self.workers:
            self._start_one()
            room -= 1

    def _start_one(self) -> None:
        taken = {worker.stream for worker in self._running}
        stream = next(number for number in range(self.workers) if number not in taken)
        name = f"{socket.gethostname()}:{stream}:{uuid.uuid4().hex[:12]}"
        context = multiprocessing.get_context("spawn")  # a fork would take threads and locks of this process along
        # without a lock: a worker that is killed would keep it
        progress = context.Value("d", time.monotonic(), lock=False)
        order = dataclasses.replace(self.order, worker=name, stream=stream)
        process = context.Process(target=run_worker, args=(order, progress), name=f"trial-worker-{stream}")
        with _sharing_cores(self.workers), deaf_children():
            process.start()
        self._running.append(_Worker(name, stream, process, progress))

    def _reap(self) -> bool:
        """Look after the workers that ended; True where a trial was left behind."""
        ended = [worker for worker in self._running if worker.process.exitcode is not None]
        if not ended:
            return False
        self._running = [worker for worker in self._running if worker not in ended]
        trials = {trial.user_attrs.get(WORKER): trial for trial in self.study.get_trials(deepcopy=False)}
        left = [self._look_after(worker, trials.get(worker.name)) for worker in ended]
        return any(left)

    def _look_after(self, worker: _Worker, trial: FrozenTrial | None) -> bool:
        status = worker.process.exitcode
        worker.process.join()
        worker.process.close()
        if status == WRONG:
            raise ConfigError(_said(trial) or "a worker says that the experiment is wrong; its words stand above")
        if trial is None:
            self._count_stillborn(status)
            return False
        self._stillborn = 0
        if trial.state != TrialState.RUNNING:
            return False
        why = worker.why or _why(status)
        said = give_up(self.study, trial, why, self.order.config.tuning.retries, blamed=worker.why != _TOLD)
        _log.warning("%s", said)
        return True

    def _count_stillborn(self, status: int | None) -> None:
        if status == 0 or status is None:
            return
        self._stillborn += _KILLED if status < 0 else _FAILED
        if self._stillborn >= _STILLBORN_LIMIT:
            raise TrainingError(
                f"workers end before they begin a trial (the last one: {_why(status)}); what they say stands above"
            )

    def _end_hanging(self) -> None:
        limit_s = self.order.config.tuning.stalled_after_s
        for worker in self._running:
            silent_s = time.monotonic() - worker.progress.value
            if silent_s > limit_s and not worker.why:
                worker.why = f"it hung: nothing was achieved for {silent_s:.0f} s (tuning.stalled_after_s)"
                worker.process.kill()

    def _give_up_forsaken(self) -> None:
        """Trials of workers that no supervisor looks after: by their hearts, or because they have no worker at all."""
        now = time.monotonic()
        if now < self._next_check:
            return
        heartbeat_s = self.order.config.tuning.heartbeat_s
        self._next_check = now + heartbeat_s
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        unknown = [trial for trial in trials if WORKER not in trial.user_attrs]
        self._orphans = {trial.number: self._orphans.get(trial.number, now) for trial in unknown}
        for trial in unknown:
            if now - self._orphans[trial.number] > heartbeat_s * GRACE:
                tuning = self.order.config.tuning
                _log.warning("%s", give_up(self.study, trial, "its worker never began", tuning.retries, blamed=False))

    def _stop_all(self) -> None:
        for worker in self._running:
            worker.why = worker.why or _TOLD
            worker.process.terminate()
        until = time.monotonic() + STOP_S
        try:
            for worker in self._running:
                worker.process.join(max(until - time.monotonic(), 0))
        finally:
            for worker in self._running:
                if worker.process.exitcode is None:
                    worker.process.kill()
                    worker.process.join()
            self._reap()


@contextmanager
def _hearing() -> Iterator[list[str]]:
    """Names of the signals that came, of SIGINT and SIGTERM; the second interrupts, the next do what they did before.

    An exception in the middle of a database call would leave a lock that the workers wait for.
    """
    told: list[str] = []
    before: dict[int, Any] = {}

    def hear(signum: int, frame: FrameType | None) -> None:
        if not is_new_wish():
            return
        told.append(signal.Signals(signum).name)
        if len(told) > 1:
            restore()
            raise KeyboardInterrupt(told[-1])

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, hear)
    try:
        yield told
    finally:
        restore()


_TOLD = "it did not end when it was told to"


def _said(trial: FrozenTrial | None) -> str:
    text = "" if trial is None else str(trial.user_attrs.get(ERROR, ""))
    return text.partition(": ")[2] or text


def _why(status: int | None) -> str:
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    if status == -9:
        return "its process was killed; where nobody did that, memory ran out"
    return f"its process was ended by signal {-status}"


def worker_count(asked: int) -> int:
    """As asked, or one; more than there are cores do not make it faster. Raises ConfigError."""
    if asked < 1:
        raise ConfigError(f"--workers {asked}: one or more are needed")
    cores = os.cpu_count() or 1
    if asked > cores:
        _log.warning("%d workers on %d cores: they will wait for each other", asked, cores)
    return asked


@contextmanager
def _sharing_cores(workers: int) -> Iterator[None]:
    """What is started here has its share of the cores, unless the user has said how many threads it may have.

    With more threads than cores each waits for the others, and the trials take several times as long. By the
    environment, because PyTorch reads it when it is imported.
    """
    if _THREADS in os.environ:
        yield
        return
    os.environ[_THREADS] = str(max(1, usable_cores() // workers))
    try:
        yield
    finally:
        del os.environ[_THREADS]
