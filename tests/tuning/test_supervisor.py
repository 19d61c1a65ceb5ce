"""The supervisor and its workers' processes, with a job that does nothing but mischief."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tuning.study import ERROR, RETRIES, RETRY_OF, WORKER, best_of, counted, over
from pillsnap.tuning.supervisor import Supervisor
from pillsnap.tuning.words import fate

Supervise = Callable[..., Supervisor]
ToyJobs = Callable[..., Any]


@pytest.fixture
def config(tiny: ExperimentConfig) -> ExperimentConfig:
    return tiny.with_overrides({"tuning.trials": 4, "tuning.heartbeat_s": 5, "tuning.stalled_after_s": 60})


def fates(study: optuna.Study) -> list[str]:
    return [fate(trial) for trial in study.trials]


def test_each_trial_has_a_process_of_its_own(supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs) -> None:
    job = toy_job()
    supervisor = supervise(config, job)
    assert supervisor.run() is True
    trials = supervisor.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert trials[0].params == {"model.drop_rate": 0.3}, "the file as it stands is the first"
    assert len({trial.params["model.drop_rate"] for trial in trials}) == 4
    assert len({process for *_, process in job.log()}) == 4
    assert len({trial.user_attrs[WORKER] for trial in trials}) == 4
    assert os.getpid() not in {process for *_, process in job.log()}
    assert not multiprocessing.active_children()

    again = supervise(config.with_overrides({"tuning.trials": 5}), job)
    again.run()
    drawn = {trial.params["model.drop_rate"] for trial in again.study.trials}
    assert (len(again.study.trials), len(drawn)) == (5, 5), "started again, it adds what is missing, and draws anew"


def test_short_trials_may_share_a_process(supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs) -> None:
    job = toy_job(mischief={1: "nan", 3: "dies once"})
    supervisor = supervise(config.with_overrides({"tuning.trials": 6, "tuning.trials_per_process": 3}), job, workers=1)
    assert supervisor.run() is True
    assert fates(supervisor.study)[:3] == ["complete", "failed", "complete"], "a failed trial does not end its process"
    assert len(over(supervisor.study.trials)) == 6
    by_trial = {trial: process for trial, _, _, process in job.log()}
    assert by_trial[0] == by_trial[1] == by_trial[2] != by_trial[3]
    assert by_trial[4] == by_trial[5] == by_trial[6] != by_trial[3], "a process that was killed is replaced"
    assert len({trial.params["model.drop_rate"] for trial in counted(supervisor.study.trials)}) == 6


@pytest.mark.usefixtures("spawned")
def test_workers_share_the_cores(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    supervisor = supervise(config.with_overrides({"tuning.trials": 2}), toy_job(), workers=usable_cores())
    supervisor.run()
    assert {trial.user_attrs["threads"] for trial in supervisor.study.trials} == {"1"}

    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # who sets it has the last word
    again = supervise(config.with_overrides({"tuning.trials": 3}), toy_job(), workers=1)
    again.run()
    assert again.study.trials[-1].user_attrs["threads"] == "7"


def test_trials_that_fail_of_themselves_cost_no_more_than_themselves(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs
) -> None:
    supervisor = supervise(config, toy_job(mischief={0: "memory", 1: "nan", 2: "fault"}))
    assert supervisor.run() is True
    assert fates(supervisor.study) == ["failed"] * 3 + ["complete"]
    said = [trial.user_attrs.get(ERROR, "") for trial in supervisor.study.trials]
    assert said[:3] == [
        "MemoryError: no room for 8 GiB",
        "TrainingError: the loss is nan after 3 updates",
        "ZeroDivisionError: a fault in the code",
    ]


def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs, caplog: pytest.LogCaptureFixture
) -> None:
    job, calls = toy_job(mischief={1: "dies once"}), []
    supervisor = supervise(config, job, on_lost=lambda: calls.append(1))
    supervisor.run()
    trials = supervisor.study.trials
    [retry] = [trial for trial in trials if RETRY_OF in trial.user_attrs]
    assert sorted(fates(supervisor.study)) == ["complete"] * 4 + ["lost"]
    assert (retry.user_attrs[RETRY_OF], retry.user_attrs[RETRIES], retry.params) == (1, 1, trials[1].params)
    epochs = [(trial, epoch) for trial, lineage, epoch, _ in job.log() if lineage == 1]
    assert epochs == [(1, 1), (retry.number, 2), (retry.number, 3)], "nothing is trained twice"
    assert sorted(retry.intermediate_values) == [1, 2, 3], "and the pruner sees it whole"
    assert retry.number not in {trial.number for trial in trials if trial.number == 1}
    assert "trial 1 is lost (its process was killed; where nobody did that, memory ran out)" in caplog.text
    assert len(calls) == 2, "when it was lost, and at the end"


def test_a_trial_that_kills_its_process_each_time_fails_in_the_end(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs
) -> None:
    supervisor = supervise(config.with_overrides({"tuning.retries": 1}), toy_job(mischief={0: "dies"}))
    supervisor.run()
    assert sorted(fates(supervisor.study)) == ["complete"] * 3 + ["failed", "lost"]
    [failed] = [trial for trial in supervisor.study.trials if fate(trial) == "failed"]
    assert "its process was killed" in failed.user_attrs[ERROR]
    assert len(over(supervisor.study.trials)) == 4


def test_a_trial_that_hangs_is_ended_and_tried_again(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise(config.with_overrides({"tuning.stalled_after_s": 12.0}), toy_job(mischief={1: "hangs once"}))
    supervisor.run()
    assert sorted(fates(supervisor.study)) == ["complete"] * 4 + ["lost"]
    assert "it hung: nothing was achieved for" in caplog.text


def test_a_wrong_experiment_ends_the_study_at_once(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs
) -> None:
    supervisor = supervise(config, toy_job(mischief={0: "wrong"}), workers=1)
    with pytest.raises(ConfigError, match=r"^tuning asks for what is not measured$"):
        supervisor.run()
    assert len(supervisor.study.trials) == 1


def test_a_combination_that_is_wrong_later_in_the_night_fails_alone(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs
) -> None:
    supervisor = supervise(config, toy_job(mischief={2: "wrong"}), workers=1)
    assert supervisor.run() is True
    assert fates(supervisor.study) == ["complete", "complete", "failed", "complete"]


@pytest.mark.usefixtures("spawned")
def test_workers_that_cannot_even_begin(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs, capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor = supervise(config, toy_job(), workers=1)
    supervisor.order = dataclasses.replace(supervisor.order, study="another")
    with pytest.raises(TrainingError, match=r"workers end before they begin a trial .*status 1"):
        supervisor.run()
    said = capfd.readouterr().err
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d error: the study another is not in sqlite", said, re.MULTILINE)


@pytest.mark.parametrize("how", ["deadline", "interrupt"])
def test_stopped_it_leaves_nothing_running_and_goes_on_later(
    supervise: Supervise, config: ExperimentConfig, toy_job: ToyJobs, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = toy_job(epochs=2000, epoch_s=0.01)
    supervisor = supervise(config, job)

    def stop() -> None:
        end = time.monotonic() + 60
        while len({lineage for _, lineage, _, _ in job.log()}) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        if how == "deadline":
            supervisor.deadline = time.monotonic()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    if how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            supervisor.run()
    else:
        assert supervisor.run() is False
    states = [trial.state for trial in supervisor.study.trials]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.WAITING) == 2, "both wait to be gone on with"
    assert not multiprocessing.active_children()
    assert "did not end when it was told to" not in caplog.text
    reached = {lineage: epoch for _, lineage, epoch, _ in job.log()}
    assert len(reached) == 2

    quick = supervise(config, toy_job(epochs=max(reached.values()) + 1, epoch_s=0.0))
    assert quick.run() is True
    begun = [(lineage, epoch) for _, lineage, epoch, _ in job.log()]
    assert len(begun) == len(set(begun)), "no epoch is trained twice"
    assert len(over(quick.study.trials)) == len(counted(quick.study.trials)) == 4
    assert all(not trial.user_attrs.get(RETRIES) for trial in quick.study.trials), "it was not their fault"


@pytest.mark.usefixtures("spawned")
def test_workers_end_with_a_supervisor_that_was_killed(
    config: ExperimentConfig, toy_job: ToyJobs, supervise: Supervise, tmp_path: Path, url: str
) -> None:
    job = toy_job(mischief={0: "slow", 1: "slow"})
    supervisor = supervise(config, job)  # makes the tables
    context = multiprocessing.get_context("fork")
    process = context.Process(target=supervisor.run)
    process.start()
    deadline = time.monotonic() + 30
    while len(job.log()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.join()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    again = supervise(config, toy_job())
    assert [trial.state for trial in again.study.trials].count(TrialState.WAITING) == 2
    assert again.run() is True
    assert len(over(again.study.trials)) == 4
    best = best_of(again.study.trials)
    assert best is not None
    assert best.value == again.study.best_value
