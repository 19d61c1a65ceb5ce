"""One trial: a short training, its figures to MLflow and to the study, cut off where the pruner gives it up.

Runs in a process of its own (`worker`). A trial that is tried again goes on from the checkpoint of the one before.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna

from pillsnap.core.errors import ConfigError, StoreError, TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.manifest import Manifest
from pillsnap.core.search import TuningConfig
from pillsnap.data.cache import PreparedCache
from pillsnap.tracking.names import of_curves, of_trial
from pillsnap.tracking.run import TrackedRun
from pillsnap.tracking.study import RETRY_TAG, TRIAL_TAG, RunRef, mark, trial_run
from pillsnap.training.batches import TrainingData
from pillsnap.training.trainer import fit
from pillsnap.tuning.study import BEST, LINEAGE, RETRIES, RETRY_OF, RUN_ID, draw

_log = logging.getLogger(__name__)
_COUNTED_FROM_THE_END = ("training.freeze_epochs", "training.mix_off_epochs")


class Figures(Protocol):
    """Where a trial's figures go."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """At a step."""


class _Nowhere:
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...


@dataclass(frozen=True)
class TrialJob:
    """A training as a trial; goes to the process that does it."""

    config: ExperimentConfig
    manifest_root: Path
    cache_folder: Path
    folder: Path
    """For checkpoints; each lineage of trials has its own, deleted when it is over."""
    parent: RunRef | None
    """The study's MLflow run; None: nothing is recorded."""

    def __call__(self, trial: optuna.Trial, alive: Callable[[], None]) -> float:
        """Train; the value of the objective at the best epoch.

        Args:
            trial: to draw from, and to report to.
            alive: called whenever something was achieved.

        Raises:
            optuna.TrialPruned: it is not worth going on.
            ConfigError: ``tuning`` asks for what is not measured.
            TrainingError: it failed of itself: the loss is no number, no memory.
        """
        config = trial_config(self.config, draw(trial, self.config.tuning), trial.number)
        data = open_data(config, self.manifest_root, self.cache_folder)
        folder = lineage_folder(self.folder, int(trial.user_attrs.get(LINEAGE, trial.number)))
        alive()
        keep = False
        try:
            with self._run(trial, config) as (figures, run):
                observer = TrialObserver(trial, figures, config.tuning, alive)
                state = _train(config, data, folder, observer)
                figures.log_metrics(of_trial(*observer.reached()))
                if run is not None:
                    mark(run, state)
            if state == "pruned":  # outside of the run: it ends well, it did what it should
                raise optuna.TrialPruned
            return observer.value()
        except (KeyboardInterrupt, optuna.exceptions.UpdateFinishedTrialError):
            keep = True  # it will be tried again, or is already
            raise
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _run(self, trial: optuna.Trial, config: ExperimentConfig) -> Iterator[tuple[Figures, TrackedRun | None]]:
        """The trial's nested run; without one where MLflow is away: the study's database has what counts."""
        if self.parent is None:
            yield _Nowhere(), None
            return
        with ExitStack() as stack:
            try:
                run = stack.enter_context(trial_run(trial.number, self.parent))
                _describe(run, trial, config)
            except StoreError as error:
                _log.warning("trial %d is not recorded in MLflow: %s", trial.number, error)
                yield _Nowhere(), None
                return
            try:
                yield run, run
            except BaseException as error:
                mark(run, _said_of(error))
                raise


def _said_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "lost" if isinstance(error, optuna.exceptions.UpdateFinishedTrialError) else "failed"


def trial_config(config: ExperimentConfig, drawn: dict[str, Any], number: int) -> ExperimentConfig:
    """The experiment of a trial: the file's, with what was drawn, and short. Raises ConfigError."""
    epochs = config.tuning.epochs
    short: dict[str, Any] = {
        "training.epochs": epochs,
        "training.warmup_epochs": min(config.training.warmup_epochs, epochs / 4),
        "checkpoints.keep_best": 1,
    }
    known = config.flat()
    for key in _COUNTED_FROM_THE_END:
        if key in known and key not in drawn:
            short[key] = known[key] * epochs // max(config.training.epochs, epochs)
    return config.with_drawn(drawn, f"trial {number}", short)


def open_data(config: ExperimentConfig, manifest_root: Path, cache_folder: Path) -> TrainingData:
    """The images of a trial, from the cache that is there. Raises DataError."""
    manifest = Manifest.load(manifest_root)
    cache = PreparedCache.open(manifest, config.preprocessing, cache_folder)
    data = TrainingData.of(manifest, cache, config)
    return data.with_train_share(config.tuning.train_share, config.seed)


def lineage_folder(folder: Path, lineage: int) -> Path:
    """Where the checkpoints of a trial and of those that try it again lie."""
    return folder / f"trial-{lineage:04d}"


def _train(config: ExperimentConfig, data: TrainingData, folder: Path, observer: TrialObserver) -> str:
    try:
        fit(config, data, folder, observer)
    except optuna.TrialPruned:
        return "pruned"
    return "complete"


def _describe(run: TrackedRun, trial: optuna.Trial, config: ExperimentConfig) -> None:
    trial.set_user_attr(RUN_ID, run.run_id)
    run.log_params(trial.params)  # what differs between trials; all others are the study's
    run.log_text(config.to_yaml(), "experiment.yaml")
    tags = {"pillsnap.kind": "trial", TRIAL_TAG: str(trial.number)}
    if RETRY_OF in trial.user_attrs:
        tags[RETRY_TAG] = str(trial.user_attrs[RETRY_OF])
        tags["optuna.retries"] = str(trial.user_attrs.get(RETRIES, 0))
    run.set_tags(tags)


class TrialObserver:
    """Logs to the trial's run, reports to the study, and stops what the pruner gives up."""

    def __init__(self, trial: optuna.Trial, figures: Figures, tuning: TuningConfig, alive: Callable[[], None]) -> None:
        self._trial = trial
        self._figures = figures
        self._tuning = tuning
        self._alive = alive
        # a trial that is tried again has what the one before it has reported
        self._known = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        self._best: dict[str, float] = dict(trial.user_attrs.get(BEST, {}))
        self._goes_on = False

    def on_resume(self, epoch: int, step: int) -> None:
        """The training goes on from the checkpoint of the trial that was lost."""
        self._goes_on = True
        _log.info("trial %d goes on after epoch %d", self._trial.number, epoch)

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Figures of the last updates."""
        self._alive()
        self._figures.log_metrics(of_curves(metrics), step)

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Figures of an epoch: to the run, and to the study, which may end the trial."""
        self._alive()
        objective, number = self._tuning.objective, self._trial.number
        for key in (objective, *self._tuning.floors):
            if key not in metrics:
                raise ConfigError(
                    f"tuning asks for {key}, but the validation split has no such images; take it out of "
                    "tuning.floors, and set tuning.objective to val_top1"
                )
        value = metrics[objective]
        self._figures.log_metrics(of_curves(metrics), epoch)
        if epoch == 1 and not self._goes_on:
            self._best = {}  # its checkpoint was not there: what it had reached is trained anew
        if not self._best or self._rank(metrics) > self._rank(self._best):
            self._best = {"epoch": epoch, **{key: metrics[key] for key in (objective, *self._tuning.floors)}}
            self._trial.set_user_attr(BEST, self._best)
        _log.info(
            "trial %d, epoch %d of %d: %s %.1f %%",
            number, epoch, self._tuning.epochs, objective, 100 * value,
        )  # fmt: skip
        if epoch in self._known:
            return
        self._trial.report(value, epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned

    def reached(self) -> tuple[float, int | None]:
        """The objective at the best epoch, and that epoch. Raises TrainingError: there was none."""
        if not self._best:
            raise TrainingError(f"trial {self._trial.number} ended without an epoch")
        return self._best[self._tuning.objective], int(self._best["epoch"])

    def value(self) -> float:
        """The objective at the best epoch, whose distance from the floors becomes the trial's constraints."""
        value, _ = self.reached()
        for key, floor in self._tuning.floors.items():
            self._trial.set_constraint(key, floor - self._best[key])
        return value

    def _rank(self, metrics: Mapping[str, float]) -> tuple[bool, float]:
        kept = all(metrics[key] >= floor for key, floor in self._tuning.floors.items())
        return kept, metrics[self._tuning.objective]
