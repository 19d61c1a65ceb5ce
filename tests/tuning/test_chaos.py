"""Three workers, killed at random, while the database is restarted: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tuning.study import RETRY_OF, best_of, counted, lineage, over, result_of
from pillsnap.tuning.supervisor import Supervisor

pytestmark = pytest.mark.long
TRIALS = 10
EPOCHS = 6


def is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # killed, and not yet buried
        return False


@pytest.fixture
def config(tiny: ExperimentConfig) -> ExperimentConfig:
    settings = {"trials": TRIALS, "heartbeat_s": 2, "stalled_after_s": 90, "retries": 100}
    return tiny.with_overrides({f"tuning.{key}": value for key, value in settings.items()})


@contextmanager
def killing(supervisor: Supervisor, kills: list[int], limit: int) -> Iterator[None]:
    """Kill a worker now and then, wherever it is: beginning, in a trial, telling its end."""
    over_now = threading.Event()
    chance = random.Random(0)

    def kill() -> None:
        while len(kills) < limit and not over_now.wait(chance.uniform(0.5, 2.0)):
            workers = [child for child in psutil.Process().children() if is_worker(child)]
            if workers:
                victim = chance.choice(workers)
                victim.kill()
                kills.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over_now.set()
        thread.join()


def is_whole(study: optuna.Study, job: Any, config: ExperimentConfig) -> None:
    trials = study.get_trials()
    ended = over(trials)
    assert [trial.state for trial in ended] == [TrialState.COMPLETE] * TRIALS
    assert len(counted(trials)) == TRIALS
    assert TrialState.RUNNING not in {trial.state for trial in trials}
    assert TrialState.WAITING not in {trial.state for trial in trials}
    assert max(Counter(lineage(trial) for trial in ended).values()) == 1, "no trial counts twice"
    again = [trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs]
    assert len(again) == len(set(again)), "no trial is tried again by two"
    drawn = [trial.params["model.drop_rate"] for trial in ended]
    assert len(set(drawn)) == TRIALS
    for trial in ended:
        assert trial.value == pytest.approx(1 - abs(trial.params["model.drop_rate"] - 0.3))
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
    best, result = best_of(trials), result_of(study, config)
    assert best is not None
    assert result is not None
    assert result.best_value == best.value == study.best_value == max(trial.value for trial in ended)
    assert result.best_config.model.drop_rate == best.params["model.drop_rate"]


def test_workers_are_killed_at_random(
    supervise: Callable[..., Supervisor], config: ExperimentConfig, toy_job: Callable[..., Any]
) -> None:
    job, kills = toy_job(epochs=EPOCHS, epoch_s=0.2), []
    supervisor = supervise(config, job, workers=3)
    with killing(supervisor, kills, limit=8):
        assert supervisor.run() is True
    assert len(kills) >= 3
    is_whole(supervisor.study, job, config)


def test_workers_are_killed_and_the_database_is_restarted(
    supervise: Callable[..., Supervisor],
    config: ExperimentConfig,
    toy_job: Callable[..., Any],
    postgres: Any,
    postgres_url: str,
) -> None:
    job, kills = toy_job(epochs=EPOCHS, epoch_s=0.2), []
    supervisor = supervise(config, job, workers=3, storage_url=postgres_url)

    def restart() -> None:
        deadline = time.monotonic() + 30
        while len(job.log()) < EPOCHS and time.monotonic() < deadline:
            time.sleep(0.1)
        postgres.stop()
        time.sleep(3)
        postgres.start()

    restarting = threading.Thread(target=restart)
    restarting.start()
    with killing(supervisor, kills, limit=6):
        assert supervisor.run() is True
    restarting.join()
    assert len(kills) >= 2
    is_whole(supervisor.study, job, config)
