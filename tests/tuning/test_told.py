"""The log of a night, its file, and its description in MLflow, without a night."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState, create_trial

from pillsnap.cli.time_stamps import time_stamps
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.passwords import WithoutPasswords
from pillsnap.tuning.best_file import best_file
from pillsnap.tuning.records import StudyRecord
from pillsnap.tuning.study import BEST, ERROR, StudyResult
from pillsnap.tuning.told import StudyLog

RATE = {"model.drop_rate": optuna.distributions.FloatDistribution(0, 1)}


def trial(number: int, state: TrialState, value: float | None = None, **notes: Any) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value,
        params={"model.drop_rate": 0.25},
        distributions=RATE,
        user_attrs=notes,
        intermediate_values={1: 0.5, 2: value or 0.1},
    )
    made.number = number
    return made


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StudyLog]:
    """A log whose trials take ten minutes each."""

    def make(**options: Any) -> StudyLog:
        told = StudyLog(4, "val_top1", 10, options.get("deadline"), options.get("on_end", lambda trials: None))
        monkeypatch.setattr("pillsnap.tuning.told.time", SimpleNamespace(monotonic=lambda: told._started + 600))
        return told

    return make


def test_each_trial_is_told_once_with_all_that_matters(
    log: Callable[..., StudyLog], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pillsnap")
    ends: list[int] = []
    told = log(on_end=lambda trials: ends.append(len(trials)))
    before = trial(0, TrialState.COMPLETE, 0.5)
    told.begin([before])
    trials = [before, trial(1, TrialState.COMPLETE, 0.55, **{BEST: {"epoch": 7, "val_top1": 0.55}})]
    told.look([*trials, trial(2, TrialState.RUNNING)])
    assert caplog.messages == [
        "2 of 4: trial 1 complete, val_top1 55.0 % at epoch 7 of 10; model.drop_rate 0.25; best: trial 1, 55.0 %; "
        "20 min to go"
    ]
    told.look([*trials, trial(2, TrialState.RUNNING)])
    trials.append(trial(2, TrialState.PRUNED, 0.4))
    told.look(trials)
    trials.append(trial(3, TrialState.FAIL, **{ERROR: "TrainingError: the loss is nan"}))
    told.look(trials)
    assert [line.partition("; model")[0] for line in caplog.messages[1:]] == [
        "3 of 4: trial 2 pruned after epoch 2 of 10, val_top1 40.0 %",
        "4 of 4: trial 3 failed: TrainingError: the loss is nan",
    ]
    assert caplog.messages[-1].endswith("best: trial 1, 55.0 %"), "nothing is left to do"
    assert ends == [3, 3, 4]


def test_a_trial_that_is_lost_is_told_when_it_is_tried_again(
    log: Callable[..., StudyLog], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pillsnap")
    log().look([trial(0, TrialState.FAIL), trial(1, TrialState.WAITING)])
    assert not caplog.messages


def test_time_is_up_before_the_rest_is_done(log: Callable[..., StudyLog], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pillsnap")
    log(deadline=time.monotonic() + 660).look([trial(0, TrialState.PRUNED, 0.1)])
    assert "; none is complete yet; time is up in " in caplog.text


def test_the_best_file_says_where_it_is_from_and_loads(tiny: ExperimentConfig, tmp_path: Path) -> None:
    result = StudyResult(
        study="tiny-1", best_config=tiny, best_trial=3, best_value=0.55, best_params={"model.drop_rate": 0.25},
        keeps_floors=False, completed=4, pruned=2, failed=1, retried=0, epochs=9,
    )  # fmt: skip
    text = best_file(result, "pillsnap tune --storage postgresql://anna:geheim@host/db --out 'a\nb\x07\udcff'")
    (tmp_path / "best.yaml").write_text(text, encoding="utf-8")
    assert ExperimentConfig.load(tmp_path / "best.yaml") == tiny
    head = dict(line[2:].split(":", 1) for line in text.splitlines() if line.startswith("# ") and ":" in line)
    assert head["study"].strip() == "tiny-1: 4 trials complete, 2 pruned, 1 failed"
    assert head["trial"].startswith("   3, of 1 epochs")
    assert head["value"].strip() == "val_real_top1 0.5500; no trial keeps tuning.floors"
    assert head["varied"].strip() == "model.drop_rate 0.25"
    assert datetime.datetime.fromisoformat(head["date"].strip()).tzinfo
    assert head["command"].strip() == "pillsnap tune --storage postgresql://anna:***@host/db --out 'a?b??'"
    assert yaml.safe_load(text)["name"] == "tiny"


def test_the_description_is_cut_between_two_rows(tiny: ExperimentConfig) -> None:
    said: dict[str, str] = {}
    run: Any = SimpleNamespace(run_id="r", experiment_id="1", set_tags=said.update)
    study: Any = None
    record = StudyRecord(study, tiny, run, Path())
    record.describe([trial(0, TrialState.COMPLETE, 0.5)])
    text = said["mlflow.note.content"]
    assert text.startswith(
        "**Best: trial 0, val_real_top1 50.0 %** (model.drop_rate 0.25); 1 trials are over\n\n| trial |"
    )
    assert "artifact" not in text
    record.describe([trial(number, TrialState.COMPLETE, 0.5) for number in range(500)])
    text = said["mlflow.note.content"]
    assert 7000 < len(text) < 8000
    *_, last_row, empty, rest = text.splitlines()
    assert (last_row[-1], empty, rest) == ("|", "", "The other trials: artifact trials.md.")


def test_a_full_disk_costs_the_description_not_the_study(
    tiny: ExperimentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tags: dict[str, str]) -> None:
        raise OSError(28, "No space left on device")

    run: Any = SimpleNamespace(run_id="r", experiment_id="1", set_tags=full)
    study: Any = None
    StudyRecord(study, tiny, run, Path()).describe([trial(0, TrialState.COMPLETE, 0.5)])
    assert "is not up to date ([Errno 28] No space left on device)" in caplog.text


def test_the_time_stands_before_each_line_within_only() -> None:
    handler = logging.StreamHandler()
    before = WithoutPasswords("%(message)s")
    handler.setFormatter(before)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        record = logging.LogRecord("x", logging.INFO, "", 0, "trial 1 is over", (), None)
        with time_stamps():
            stamp, _, rest = handler.format(record).partition(" trial ")
            assert datetime.datetime.fromisoformat(stamp).date() <= datetime.datetime.now().date()
            assert rest == "1 is over"
        assert handler.formatter is before
    finally:
        root.removeHandler(handler)
