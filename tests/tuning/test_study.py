"""Which trials count, which are tried again, what is drawn, and a database that goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from pillsnap.core.errors import ConfigError, StoreError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tuning.storage import open_storage
from pillsnap.tuning.study import (
    ERROR,
    LAST,
    RETRIES,
    RETRY_OF,
    SURPLUS,
    WANTED,
    best_of,
    counted,
    draw,
    give_up,
    load_study,
    over,
    result_of,
    study_name,
    try_again,
)
from pillsnap.tuning.words import describe, describe_storage, fate, trials_table

Fresh = Callable[..., optuna.Study]
FLOAT = {"model.drop_rate": optuna.distributions.FloatDistribution(0, 1)}


def add(study: optuna.Study, state: TrialState, **notes: Any) -> None:
    complete = state == TrialState.COMPLETE
    study.add_trial(
        create_trial(
            state=state,
            value=0.5 if complete else None,
            params={"model.drop_rate": 0.25},
            distributions=FLOAT,
            user_attrs=notes,
            intermediate_values={1: 0.5},
        )
    )


def test_what_counts(fresh_study: Fresh, tiny: ExperimentConfig) -> None:
    study = fresh_study(tiny.with_overrides({"tuning.space": {}}))
    for state, notes in (
        (TrialState.COMPLETE, {}),
        (TrialState.PRUNED, {}),
        (TrialState.FAIL, {ERROR: "nan"}),
        (TrialState.FAIL, {}),  # lost, and tried again by the next
        (TrialState.COMPLETE, {RETRY_OF: 4}),
        (TrialState.FAIL, {}),  # lost for good: who would have had it tried again was killed too
        (TrialState.FAIL, {SURPLUS: True}),
        (TrialState.FAIL, {LAST: True}),
        (TrialState.RUNNING, {}),
    ):
        add(study, state, **notes)
    assert study.trials[0].state == TrialState.WAITING, "the file as it stands"
    assert [trial.number for trial in counted(study.trials)] == [0, 1, 2, 3, 5, 8, 9]
    assert [trial.number for trial in over(study.trials)] == [1, 2, 3, 5, 8]
    words = ["waiting", "complete", "pruned", "failed", "lost", "complete", "lost", "surplus", "failed", "running"]
    assert [fate(trial) for trial in study.trials] == words


def test_a_lost_trial_is_tried_again_so_often_and_by_one(fresh_study: Fresh, tiny: ExperimentConfig) -> None:
    study = fresh_study(tiny)
    trial = study.ask()
    trial.suggest_float("model.drop_rate", 0, 1)
    trial.report(0.4, 1)
    said = give_up(study, study.trials[0], "killed", retries=1)
    assert said == "trial 0 is lost (killed) and will be tried again"
    assert give_up(study, study.trials[0], "killed", retries=1) == "", "somebody else has ended it"
    assert "already" in try_again(study, study.trials[0], "interrupted", 1)
    assert len(study.trials) == 2

    again = study.ask()
    assert again.number == 1
    assert again.suggest_float("model.drop_rate", 0, 1) == trial.params["model.drop_rate"]
    assert study.trials[1].intermediate_values == {1: 0.4}
    assert again.user_attrs[RETRIES] == 1
    said = give_up(study, study.trials[1], "killed", retries=1)
    assert said == "trial 1 failed: killed; it was tried again 1 times"
    assert [fate(each) for each in study.trials] == ["lost", "failed"]
    assert study.trials[1].user_attrs[ERROR] == "killed; it was tried again 1 times"

    unlucky = study.ask()
    give_up(study, study.trials[unlucky.number], "stopped", retries=0, blamed=False)
    assert study.trials[-1].state == TrialState.WAITING, "it was not its fault"


def test_each_kind_is_drawn_within_its_range_and_the_file_comes_first(
    fresh_study: Fresh, tiny: ExperimentConfig
) -> None:
    space = {
        "training.base_lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "augmentation.blur.kernel": {"type": "int", "low": 3, "high": 7, "step": 2},
        "model.backbone": {"choices": ["resnet18", "resnet34"]},
        "training.mixed_precision": {"choices": [True, False]},
        "model.drop_rate": {"low": 0.4, "high": 0.5},
        "training.ema_decay": {"low": 0.9, "high": 0.99},
        "augmentation.strength": {"low": 0.0, "high": 2.0},
    }
    config = tiny.with_overrides({"tuning.space": space})
    study = fresh_study(config)
    # so many that each value of three is among them, whatever the seed, which is of the machine
    drawn = [draw(study.ask(), config.tuning) for _ in range(60)]
    first = drawn[0]
    assert (first["training.base_lr"], first["model.backbone"]) == (config.training.base_lr, "resnet18")
    assert first["augmentation.strength"] == 1
    assert 0.4 <= first["model.drop_rate"] <= 0.5, "the file's own 0.3 lies outside of the range"
    for values in drawn:
        assert all(config.tuning.space[key].holds(value) for key, value in values.items())
        config.with_drawn(values, "trial")
    assert {values["augmentation.blur.kernel"] for values in drawn} == {3, 5, 7}
    assert {values["training.mixed_precision"] for values in drawn} == {True, False}


@pytest.mark.parametrize(("sampler", "kind"), [("tpe", "TPESampler"), ("random", "RandomSampler")])
def test_workers_that_start_at_once_draw_differently_and_again_the_same(
    fresh_study: Fresh, tiny: ExperimentConfig, url: str, sampler: str, kind: str
) -> None:
    config = tiny.with_overrides({"tuning.sampler": sampler})
    study = fresh_study(config)
    add(study, TrialState.COMPLETE)

    def draws(stream: int, seed: int = 0) -> float:
        seeded = config.with_overrides({"seed": seed})
        loaded = load_study(seeded, "tiny-1", open_storage(url), stream=stream)
        assert type(loaded.sampler).__name__ == kind
        distribution = optuna.distributions.FloatDistribution(0, 1)
        return float(loaded.sampler.sample_independent(loaded, loaded.trials[-1], "x", distribution))

    assert draws(0) == draws(0)
    assert len({draws(0), draws(1), draws(2), draws(0, seed=1)}) == 4
    with pytest.raises(StoreError, match="the study nosuch is not in sqlite"):
        load_study(config, "nosuch", open_storage(url), stream=0)


def test_the_name_changes_with_what_matters(tiny: ExperimentConfig) -> None:
    name = study_name(tiny, "a" * 64)
    same = {"tuning.trials": 99, "tuning.retries": 9, "tuning.heartbeat_s": 9, "tuning.stalled_after_s": 9.0}
    assert study_name(tiny.with_overrides(same), "a" * 64) == name
    others = {"tuning.epochs": 2, "tuning.floors": {"val_top5": 0.5}, "seed": 1, "model.drop_rate": 0.1}
    names = {study_name(tiny.with_overrides({key: value}), "a" * 64) for key, value in others.items()}
    assert len(names | {name, study_name(tiny, "b" * 64)}) == 6


def test_the_best_keeps_the_floors_where_any_does(fresh_study: Fresh, tiny: ExperimentConfig) -> None:
    study = fresh_study(tiny.with_overrides({"tuning.space": {}}))
    assert result_of(study, tiny) is None
    for value, margin in ((0.9, 0.2), (0.5, -0.1), (0.6, 0.0), (0.95, 0.1)):
        trial = study.ask()
        trial.set_constraint("val_top5", margin)
        study.tell(trial, value)
    best = best_of(study.trials)
    assert best is not None
    assert (best.number, best.value) == (2, 0.6) == (study.best_trial.number, study.best_value)
    short = best_of([study.trials[0], study.trials[3]])
    assert short is not None
    assert short.value == 0.95, "none keeps them: the best of all"


def test_a_study_in_words(fresh_study: Fresh, tiny: ExperimentConfig, url: str) -> None:
    assert describe_storage(url).startswith("no study in sqlite")
    study = fresh_study(tiny)
    assert "no trial has come to its end yet" in describe(study)
    trial = study.ask()
    trial.suggest_float("model.drop_rate", 0, 1)
    trial.report(0.5, 3)
    trial.set_user_attr("worker", "night1:0:abc")
    add(study, TrialState.FAIL, error="TrainingError: the loss is nan | and more\nlines")
    add(study, TrialState.COMPLETE)
    text = describe_storage(url, "tiny-1")
    assert "2 trials are over: 1 complete, 0 pruned, 1 failed of themselves" in text
    assert "trial 0 on night1:0 for 0 min, epoch 3 done" in text
    assert "trial 1 failed: TrainingError: the loss is nan / and more" in text
    assert "best: trial 2, 0.5000" in text
    assert "model.drop_rate = 0.25" in text
    table = trials_table(study.trials).splitlines()
    assert {line.count("|") for line in table} == {table[0].count("|")}
    with pytest.raises(ConfigError, match=r"--study other: not in .*there are: tiny-1"):
        describe_storage(url, "other")


def test_a_worker_that_is_dead_is_told_from_one_that_lives(
    fresh_study: Fresh, tiny: ExperimentConfig, url: str
) -> None:
    study = fresh_study(tiny.with_overrides({"tuning.heartbeat_s": 30}))
    study.set_user_attr(WANTED, 3)
    assert study.metric_names == [tiny.tuning.objective]
    storage = open_storage(url, heartbeat_s=30)
    for number in (0, 1):
        storage.record_heartbeat(study.ask()._trial_id)
        _beat_ago(storage, number + 1, 29 + 30 * number)  # just before the next one; and almost two beats after
    text = describe_storage(url)
    assert "  0 of 3 trials are over" in text
    assert "  1 are running, 1 dead (no sign of life for 45 s), 0 wait" in text
    assert [line.endswith("DEAD, its trial is tried again where pillsnap tune runs") for line in text.splitlines()
            if line.startswith("    trial ")] == [False, True]  # fmt: skip
    assert "nobody is at work" not in text
    _beat_ago(storage, 1, 59)
    assert "nobody is at work now: the same pillsnap tune command again goes on" in describe_storage(url)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2, "status changes nothing"
    study.ask()  # and no beat: its process was killed at once
    assert "1 are running, 2 dead" in describe_storage(url)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET datetime_start = datetime(datetime_start, '-46 seconds')")
    assert "0 are running, 3 dead" in describe_storage(url)
    storage.engine.dispose()


def _beat_ago(storage: Any, trial_id: int, seconds: int) -> None:
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-{seconds} seconds') WHERE trial_id = {trial_id}"
        )


def test_a_database_that_goes_away_is_waited_for(tiny: ExperimentConfig, postgres: Any, postgres_url: str) -> None:
    storage = open_storage(postgres_url)
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    trial = study.ask()
    postgres.stop()
    threading.Timer(2.0, postgres.start).start()
    started = time.monotonic()
    trial.report(0.5, 1)  # refused connections, then a server that recovers
    assert time.monotonic() - started > 1
    study.tell(trial, 0.5)
    assert study.best_value == 0.5
    storage.engine.dispose()
