"""Entries of a run's outbox, told to MLflow. Telling one twice does no harm: the store keeps one.

A metric's point is one by its key, step, time and value, and the time is that of the entry, not of the sending. Knows
which answers of a store are final; when to try again is the sender's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import BundleError, DataError, StoreError
from pillsnap.tracking.fetching import MODEL_URI_TAG
from pillsnap.tracking.journal import Entry

ENDED_BECAUSE_TAG = "ended_because"
FINAL_CODES = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})
"""Answers of a store that asking again does not change. A token that has run out or a missing run may be mended."""
_MAX_METRICS = 1000  # of one call, as MLflow allows
_MAX_PARAMS = 100


class RefusedError(Exception):
    """The store, or a missing file, says no to an entry, and would say so again."""


def deliver(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    """Tell one entry to MLflow.

    Args:
        client: of the store.
        run_id: the run.
        entry: see the functions below for what each kind holds.
        outbox: the folder that the entry's files are in.

    Raises:
        RefusedError: it will never be taken.
        Exception: it may be taken later. MLflow, requests, SQLAlchemy and the clients of artifact stores raise many
            kinds.
    """
    tell = _KINDS.get(entry["kind"])
    if tell is None:
        raise RefusedError(f"unknown kind {entry['kind']!r}: written by a newer PillSnap")
    try:
        tell(client, run_id, entry, outbox)
    except MlflowException as error:
        if error.error_code in FINAL_CODES:
            raise RefusedError(str(error).splitlines()[0]) from error
        raise
    except StoreError as error:
        if error.__cause__ is None:  # the store keeps other bytes than it was given
            raise RefusedError(str(error)) from error
        raise
    except (FileNotFoundError, BundleError, DataError) as error:
        raise RefusedError(str(error)) from error


def joined(entries: Iterable[Entry]) -> Iterable[tuple[Entry, int]]:
    """Neighbouring metrics as one entry, up to what one call takes, and how many entries each stands for."""
    points: list[Any] = []
    count = 0
    for entry in entries:
        if entry["kind"] == "metrics" and len(points) + len(entry["points"]) <= _MAX_METRICS:
            points += entry["points"]
            count += 1
            continue
        if count:
            yield {"kind": "metrics", "points": points}, count
        points, count = [], 0
        if entry["kind"] == "metrics":
            points, count = list(entry["points"]), 1
        else:
            yield entry, 1
    if count:
        yield {"kind": "metrics", "points": points}, count


def _metrics(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    metrics = [Metric(key, value, time_ms, step) for key, value, time_ms, step in entry["points"]]
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])


def _model_metrics(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    model_id = entry["model_id"] or client.get_run(run_id).data.tags.get(MODEL_URI_TAG, "").removeprefix("models:/")
    tie: dict[str, Any] = {}
    if model_id and _has_model(client, model_id):
        dataset = entry["dataset"]
        tie = {"model_id": model_id, "dataset_name": dataset["name"], "dataset_digest": dataset["digest"]}
    metrics = [Metric(key, value, time_ms, step, **tie) for key, value, time_ms, step in entry["points"]]
    client.log_batch(run_id, metrics=metrics)


def _has_model(client: MlflowClient, model_id: str) -> bool:
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False  # it was deleted: the figures are the run's alone
        raise
    return True


def _params(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    params = [Param(key, value) for key, value in entry["values"].items()]
    for start in range(0, len(params), _MAX_PARAMS):
        client.log_batch(run_id, params=params[start : start + _MAX_PARAMS])


def _tags(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in entry["values"].items()])


def _dataset(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    context = InputTag(key="mlflow.data.context", value=entry.get("context", "training"))
    inputs = [DatasetInput(Dataset(**entry["dataset"]), [context])]
    try:
        client.log_inputs(run_id, datasets=inputs)
    except MlflowException:
        # Two runs that log one new data set at the same time: the later one fails on the row of the earlier.
        client.log_inputs(run_id, datasets=inputs)


def _file(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    path = outbox / entry["path"]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    client.log_artifact(run_id, str(path), entry["folder"] or None)


def _folder(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    path = outbox / entry["path"]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    client.log_artifacts(run_id, str(path), entry["folder"])


def _bundle(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    from pillsnap.tracking.models import send_bundle  # imports ONNX

    send_bundle(client, run_id, outbox / entry["path"])


def _status(client: MlflowClient, run_id: str, entry: Entry, outbox: Path) -> None:
    """``RUNNING`` for a run that goes on, or what it has ended with, when and why."""
    if entry["status"] == "RUNNING":
        client.update_run(run_id, status="RUNNING")
        if ENDED_BECAUSE_TAG in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, ENDED_BECAUSE_TAG)
        return
    if entry.get("reason"):
        client.set_tag(run_id, ENDED_BECAUSE_TAG, entry["reason"])
    assert RunStatus.is_terminated(RunStatus.from_string(entry["status"]))
    client.set_terminated(run_id, entry["status"], end_time=entry["time_ms"])


_KINDS: dict[str, Callable[[MlflowClient, str, Entry, Path], None]] = {
    "metrics": _metrics,
    "model_metrics": _model_metrics,
    "params": _params,
    "tags": _tags,
    "dataset": _dataset,
    "file": _file,
    "folder": _folder,
    "bundle": _bundle,
    "status": _status,
}
