"""The Optuna study: short trainings, the hopeless ones pruned, one nested MLflow run each.

The objective is measured on the validation split. The study lives in a database and goes on where it stopped:
started again with the same data and experiment, it adds only the trials that are missing.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import TrialState

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ExperimentConfig, FloatRange
from pillsnap.core.files import sha256_json, write_bytes
from pillsnap.tracking.run import TrackedRun, tracked_run
from pillsnap.training.batches import TrainingData
from pillsnap.training.trainer import fit

_log = logging.getLogger(__name__)
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class StudyResult:
    """What a study found."""

    best_config: ExperimentConfig
    best_value: float
    best_params: dict[str, float]
    completed: int
    pruned: int
    failed: int


def run_study(
    config: ExperimentConfig, data: TrainingData, folder: Path, *, storage_url: str, experiment: str
) -> StudyResult:
    """Run the study of an experiment file until it has its number of trials.

    Args:
        config: its section ``tuning`` says what is varied and how long; its own values are the first trial.
        data: training and validation images.
        folder: for the trials' checkpoints (deleted after each trial) and ``best.yaml``.
        storage_url: SQLAlchemy URL of the study's database.
        experiment: MLflow experiment.

    Raises:
        ConfigError: the storage cannot be used, or a search range reaches a value that is not allowed.
        TrainingError: no trial came to an end.
    """
    config.check_search_ends(config.name)
    study = _open_study(config, data, storage_url)
    missing = config.tuning.trials - _count(study, *_DONE)
    with tracked_run(f"tune {config.name}", experiment=experiment) as parent:
        parent.log_config(config.model_dump(mode="json"))
        parent.log_dataset(data.manifest)
        parent.set_tags({"pillsnap.kind": "study", "optuna.study": study.study_name})
        if missing > 0:
            objective = _Objective(
                config, data.with_train_share(config.tuning.train_share, config.seed), folder, parent
            )
            # a trial whose loss is no number fails; the study goes on
            study.optimize(objective, n_trials=missing, catch=(TrainingError,))
        result = _result(study, config)
        write_bytes(folder / "best.yaml", result.best_config.to_yaml().encode())
        parent.log_file(folder / "best.yaml")
        parent.log_text(_table(study), "trials.md")
        parent.log_metrics({"best_value": result.best_value, "completed": result.completed, "pruned": result.pruned})
    return result


class _Objective:
    def __init__(self, config: ExperimentConfig, data: TrainingData, folder: Path, parent: TrackedRun) -> None:
        self._config = config
        self._data = data
        self._folder = folder
        self._parent = parent

    def __call__(self, trial: optuna.Trial) -> float:
        params = {
            key: trial.suggest_float(key, space.low, space.high, log=space.log)
            for key, space in self._config.tuning.space.items()
        }
        epochs = self._config.tuning.epochs
        warmup = min(self._config.training.warmup_epochs, epochs / 4)
        short = {"training.epochs": epochs, "training.warmup_epochs": warmup, "checkpoints.keep_best": 1}
        config = self._config.with_overrides({**params, **short}, f"trial {trial.number}")
        folder = self._folder / f"trial-{trial.number:03d}"
        try:
            with tracked_run(f"trial {trial.number}", parent=self._parent) as run:
                run.log_config(config.model_dump(mode="json"))
                run.set_tags({"pillsnap.kind": "trial", "optuna.trial": str(trial.number)})
                observer = _TrialObserver(trial, run, self._config.tuning.objective)
                try:
                    fit(config, self._data, folder, observer)
                    run.set_tags({"optuna.state": "complete"})
                except optuna.TrialPruned:
                    run.set_tags({"optuna.state": "pruned"})
                    observer.pruned = True
            if observer.pruned:  # a pruned run ends well: it did what it should
                raise optuna.TrialPruned
            return observer.best
        except TrainingError as error:
            _log.warning("trial %d failed: %s", trial.number, error)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class _TrialObserver:
    """Logs to the trial's run, reports to the study, and stops what the pruner gives up."""

    def __init__(self, trial: optuna.Trial, run: TrackedRun, objective: str) -> None:
        self._trial = trial
        self._run = run
        self._objective = objective
        self.best = 0.0
        self.pruned = False

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log_metrics(metrics, step)

    def on_resume(self, epoch: int, step: int) -> None:
        _log.info("trial %d goes on after epoch %d", self._trial.number, epoch)

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        if self._objective not in metrics:
            raise ConfigError(
                f"tuning.objective is {self._objective}, but the validation split has no such images; "
                "set it to val_top1"
            )
        value = metrics[self._objective]
        self.best = max(self.best, value)
        self._run.log_metrics(metrics, epoch)
        _log.info("trial %d, epoch %d: %s %.1f %%", self._trial.number, epoch, self._objective, 100 * value)
        self._trial.report(value, epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned


def _open_study(config: ExperimentConfig, data: TrainingData, storage_url: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warning of a failed trial is a whole traceback
    identity = {"config": config.model_dump(mode="json", exclude={"tuning": {"trials"}}), "data": data.manifest.hash}
    name = f"{config.name}-{sha256_json(identity)[:12]}"
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=config.tuning.pruning_startup_trials,
        n_warmup_steps=config.tuning.pruning_warmup_epochs + 1,  # reports count from 1
    )
    try:
        study = optuna.create_study(
            study_name=name,
            storage=optuna.storages.RDBStorage(storage_url),
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy and alembic raise many kinds; all mean: this URL does not work
        raise ConfigError(f"the study's storage {storage_url.split('@')[-1]} cannot be used ({error})") from error
    # a study that goes on must not draw again what it drew before
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
    if _count(study, *_DONE) == 0:
        flat = config.flat()
        study.enqueue_trial({key: flat[key] for key, space in config.tuning.space.items() if _holds(space, flat[key])})
    return study


def _holds(space: FloatRange, value: float | None) -> bool:
    return value is not None and space.low <= value <= space.high  # null: switched off in the file


def _count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _result(study: optuna.Study, config: ExperimentConfig) -> StudyResult:
    if _count(study, TrialState.COMPLETE) == 0:
        raise TrainingError(f"no trial of study {study.study_name} came to an end; see its runs in MLflow")
    best = study.best_trial
    assert best.value is not None
    return StudyResult(
        best_config=config.with_overrides(dict(best.params), "the study's best trial"),
        best_value=best.value,
        best_params=dict(best.params),
        completed=_count(study, TrialState.COMPLETE),
        pruned=_count(study, TrialState.PRUNED),
        failed=_count(study, TrialState.FAIL),
    )


def _table(study: optuna.Study) -> str:
    keys = sorted({key for trial in study.trials for key in trial.params})
    lines = ["| trial | state | value | " + " | ".join(keys) + " |", "|---" * (3 + len(keys)) + "|"]
    for trial in study.trials:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        params = " | ".join(f"{trial.params[key]:.4g}" if key in trial.params else "" for key in keys)
        lines.append(f"| {trial.number} | {trial.state.name.lower()} | {value} | {params} |")
    return "\n".join(lines) + "\n"
