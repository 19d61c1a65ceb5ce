"""A study in its database: which one it is, what is drawn, which trials count, and which are tried again.

The database is all that workers share. Each trial carries notes (Optuna's user attributes), so that anybody can say
what became of it: its worker, its lineage (the trial that it tries again), why it failed. Knows nothing of processes,
MLflow or trainings.
"""

from __future__ import annotations

import logging
import socket
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from pillsnap.core.errors import ConfigError, StoreError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import sha256_json
from pillsnap.core.passwords import hide_passwords
from pillsnap.core.search import OPERATIONAL, Choices, IntRange, TuningConfig
from pillsnap.tuning.storage import StaleCallback, is_server

_log = logging.getLogger(__name__)

# Notes on a trial
WORKER = "worker"
"""Which process runs it."""
LINEAGE = "lineage"
"""Number of the first trial of those that try the same again."""
RETRY_OF = "retry_of"
"""Number of the trial that it tries again; that one counts no more."""
RETRIES = "retries"
"""So often was it lost before."""
LAST = "last_try"
"""It will not be tried again."""
ERROR = "error"
"""Why it failed of itself."""
SURPLUS = "surplus"
"""Begun though enough trials were there, and given up."""
BEST = "best"
"""The figures of its best epoch so far."""
RUN_ID = "mlflow_run_id"

# Notes on a study, of those who have worked at it last
WANTED = "trials_wanted"
"""Trials in all."""
HEARTBEAT = "heartbeat_s"

OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
ALIVE = (TrialState.RUNNING, TrialState.WAITING)


def study_name(config: ExperimentConfig, manifest_hash: str) -> str:
    """The name of the study of an experiment on a data set; another experiment or data set has another one."""
    document = config.model_dump(mode="json", exclude={"tuning": set(OPERATIONAL)})
    return f"{config.name}-{sha256_json({'config': document, 'data': manifest_hash})[:12]}"


def open_study(config: ExperimentConfig, name: str, storage: RDBStorage) -> optuna.Study:
    """The study of this name, made where there is none, with the file's own values as the first trial.

    Raises:
        ConfigError: the database refuses it.
    """
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, pruner=_pruner(config.tuning), direction="maximize", load_if_exists=True
        )
    except Exception as error:  # SQLAlchemy raises many kinds; all mean: this database does not serve
        raise ConfigError(f"the study {name} cannot be opened ({error})") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([config.tuning.objective])
    study.set_user_attr(HEARTBEAT, config.tuning.heartbeat_s)
    if not study.get_trials(deepcopy=False):
        known = config.flat()
        own = {key: known.get(key, 1.0) for key in config.tuning.space}  # a strength of 1 is the file
        inside = {key: value for key, value in own.items() if config.tuning.space[key].holds(value)}
        study.enqueue_trial(inside, skip_if_exists=True)
    return study


def load_study(config: ExperimentConfig, name: str, storage: RDBStorage, *, stream: int) -> optuna.Study:
    """The study as a worker uses it, with a sampler.

    Args:
        config: the experiment.
        name: of `study_name`.
        storage: its database.
        stream: number of the worker; two that start at once must not draw the same.

    Raises:
        StoreError: it is not in its database any more.
    """
    try:
        study = optuna.load_study(study_name=name, storage=storage, pruner=_pruner(config.tuning))
    except KeyError as error:
        raise StoreError(f"the study {name} is not in {hide_passwords(storage.url)}; was it deleted?") from error
    drawn = len(study.get_trials(deepcopy=False))  # a study that goes on must not draw again what it drew before
    host = zlib.crc32(socket.gethostname().encode()) if is_server(storage.url) else 0
    seed = int(sha256_json([config.seed, drawn, stream, host])[:8], 16)
    if config.tuning.sampler == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        study.sampler = optuna.samplers.TPESampler(seed=seed)
    return study


def _pruner(tuning: TuningConfig) -> optuna.pruners.BasePruner:
    if not tuning.pruning:
        return optuna.pruners.NopPruner()
    median = optuna.pruners.MedianPruner(
        n_startup_trials=tuning.pruning_startup_trials,
        n_warmup_steps=tuning.pruning_warmup_epochs + 1,  # reports count from 1
    )
    if tuning.pruning_patience_epochs == 0:
        return median
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.pruners.PatientPruner(median, patience=tuning.pruning_patience_epochs)


def draw(trial: optuna.Trial, tuning: TuningConfig) -> dict[str, Any]:
    """A value for each key of the search space."""
    values: dict[str, Any] = {}
    for key, space in tuning.space.items():
        if isinstance(space, Choices):
            values[key] = trial.suggest_categorical(key, space.choices)
        elif isinstance(space, IntRange):
            values[key] = trial.suggest_int(key, space.low, space.high, step=space.step, log=space.log)
        else:
            values[key] = trial.suggest_float(key, space.low, space.high, log=space.log)
    return values


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count, in their order: those that are over or will be, each lineage once.

    A trial that failed without saying why has lost its process. It counts by the one that tries it again; where there
    is none, because whoever would have asked for it was killed too, not at all.
    """
    trials = list(trials)
    tried_again = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [
        trial
        for trial in trials
        if trial.number not in tried_again
        and SURPLUS not in trial.user_attrs
        and (trial.state != TrialState.FAIL or ERROR in trial.user_attrs or LAST in trial.user_attrs)
    ]


def over(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Of those that count, the ones that are over."""
    return [trial for trial in counted(trials) if trial.state in OVER]


def lineage(trial: FrozenTrial) -> int:
    """The number of the trial that was the first to try this."""
    return int(trial.user_attrs.get(LINEAGE, trial.number))


def give_up(study: optuna.Study, trial: FrozenTrial, why: str, retries: int, *, blamed: bool = True) -> str:
    """End a trial whose process is gone or hangs, and have it tried again.

    Args:
        study: its study.
        trial: running.
        why: for the one who looks at it.
        retries: how often a trial may be tried again.
        blamed: count it as one of these times.

    Returns:
        What became of it, or nothing where somebody else has ended it meanwhile.
    """
    last = blamed and trial.user_attrs.get(RETRIES, 0) >= retries
    storage = study._storage
    try:
        if last:
            storage.set_trial_user_attr(trial._trial_id, ERROR, f"{why}; it was tried again {retries} times")
        # of all who notice, one sets the state, and that one has it tried again
        if not storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
            return ""
    except UpdateFinishedTrialError:
        return ""
    return try_again(study, trial, why, retries, blamed=blamed)


def try_again(study: optuna.Study, trial: FrozenTrial, why: str, retries: int, *, blamed: bool = True) -> str:
    """Put a trial that is over, but not by itself, before all that will be drawn, with what it had reached.

    Args:
        study: its study.
        trial: failed.
        why: for the one who looks at it.
        retries: how often a trial may be tried again.
        blamed: count it as one of these times.

    Returns:
        What became of it.
    """
    if any(other.user_attrs.get(RETRY_OF) == trial.number for other in study.get_trials(deepcopy=False)):
        return f"trial {trial.number} is lost ({why}), and is tried again already"
    times = trial.user_attrs.get(RETRIES, 0) + blamed
    if times > retries:
        return f"trial {trial.number} failed: {why}; it was tried again {retries} times"
    notes: dict[str, Any] = {LINEAGE: lineage(trial), RETRY_OF: trial.number, RETRIES: times}
    if BEST in trial.user_attrs:
        notes[BEST] = trial.user_attrs[BEST]
    if times == retries:
        notes[LAST] = True
    fixed = trial.system_attrs.get("fixed_params")  # of the first trial, which may have drawn none yet
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=notes,
            system_attrs={"fixed_params": fixed} if fixed else {},
            intermediate_values=trial.intermediate_values,
        )
    )
    return f"trial {trial.number} is lost ({why}) and will be tried again"


def on_stale(tuning: TuningConfig) -> StaleCallback:
    """What happens to a trial that Optuna has failed because its heart stopped."""

    def again(study: optuna.Study, trial: FrozenTrial) -> None:
        _log.warning("%s", try_again(study, trial, "it gave no sign of life", tuning.retries))

    return again


@dataclass(frozen=True)
class StudyResult:
    """What a study found."""

    study: str
    best_config: ExperimentConfig
    best_trial: int
    best_value: float
    best_params: dict[str, Any]
    keeps_floors: bool
    """Whether the best trial reaches ``tuning.floors``; where none does, it is the best of all."""
    completed: int
    pruned: int
    failed: int
    retried: int
    epochs: int
    """Trained in all."""


def best_of(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The best of the complete ones: of those that keep the floors, where there are any."""
    whole = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    return max(whole, key=lambda trial: (keeps_floors(trial), trial.value, -trial.number), default=None)


def keeps_floors(trial: FrozenTrial) -> bool:
    """Whether it reaches all that ``tuning.floors`` asks for."""
    return all(value <= 0 for value in trial.constraints.values())


def result_of(study: optuna.Study, config: ExperimentConfig) -> StudyResult | None:
    """What the study found so far; None where no trial came to its end."""
    trials = study.get_trials(deepcopy=False)
    ended = over(trials)
    best = best_of(ended)
    if best is None or best.value is None:
        return None
    states = [trial.state for trial in ended]
    return StudyResult(
        study=study.study_name,
        best_config=config.with_drawn(best.params, "the study's best trial"),
        best_trial=best.number,
        best_value=best.value,
        best_params=dict(best.params),
        keeps_floors=keeps_floors(best),
        completed=states.count(TrialState.COMPLETE),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        retried=sum(RETRY_OF in trial.user_attrs for trial in trials),
        epochs=epochs_of(trials),
    )


def epochs_of(trials: Iterable[FrozenTrial]) -> int:
    """Epochs that count: of a lineage those of its last trial, which holds those before it."""
    trials = list(trials)
    tried_again = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return sum(len(trial.intermediate_values) for trial in trials if trial.number not in tried_again)
