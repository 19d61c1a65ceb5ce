"""The study: real trials on a tiny net, and everything else with an objective of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tracking.run import find_artifact
from pillsnap.training.batches import TrainingData
from pillsnap.tuning.study import StudyResult, run_study

Study = Callable[[ExperimentConfig], StudyResult]
PARENT = "mlflow.parentRunId"


@pytest.fixture
def run(training_data: TrainingData, tmp_path: Path, store: MlflowClient) -> Study:
    """Run a study in this test's folder, database and store."""

    def run_it(config: ExperimentConfig) -> StudyResult:
        url = f"sqlite:///{tmp_path}/optuna.db"
        return run_study(config, training_data, tmp_path / "tune", storage_url=url, experiment="exp")

    return run_it


def fake_fit(monkeypatch: pytest.MonkeyPatch, *trials: Any) -> list[tuple[int, int]]:
    """Each trial is a list of values of the objective by epoch, or an exception. Returns (trial, epoch) as seen."""
    seen: list[tuple[int, int]] = []
    rest = iter(enumerate(trials))

    def fit(config: ExperimentConfig, data: TrainingData, folder: Path, observer: Any) -> None:
        number, values = next(rest)
        (folder / "checkpoints").mkdir(parents=True)
        if isinstance(values, BaseException):
            raise values
        for epoch, value in enumerate(values, start=1):
            seen.append((number, epoch))
            observer.on_epoch(epoch, {"val_real_top1": value, "val_top1": value})

    monkeypatch.setattr("pillsnap.tuning.study.fit", fit)
    return seen


def runs_of(store: MlflowClient) -> tuple[list[Run], list[Run]]:
    """Parents and nested runs, the oldest first."""
    found = store.get_experiment_by_name("exp")
    assert found is not None
    runs = store.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])
    parents = [run for run in runs if PARENT not in run.data.tags]
    nested = sorted(
        (run for run in runs if PARENT in run.data.tags), key=lambda run: int(run.data.tags["optuna.trial"])
    )
    return parents, nested


def trials_of(tmp_path: Path) -> list[optuna.trial.FrozenTrial]:
    [summary] = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/optuna.db")
    return optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{tmp_path}/optuna.db").trials


def test_a_study_of_three_trials(run: Study, tiny: ExperimentConfig, tmp_path: Path, store: MlflowClient) -> None:
    result = run(tiny)
    assert result.completed + result.pruned == 3
    assert result.failed == 0
    assert 0 <= result.best_value <= 1

    flat = tiny.flat()
    first = trials_of(tmp_path)[0].params
    assert first == {key: flat[key] for key in tiny.tuning.space}, "the first trial is the file as it stands"

    best = ExperimentConfig.load(tmp_path / "tune" / "best.yaml")
    assert best == result.best_config
    assert {key: best.flat()[key] for key in tiny.tuning.space} == result.best_params
    assert best.training.epochs == tiny.training.epochs, "a trial is short, the training that follows is not"
    assert not list((tmp_path / "tune").glob("trial-*")), "the trials' checkpoints are deleted"

    [parent], nested = runs_of(store)
    assert (parent.info.run_name, parent.info.status) == ("tune tiny", "FINISHED")
    assert parent.data.tags["pillsnap.kind"] == "study"
    assert parent.data.metrics["best_value"] == pytest.approx(result.best_value)
    assert parent.inputs.dataset_inputs
    assert [child.data.tags[PARENT] for child in nested] == [parent.info.run_id] * 3
    assert {child.info.status for child in nested} == {"FINISHED"}
    assert nested[0].data.params["cfg.training.epochs"] == "1"
    assert "val_real_top1" in nested[0].data.metrics
    assert find_artifact(parent.info.run_id, "best.yaml", tmp_path).read_text() == best.to_yaml()
    assert find_artifact(parent.info.run_id, "trials.md", tmp_path).read_text().count("\n| ") >= 3


def test_called_again_it_adds_only_what_is_missing(
    run: Study, tiny: ExperimentConfig, tmp_path: Path, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_fit(monkeypatch, [0.1], [0.2], [0.3])
    first = run(tiny)
    fake_fit(monkeypatch)  # a fourth trial would be one too many
    again = run(tiny)
    assert again == first
    assert len(runs_of(store)[1]) == 3
    fake_fit(monkeypatch, [0.9], [0.8])
    more = run(tiny.with_overrides({"tuning.trials": 5}))
    assert (more.completed, more.best_value) == (5, 0.9)
    drawn = [tuple(trial.params.values()) for trial in trials_of(tmp_path)]
    assert len(set(drawn)) == 5, "a study that goes on draws new values, not the former ones once more"


def test_another_experiment_is_another_study(
    run: Study, tiny: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tiny.with_overrides({"tuning.trials": 1})
    fake_fit(monkeypatch, [0.1])
    assert run(one).best_value == 0.1
    fake_fit(monkeypatch, [0.3])
    assert run(one.with_overrides({"training.weight_decay": 0.01})).best_value == 0.3


@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_hopeless_trials_are_cut_off(
    run: Study, tiny: ExperimentConfig, store: MlflowClient, monkeypatch: pytest.MonkeyPatch, warmup_epochs: int
) -> None:
    seen = fake_fit(monkeypatch, [0.5, 0.6, 0.7], [0.1, 0.1, 0.1], [0.8, 0.9, 0.9])
    result = run(tiny.with_overrides({"tuning.epochs": 3, "tuning.pruning_warmup_epochs": warmup_epochs}))
    assert (result.completed, result.pruned, result.best_value) == (2, 1, 0.9)
    assert [epoch for trial, epoch in seen if trial == 1] == list(range(1, warmup_epochs + 2))
    [parent], nested = runs_of(store)
    assert [child.data.tags["optuna.state"] for child in nested] == ["complete", "pruned", "complete"]
    assert {child.info.status for child in (parent, *nested)} == {"FINISHED"}


def test_a_trial_whose_loss_is_no_number(
    run: Study,
    tiny: ExperimentConfig,
    store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_fit(monkeypatch, [0.4], TrainingError("the loss is nan after 3 updates"), [0.5])
    result = run(tiny)
    assert (result.completed, result.failed, result.best_value) == (2, 1, 0.5)
    assert "trial 1 failed: the loss is nan after 3 updates" in caplog.text
    assert "Traceback" not in caplog.text
    [parent], nested = runs_of(store)
    assert [child.info.status for child in nested] == ["FINISHED", "FAILED", "FINISHED"]
    assert "loss is nan" in nested[1].data.tags["ended_because"]
    assert parent.info.status == "FINISHED"


def test_a_real_trial_that_explodes(
    run: Study, tiny: ExperimentConfig, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real trainer: a learning rate beyond all reason."""
    huge = {"low": 1e20, "high": 1e30, "log": True}
    config = tiny.with_overrides(
        {"tuning.trials": 2, "tuning.space": {"training.base_lr": huge}, "training.gradient_clip": None}
    )
    with pytest.raises(TrainingError, match="no trial of study tiny-"):
        run(config)
    [parent], nested = runs_of(store)
    assert [child.info.status for child in nested] == ["FAILED", "FAILED"]
    assert parent.info.status == "FAILED"


def test_an_interrupted_study_leaves_nothing_running_and_goes_on(
    run: Study, tiny: ExperimentConfig, tmp_path: Path, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_fit(monkeypatch, [0.4], KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(tiny)
    [parent], nested = runs_of(store)
    assert parent.info.status == "KILLED"
    assert [child.info.status for child in nested] == ["FINISHED", "KILLED"]
    assert not list((tmp_path / "tune").glob("trial-*"))
    fake_fit(monkeypatch, [0.6], [0.5])
    result = run(tiny)
    assert (result.completed, result.best_value) == (3, 0.6)
    states = [trial.state.name for trial in trials_of(tmp_path)]
    assert "RUNNING" not in states
    assert states.count("COMPLETE") == 3


def test_an_objective_that_is_not_measured(
    run: Study, tiny: ExperimentConfig, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(config: ExperimentConfig, data: TrainingData, folder: Path, observer: Any) -> None:
        observer.on_epoch(1, {"val_top1": 0.5})

    monkeypatch.setattr("pillsnap.tuning.study.fit", fit)
    with pytest.raises(ConfigError, match="set it to val_top1"):
        run(tiny)
    [parent], nested = runs_of(store)
    assert {child.info.status for child in (parent, *nested)} == {"FAILED"}


def test_a_value_that_is_switched_off_in_the_file_may_be_searched(
    run: Study, tiny: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"training.gradient_clip": {"low": 0.5, "high": 2.0}, "model.drop_rate": {"low": 0.4, "high": 0.5}}
    config = tiny.with_overrides({"training.gradient_clip": None, "tuning.trials": 1, "tuning.space": space})
    fake_fit(monkeypatch, [0.4])
    run(config)
    drawn = trials_of(tmp_path)[0].params
    assert 0.5 <= drawn["training.gradient_clip"] <= 2
    assert 0.4 <= drawn["model.drop_rate"] <= 0.5, "the file's own 0.3 lies outside of the range"


@pytest.mark.parametrize("key", ["training.base_rl", "training", "model.backbone", "model.pretrained"])
def test_a_search_space_of_what_is_no_number_of_the_file(tiny: ExperimentConfig, key: str) -> None:
    with pytest.raises(ConfigError, match=f"tuning.space: '{key}' (is not a number|cannot be varied)"):
        tiny.with_overrides({"tuning.space": {key: {"low": 0.1, "high": 1.0}}})


@pytest.mark.parametrize("url", ["nonsense", "nosuch://anna:geheim@host/db", "sqlite:////proc/none/optuna.db"])
def test_a_storage_that_cannot_be_used(
    tiny: ExperimentConfig, training_data: TrainingData, tmp_path: Path, store: MlflowClient, url: str
) -> None:
    with pytest.raises(ConfigError, match=r"storage .* cannot be used") as caught:
        run_study(tiny, training_data, tmp_path, storage_url=url, experiment="exp")
    assert "geheim" not in str(caught.value)
    assert store.get_experiment_by_name("exp") is None, "no run was begun"
