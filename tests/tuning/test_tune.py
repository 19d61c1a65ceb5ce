"""A whole study: its parent run, its pictures, its best file, and what is left when it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tracking.fetching import find_artifact
from pillsnap.training.batches import TrainingData
from pillsnap.tuning.study import StudyResult
from pillsnap.tuning.tune import run_study
from pillsnap.tuning.words import describe_storage

Study = Callable[..., StudyResult]
PARENT = "mlflow.parentRunId"
PICTURES = {"history", "importances", "parallel_coordinates", "slices", "intermediate_values"}


@pytest.fixture
def run(training_data: TrainingData, tmp_path: Path, store: MlflowClient, url: str) -> Study:
    """Run a study in this test's folder, database and store."""

    def run_it(config: ExperimentConfig, **options: Any) -> StudyResult:
        folder = tmp_path / "tune"
        folder.mkdir(exist_ok=True)
        return run_study(config, training_data, folder, storage_url=url, experiment="exp", **options)

    return run_it


def runs_of(store: MlflowClient) -> tuple[list[Run], list[Run]]:
    """Parents and nested runs, the oldest first."""
    found = store.get_experiment_by_name("exp")
    assert found is not None
    runs = store.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in runs if PARENT not in run.data.tags], [run for run in runs if PARENT in run.data.tags]


def test_a_study_of_real_trainings(run: Study, tiny: ExperimentConfig, tmp_path: Path, store: MlflowClient) -> None:
    """Two workers, two trials of the real trainer; started again for one more, it goes on in the same run."""
    result = run(tiny.with_overrides({"tuning.pruning": False}), workers=2, trials=2)
    assert (result.completed, result.pruned, result.failed) == (2, 0, 0)
    [parent], nested = runs_of(store)
    assert (parent.info.run_name, parent.info.status) == ("tune resnet18 32px · 1 epoch · seed 0 · tiny", "FINISHED")
    assert parent.data.tags["pillsnap.kind"] == "study"
    assert parent.data.metrics["objective"] == pytest.approx(result.best_value)
    assert parent.inputs.dataset_inputs
    described = parent.data.tags["mlflow.note.content"]
    assert described.startswith(f"**Best: trial {result.best_trial}, val_real_top1 ")
    assert described.count("\n| ") == 3
    assert [child.data.tags[PARENT] for child in nested] == [parent.info.run_id] * 2
    assert {child.info.status for child in nested} == {"FINISHED"}
    assert {child.data.tags["optuna.state"] for child in nested} == {"complete"}

    best = ExperimentConfig.load(tmp_path / "tune" / "best.yaml")
    assert best == result.best_config
    assert {key: best.flat()[key] for key in tiny.tuning.space} == result.best_params
    assert best.training.epochs == tiny.training.epochs, "a trial is short, the training that follows is not"
    assert find_artifact(parent.info.run_id, "best.yaml", tmp_path).read_text().endswith(best.to_yaml())
    assert find_artifact(parent.info.run_id, "trials.md", tmp_path).read_text().count("\n| ") == 2
    assert not list((tmp_path / "tune").glob("*/trial-*"))

    again = run(tiny.with_overrides({"tuning.pruning": False}), trials=3)
    assert again.completed == 3
    [same], nested = runs_of(store)
    assert (same.info.run_id, same.info.status, len(nested)) == (parent.info.run_id, "FINISHED", 3)
    assert same.data.metrics["trials_complete"] == 3


def test_the_pictures(run: Study, tiny: ExperimentConfig, store: MlflowClient, toy_job: Any, tmp_path: Path) -> None:
    result = run(tiny, job=toy_job(epochs=2, epoch_s=0.0))
    [parent], _ = runs_of(store)
    found = {entry.path for entry in store.list_artifacts(parent.info.run_id, "pictures")}
    assert found == {f"pictures/{name}.png" for name in PICTURES}
    for name in PICTURES:
        picture = cv2.imread(str(tmp_path / "tune" / "pictures" / f"{name}.png"))
        assert picture is not None
        assert min(picture.shape[:2]) > 200
        assert np.unique(picture).size > 20, "something is drawn"
    assert result.epochs == 6


def test_killed_trials_leave_no_run_as_running(
    run: Study, tiny: ExperimentConfig, store: MlflowClient, toy_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nested run of a trial whose process was killed is ended and marked; the trial that tries again has its own.

    The toy opens no run: here one is opened for it, as its process would have left it.
    """
    from pillsnap.tuning import supervisor

    look_after = supervisor.Supervisor._look_after

    def open_first(self: Any, worker: Any, trial: Any) -> bool:
        [parent], _ = runs_of(store)
        if worker.process.exitcode == -9:
            tags = {PARENT: parent.info.run_id}
            store.create_run(parent.info.experiment_id, run_name=f"trial {trial.number}", tags=tags)
        return look_after(self, worker, trial)

    monkeypatch.setattr(supervisor.Supervisor, "_look_after", open_first)
    result = run(tiny, job=toy_job(mischief={1: "dies once"}))
    assert (result.completed, result.retried) == (3, 1)
    _, nested = runs_of(store)
    marked = [(child.info.run_name, child.info.status, child.data.tags["optuna.state"]) for child in nested]
    assert ("trial 1", "KILLED", "lost") in marked
    afterwards = [child for child in nested if child.data.tags.get("pillsnap.recorded") == "afterwards"]
    assert len(afterwards) == 3, "trials that ran without MLflow are recorded in the end"
    assert {child.data.tags["optuna.state"] for child in afterwards} == {"complete"}
    assert {child.info.status for child in nested} == {"FINISHED", "KILLED"}


def test_time_is_up_and_the_study_goes_on(
    run: Study, tiny: ExperimentConfig, store: MlflowClient, toy_job: Any
) -> None:
    slow = toy_job(epochs=3, epoch_s=0.01, mischief={1: "slow"})
    first = run(tiny, job=slow, deadline=time.monotonic() + 20)
    assert first.completed == 1
    second = run(tiny, job=toy_job())
    assert (second.completed, second.retried) == (3, 1)
    parents, _ = runs_of(store)
    assert [parent.info.status for parent in parents] == ["FINISHED"]


def test_no_trial_came_to_an_end(
    run: Study, tiny: ExperimentConfig, store: MlflowClient, toy_job: Any, url: str
) -> None:
    with pytest.raises(TrainingError, match="no trial of study tiny-"):
        run(tiny, job=toy_job(mischief=dict.fromkeys(range(3), "nan")), workers=2)
    [parent], _ = runs_of(store)
    assert parent.info.status == "FAILED"
    described = parent.data.tags["mlflow.note.content"]
    assert described.startswith("no trial is complete yet; 3 trials are over\n\n| trial |"), "said as they end"
    assert "  3 of 3 trials are over: 0 complete, 0 pruned, 3 failed" in describe_storage(url)


def test_another_experiment_is_another_study(run: Study, tiny: ExperimentConfig, toy_job: Any) -> None:
    one = tiny.with_overrides({"tuning.trials": 1})
    job = toy_job(epochs=1, epoch_s=0.0)
    first = run(one, job=job)
    assert run(one.with_overrides({"tuning.retries": 7, "tuning.heartbeat_s": 3}), job=job).study == first.study
    assert run(one.with_overrides({"training.weight_decay": 0.01}), job=job).study != first.study


@pytest.mark.parametrize("url", ["nonsense", "nosuch://anna:geheim@host/db", "sqlite:////proc/none/optuna.db"])
def test_a_storage_that_cannot_be_used(
    tiny: ExperimentConfig, training_data: TrainingData, tmp_path: Path, store: MlflowClient, url: str
) -> None:
    with pytest.raises(ConfigError, match=r"storage .* cannot be used") as caught:
        run_study(tiny, training_data, tmp_path, storage_url=url, experiment="exp")
    assert "geheim" not in str(caught.value)
    assert store.get_experiment_by_name("exp") is None, "no run was begun"


def test_a_search_that_reaches_what_is_not_allowed(run: Study, tiny: ExperimentConfig) -> None:
    space = {"model.drop_rate": {"low": 0.0, "high": 1.5}}
    with pytest.raises(ConfigError, match=r"model.drop_rate=1.5"):
        run(tiny.with_overrides({"tuning.space": space}))
    with pytest.raises(ConfigError, match="--workers 0"):
        run(tiny, workers=0)
