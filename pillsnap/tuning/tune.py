"""A study from its start (or from where it stopped) to its best experiment file."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import optuna

from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import write_bytes
from pillsnap.core.manifest import Manifest
from pillsnap.tracking.names import study_run_name
from pillsnap.tracking.run import TrackedRun
from pillsnap.tracking.study import study_run
from pillsnap.training.batches import TrainingData
from pillsnap.tuning.best_file import best_file
from pillsnap.tuning.records import StudyRecord
from pillsnap.tuning.storage import open_storage
from pillsnap.tuning.study import (
    ALIVE,
    RUN_ID,
    WANTED,
    StudyResult,
    lineage,
    on_stale,
    open_study,
    over,
    result_of,
    study_name,
)
from pillsnap.tuning.supervisor import Supervisor, worker_count
from pillsnap.tuning.told import StudyLog
from pillsnap.tuning.trial import TrialJob, lineage_folder
from pillsnap.tuning.worker import Job, Order

_log = logging.getLogger(__name__)


def run_study(
    config: ExperimentConfig,
    data: TrainingData,
    folder: Path,
    *,
    storage_url: str,
    experiment: str,
    workers: int = 1,
    trials: int | None = None,
    deadline: float | None = None,
    job: Job | None = None,
    command: str = "",
) -> StudyResult:
    """Run the study of an experiment file until it has its number of trials, or time is up.

    The study lives in its database and goes on where it stopped, with the trials that are missing, in the same MLflow
    run. Several calls (on several machines that reach the database and the data) may work at it at once.

    Args:
        config: its section ``tuning`` says what is varied and how long; its own values are the first trial.
        data: training and validation images; the trials open the same manifest and cache.
        folder: for the trials' checkpoints (deleted when a trial is over), ``best.yaml``, the table and the pictures.
        storage_url: SQLAlchemy URL of the study's database.
        experiment: MLflow experiment.
        workers: trials at a time, each in a process of its own.
        trials: in all, in place of ``tuning.trials``.
        deadline: of `time.monotonic`; trials that are at work then are stopped, and gone on with at the next start.
        job: what a trial does, in place of a training.
        command: that starts it, for the head of ``best.yaml``.

    Raises:
        ConfigError: the storage cannot be used, or a search range reaches a value that is not allowed.
        TrainingError: no trial came to an end.
        StoreError: MLflow cannot be reached at the start.
    """
    config.check_search_ends(config.name)
    wanted = config.tuning.trials if trials is None else trials
    workers = worker_count(workers)
    storage = open_storage(storage_url, heartbeat_s=config.tuning.heartbeat_s, on_stale=on_stale(config.tuning))
    study = open_study(config, study_name(config, data.manifest.hash), storage)
    checkpoints = folder / study.study_name
    with study_run(study_run_name(config), experiment=experiment, former=study.user_attrs.get(RUN_ID)) as run:
        _begin(study, config, data.manifest, run)
        study.set_user_attr(WANTED, wanted)
        record = StudyRecord(study, config, run, folder)
        real = TrialJob(config, data.manifest.root, data.cache.folder.parent, checkpoints, record.parent)
        order = Order(config, study.study_name, storage_url, wanted, worker="", stream=0, job=job or real)
        log = StudyLog(wanted, config.tuning.objective, config.tuning.epochs, deadline, record.describe)
        log.begin(study.get_trials(deepcopy=False))
        supervisor = Supervisor(study, order, workers, deadline, record.end_forsaken, log.look)
        try:
            supervisor.run()
        finally:
            _clear(study, checkpoints)
        result = _result(study, config)
        write_bytes(folder / "best.yaml", best_file(result, command).encode())
        record.publish(result, folder)
    storage.engine.dispose()
    return result


def _begin(study: optuna.Study, config: ExperimentConfig, manifest: Manifest, run: TrackedRun) -> None:
    tags = {"pillsnap.kind": "study", "optuna.study": study.study_name}
    if study.user_attrs.get(RUN_ID) != run.run_id:
        study.set_user_attr(RUN_ID, run.run_id)
        run.log_config(config.model_dump(mode="json"))
        run.log_dataset(manifest)
    else:
        done = len(over(study.get_trials(deepcopy=False)))
        _log.info("study %s goes on: %d trials are over", study.study_name, done)
    run.set_tags(tags)


def _result(study: optuna.Study, config: ExperimentConfig) -> StudyResult:
    result = result_of(study, config)
    if result is None:
        raise TrainingError(
            f"no trial of study {study.study_name} came to an end; its runs in MLflow and pillsnap tune status say why"
        )
    if not result.keeps_floors:
        _log.warning(
            "no trial keeps the floors (tuning.floors: %s); the best of all is taken",
            ", ".join(f"{key} {floor:g}" for key, floor in config.tuning.floors.items()),
        )
    return result


def _clear(study: optuna.Study, folder: Path) -> None:
    """Delete the checkpoints of trials that will not be tried again."""
    alive = {lineage(trial) for trial in study.get_trials(deepcopy=False, states=ALIVE)}
    kept = {lineage_folder(folder, number) for number in alive}
    for path in folder.glob("trial-*"):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
