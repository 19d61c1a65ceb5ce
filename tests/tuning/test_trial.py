"""One trial: what it reports, where it is cut off, its MLflow run, and how it goes on after it was lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from pillsnap.core.errors import ConfigError, StoreError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tracking.fetching import find_artifact
from pillsnap.tracking.study import RunRef, study_run
from pillsnap.training.batches import TrainingData
from pillsnap.tuning.storage import open_storage
from pillsnap.tuning.study import BEST, ERROR, LINEAGE, RUN_ID, give_up, open_study
from pillsnap.tuning.trial import TrialJob, open_data, trial_config
from pillsnap.tuning.words import fate

Runs = Callable[..., optuna.Study]


class FakeFit:
    """Each call is a list of the objective by epoch (or of whole metrics), or an exception; seen: (call, epoch)."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.seen: list[tuple[int, int]] = []
        self.configs: list[ExperimentConfig] = []
        self.folders: list[Path] = []

    def __call__(self, config: ExperimentConfig, data: TrainingData, folder: Path, observer: Any) -> None:
        number = len(self.configs)
        self.configs.append(config)
        self.folders.append(folder)
        start = 1
        if folder.exists():
            start = int((folder / "last.pt").read_text()) + 1
            observer.on_resume(start - 1, 10)
        folder.mkdir(parents=True, exist_ok=True)
        for epoch, value in enumerate(self.calls[number], start=1):
            if isinstance(value, BaseException):
                raise value
            if epoch < start:
                continue
            self.seen.append((number, epoch))
            metrics = value if isinstance(value, dict) else {"val_real_top1": value, "val_top1": value, "val_top5": 1.0}
            observer.on_step(epoch, {"step_loss": 1.0})
            observer.on_epoch(epoch, metrics)
            (folder / "last.pt").write_text(str(epoch))


@pytest.fixture
def fake_fit(monkeypatch: pytest.MonkeyPatch) -> FakeFit:
    fake = FakeFit()
    monkeypatch.setattr("pillsnap.tuning.trial.fit", fake)
    return fake


@pytest.fixture
def run(
    training_data: TrainingData, tmp_path: Path, url: str, store: MlflowClient, one_trial: Callable[..., None]
) -> Runs:
    """``run(config, 3)``: a parent run and three trials in this process."""

    def run_it(config: ExperimentConfig, trials: int) -> optuna.Study:
        study = open_study(config, "tiny-1", open_storage(url))
        with study_run("tune tiny", experiment="exp", former=None) as parent:
            job = TrialJob(
                config,
                training_data.manifest.root,
                training_data.cache.folder.parent,
                tmp_path / "trials",
                RunRef(parent.run_id, parent.experiment_id),
            )
            for _ in range(trials):
                one_trial(config, job)
        return study

    return run_it


def nested(store: MlflowClient) -> list[Run]:
    found = store.get_experiment_by_name("exp")
    assert found is not None
    runs = store.search_runs([found.experiment_id], "tags.`pillsnap.kind` = 'trial'")
    return sorted(runs, key=lambda run: int(run.data.tags["optuna.trial"]))


def test_a_real_trial(run: Runs, tiny: ExperimentConfig, store: MlflowClient, tmp_path: Path) -> None:
    study = run(tiny, 1)
    [trial] = study.trials
    assert trial.state == TrialState.COMPLETE
    flat = tiny.flat()
    assert trial.params == {key: flat[key] for key in tiny.tuning.space}
    [child] = nested(store)
    assert (child.info.status, child.data.tags["optuna.state"]) == ("FINISHED", "complete")
    assert child.data.params == {key: str(value) for key, value in trial.params.items()}, "what differs, and no more"
    [experiment] = [entry.path for entry in store.list_artifacts(child.info.run_id)]
    assert ExperimentConfig.load(find_artifact(child.info.run_id, experiment, tmp_path)).training.epochs == 1
    assert child.data.metrics["val/real_top1"] == pytest.approx(trial.value)
    assert child.data.metrics["objective"] == pytest.approx(trial.value)
    assert child.data.metrics["best_epoch"] == 1
    assert child.info.run_id == trial.user_attrs[RUN_ID]
    assert not list((tmp_path / "trials").glob("trial-*")), "the checkpoints are deleted"


@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_hopeless_trials_are_cut_off(
    run: Runs, tiny: ExperimentConfig, store: MlflowClient, fake_fit: FakeFit, warmup_epochs: int
) -> None:
    fake_fit.calls = [[0.5, 0.6, 0.7], [0.1, 0.1, 0.1], [0.8, 0.9, 0.8]]
    study = run(tiny.with_overrides({"tuning.epochs": 3, "tuning.pruning_warmup_epochs": warmup_epochs}), 3)
    assert [fate(trial) for trial in study.trials] == ["complete", "pruned", "complete"]
    assert [trial.value for trial in study.trials][::2] == [0.7, 0.9]
    assert [epoch for call, epoch in fake_fit.seen if call == 1] == list(range(1, warmup_epochs + 2))
    assert [child.data.tags["optuna.state"] for child in nested(store)] == ["complete", "pruned", "complete"]
    assert {child.info.status for child in nested(store)} == {"FINISHED"}
    assert [child.data.metrics["objective"] for child in nested(store)] == [0.7, 0.1, 0.9], "of the pruned one too"


def test_patience_and_no_pruning_at_all(run: Runs, tiny: ExperimentConfig, fake_fit: FakeFit) -> None:
    fake_fit.calls = [[0.9] * 4, [0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.1, 0.1]]
    study = run(tiny.with_overrides({"tuning.epochs": 4, "tuning.pruning_patience_epochs": 1}), 3)
    assert [fate(trial) for trial in study.trials] == ["complete", "complete", "pruned"], "what still grows may go on"
    assert [epoch for call, epoch in fake_fit.seen if call == 2] == [1, 2, 3]


def test_without_pruning(run: Runs, tiny: ExperimentConfig, fake_fit: FakeFit) -> None:
    fake_fit.calls = [[0.9] * 3, [0.1] * 3]
    study = run(tiny.with_overrides({"tuning.epochs": 3, "tuning.pruning": False}), 2)
    assert [fate(trial) for trial in study.trials] == ["complete", "complete"]


def test_floors_are_constraints_of_the_best_epoch(run: Runs, tiny: ExperimentConfig, fake_fit: FakeFit) -> None:
    def at(real: float, top5: float) -> dict[str, float]:
        return {"val_real_top1": real, "val_top1": real, "val_top5": top5}

    fake_fit.calls = [[at(0.9, 0.5), at(0.6, 0.8)], [at(0.8, 0.4), at(0.95, 0.6)]]
    config = tiny.with_overrides({"tuning.epochs": 2, "tuning.floors": {"val_top5": 0.75}, "tuning.pruning": False})
    study = run(config, 2)
    first, second = study.trials
    assert (first.value, first.user_attrs[BEST]["epoch"]) == (0.6, 2), "an epoch that keeps the floors goes first"
    assert first.constraints["val_top5"] == pytest.approx(-0.05)
    assert (second.value, second.constraints["val_top5"]) == (0.95, pytest.approx(0.15))
    assert study.best_trial.number == 0, "Optuna itself knows that the other may not be the best"


@pytest.mark.parametrize(
    "error", [TrainingError("the loss is nan"), TrainingError("out of memory (8 GiB): a smaller model or image fits")]
)
def test_a_trial_that_fails(
    run: Runs, tiny: ExperimentConfig, store: MlflowClient, fake_fit: FakeFit, error: Exception, tmp_path: Path
) -> None:
    fake_fit.calls = [[0.5], [error], [0.6]]
    study = run(tiny, 3)
    assert [fate(trial) for trial in study.trials] == ["complete", "failed", "complete"]
    expected = str(error)
    assert expected in study.trials[1].user_attrs[ERROR]
    failed = nested(store)[1]
    assert (failed.info.status, failed.data.tags["optuna.state"]) == ("FAILED", "failed")
    assert expected in failed.data.tags["ended_because"]
    assert not list((tmp_path / "trials").glob("trial-*"))


def test_an_interrupted_trial_goes_on_with_its_checkpoint(
    run: Runs, tiny: ExperimentConfig, store: MlflowClient, fake_fit: FakeFit
) -> None:
    fake_fit.calls = [[0.7, 0.5, KeyboardInterrupt("SIGTERM")], [0.7, 0.5, 0.4]]
    config = tiny.with_overrides({"tuning.epochs": 3, "tuning.pruning": False})
    with pytest.raises(KeyboardInterrupt):
        run(config, 1)
    [stopped] = nested(store)
    assert (stopped.info.status, stopped.data.tags["optuna.state"]) == ("KILLED", "interrupted")
    study = run(config, 1)
    first, second = study.trials
    assert (fate(first), fate(second)) == ("lost", "complete")
    assert fake_fit.folders[0] == fake_fit.folders[1]
    assert fake_fit.seen == [(0, 1), (0, 2), (1, 3)]
    assert second.value == 0.7, "its best epoch was before the interruption"
    assert second.intermediate_values == {1: 0.7, 2: 0.5, 3: 0.4}
    assert (second.user_attrs[LINEAGE], second.params) == (0, first.params)
    assert nested(store)[1].data.tags["optuna.retry_of"] == "0"


def test_without_its_checkpoint_a_lost_trial_begins_anew(
    run: Runs, tiny: ExperimentConfig, fake_fit: FakeFit, tmp_path: Path
) -> None:
    """On another machine the checkpoint is not there: epochs are not reported twice, and the former best is gone."""
    fake_fit.calls = [[0.7, 0.5, KeyboardInterrupt("SIGTERM")], [0.6, 0.5, 0.4]]
    config = tiny.with_overrides({"tuning.epochs": 3, "tuning.pruning": False})
    with pytest.raises(KeyboardInterrupt):
        run(config, 1)
    shutil.rmtree(tmp_path / "trials")
    study = run(config, 1)
    assert [call for call, _ in fake_fit.seen] == [0, 0, 1, 1, 1]
    assert study.trials[1].value == 0.6


def test_a_trial_that_was_taken_for_lost_gives_way(
    run: Runs, tiny: ExperimentConfig, fake_fit: FakeFit, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its heart stood still too long, and another worker has it: it ends, and does not count."""

    class Taken(list[Any]):
        def __iter__(self) -> Any:
            yield 0.5
            study = optuna.load_study(study_name="tiny-1", storage=open_storage(url))
            assert "tried again" in give_up(study, study.trials[0], "it gave no sign of life", 3)
            yield 0.6

    fake_fit.calls = [Taken(), [0.5, 0.6]]
    config = tiny.with_overrides({"tuning.epochs": 2})
    study = run(config, 2)
    assert [fate(trial) for trial in study.trials] == ["lost", "complete"]
    assert "trial 0 was taken for lost and is done by another worker" in caplog.text


def test_an_objective_that_is_not_measured(run: Runs, tiny: ExperimentConfig, fake_fit: FakeFit) -> None:
    fake_fit.calls = [[{"val_top1": 0.5}]]
    with pytest.raises(ConfigError, match=r"tuning asks for val_real_top1, .* set tuning.objective to val_top1"):
        run(tiny, 1)


def test_mlflow_away_costs_the_record_not_the_trial(
    run: Runs, tiny: ExperimentConfig, fake_fit: FakeFit, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def away(number: int, parent: RunRef) -> Iterator[None]:
        raise StoreError("the MLflow store does not answer")
        yield

    fake_fit.calls = [[0.5, 0.6]]
    monkeypatch.setattr("pillsnap.tuning.trial.trial_run", away)
    study = run(tiny.with_overrides({"tuning.epochs": 2}), 1)
    assert (study.trials[0].value, fate(study.trials[0])) == (0.6, "complete")
    assert not nested(store)


def test_a_trial_trains_on_its_share_of_the_images(tiny: ExperimentConfig, training_data: TrainingData) -> None:
    config = tiny.with_overrides({"tuning.train_share": 0.5, "seed": 3})
    data = open_data(config, training_data.manifest.root, training_data.cache.folder.parent)
    assert data.train_indices.tolist() == training_data.with_train_share(0.5, 3).train_indices.tolist()
    assert len(data.train_indices) == len(training_data.train_indices) / 2
    assert data.val_indices.tolist() == training_data.val_indices.tolist()


def test_the_configuration_of_a_trial(tiny: ExperimentConfig) -> None:
    config = tiny.with_overrides({"training.epochs": 50, "training.warmup_epochs": 5, "tuning.epochs": 10})
    short = trial_config(config, {"training.base_lr": 0.002, "augmentation.strength": 0.5}, 7)
    assert (short.training.epochs, short.training.warmup_epochs, short.checkpoints.keep_best) == (10, 2.5, 1)
    assert (short.training.base_lr, short.augmentation.rotation_degrees) == (0.002, 15)
    with pytest.raises(ConfigError, match="trial 7: training"):
        trial_config(config, {"training.base_lr": -1.0}, 7)


def test_epochs_that_are_counted_within_a_training_are_fewer_in_a_short_one(tiny: ExperimentConfig) -> None:
    counted = {"training.epochs": 50, "training.freeze_epochs": 10, "training.mix_off_epochs": 5}
    config = tiny.with_overrides({**counted, "tuning.epochs": 10})
    short, drawn = (trial_config(config, values, 7).training for values in ({}, {"training.freeze_epochs": 4}))
    assert (short.freeze_epochs, short.mix_off_epochs) == (2, 1)
    assert (drawn.freeze_epochs, drawn.mix_off_epochs) == (4, 1), "what is drawn is meant for the trial"
