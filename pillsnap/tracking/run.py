"""One MLflow run from its start to its end.

A run that is left by an exception ends as FAILED, by Ctrl-C or SIGTERM as KILLED, never as RUNNING. Metrics
are written in batches; a store that stops answering in mid-run costs the figures, not the training.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.experiment import flatten
from pillsnap.core.files import canonical_json
from pillsnap.core.manifest import Manifest
from pillsnap.tracking.resuming import ENDED_BECAUSE, RUN_OF_MLFLOW, LoggedPoints, open_again
from pillsnap.tracking.source import CodeVersion
from pillsnap.tracking.store import connect, ensure_experiment, first_line, store_errors

_log = logging.getLogger(__name__)
PARAM_PREFIX = "cfg."
"""`mlflow run` logs the raw parameters under their own names: ours must not meet them."""
_MAX_PARAM = 500
_BATCH = 500


class TrackedRun:
    """An open MLflow run. Made by `tracked_run`."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str, goes_on: bool = False) -> None:
        self._client = client
        self._logged = LoggedPoints(client, run_id) if goes_on else None
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Every value of a nested configuration as a parameter, under ``cfg.``."""
        params = [Param(PARAM_PREFIX + key, _text(value)) for key, value in flatten(dict(config)).items()]
        if self._logged is not None:
            params = self._new_params(params)
        with store_errors():
            for start in range(0, len(params), 100):
                self._client.log_batch(self.run_id, params=params[start : start + 100])

    def _new_params(self, params: list[Param]) -> list[Param]:
        """A parameter never changes in MLflow: another value of a run that goes on becomes a tag."""
        with store_errors():
            there = self._client.get_run(self.run_id).data.params
        changed = {f"changed.{param.key}": param.value for param in params if there.get(param.key) != param.value}
        self.set_tags({key: value for key, value in changed.items() if key.removeprefix("changed.") in there})
        return [param for param in params if param.key not in there]

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        with store_errors():
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_dataset(self, manifest: Manifest) -> None:
        """The manifest as the run's data set (its digest is the start of the hash) and the whole hash as a tag."""
        profile = {"images": manifest.rows.num_rows, "classes": len(manifest.catalog.drugs)}
        source = canonical_json({"manifest": str(manifest.root)})
        dataset = Dataset(
            name=str(manifest.summary.get("name", "pillsnap")),
            digest=manifest.hash[:36],
            source_type="local",
            source=source,
            profile=canonical_json(profile),
        )
        context = InputTag(key="mlflow.data.context", value="training")
        inputs = [DatasetInput(dataset, [context])]
        with store_errors():
            try:
                self._client.log_inputs(self.run_id, datasets=inputs)
            except MlflowException:
                # Two runs that log one new data set at the same time: the later one fails on the row of the earlier.
                self._client.log_inputs(self.run_id, datasets=inputs)
        self.set_tags({"manifest_hash": manifest.hash})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queue metrics; they are written in batches, at the latest when the run ends."""
        if self._logged is not None:
            metrics = self._logged.new_only(metrics, step)
        now = int(time.time() * 1000)
        self._pending += [Metric(key, float(value), now, step or 0) for key, value in metrics.items()]
        if len(self._pending) >= _BATCH or time.monotonic() - self._flushed > 5:
            self.flush()

    def flush(self) -> None:
        """Write the queued metrics. What cannot be written stays queued for the next time."""
        try:
            while self._pending:
                self._client.log_batch(self.run_id, metrics=self._pending[:_BATCH])
                del self._pending[:_BATCH]
        except MlflowException as error:
            kept = len(self._pending)
            _log.warning("MLflow does not take metrics at the moment (%s); %d are kept", first_line(error), kept)
        self._flushed = time.monotonic()

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Upload a file as an artifact."""
        with store_errors():
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_folder(self, path: Path, folder: str) -> None:
        """Upload a folder as artifacts."""
        with store_errors():
            self._client.log_artifacts(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        """Upload a text as an artifact."""
        with store_errors():
            self._client.log_text(self.run_id, text, name)


@contextmanager
def tracked_run(
    name: str, *, experiment: str = "", parent: TrackedRun | None = None, resume: str = ""
) -> Iterator[TrackedRun]:
    """Open a run, or attach to the one that ``mlflow run`` has opened for this process.

    Args:
        name: shown in the UI.
        experiment: used where ``mlflow run`` has not chosen one.
        parent: makes a nested run, in the experiment of its parent.
        resume: a run to go on with, by its id.

    Raises:
        StoreError: the store cannot be reached.
    """
    client = connect()
    attached = None if parent is not None or resume else os.environ.pop(RUN_OF_MLFLOW, None)
    with store_errors():
        if resume:
            run = open_again(client, resume)
        elif attached is not None:
            run = client.get_run(attached)
            client.update_run(attached, name=name)
        else:
            experiment_id = parent.experiment_id if parent else ensure_experiment(client, experiment)
            tags = {"mlflow.parentRunId": parent.run_id} if parent else {}
            run = client.create_run(experiment_id, run_name=name, tags=tags)
    tracked = TrackedRun(client, run.info.run_id, run.info.experiment_id, goes_on=bool(resume))
    try:
        # inside the try: a Ctrl-C from here on must not leave the run as RUNNING
        version = CodeVersion.current()
        tracked.set_tags({"git_commit": version.commit, "git_dirty": str(version.dirty).lower()})
        yield tracked
    except BaseException as error:
        _end(tracked, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        raise
    _end(tracked, "FINISHED", None)


def _end(tracked: TrackedRun, status: str, error: BaseException | None) -> None:
    tracked.flush()
    try:
        if error is not None:
            reason = f"{type(error).__name__}: {error}"[:5000]
            tracked._client.set_tag(tracked.run_id, ENDED_BECAUSE, reason)
        tracked._client.set_terminated(tracked.run_id, status)
    except MlflowException as failure:
        _log.warning("the MLflow run %s could not be ended as %s (%s)", tracked.run_id, status, first_line(failure))


def _text(value: Any) -> str:
    text = canonical_json(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= _MAX_PARAM else text[: _MAX_PARAM - 1] + "…"


def find_artifact(run_id: str, path: str, folder: Path) -> Path:
    """Download one artifact (a file or a folder) of a run. Raises StoreError."""
    connect()
    with store_errors():
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(folder)))
