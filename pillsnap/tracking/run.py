"""One MLflow run from its start to its end.

A run that is left by an exception ends as FAILED, by Ctrl-C or SIGTERM as KILLED, never as RUNNING. Whatever it logs
goes into its outbox first: a store that stops answering in mid-run costs neither the work nor a figure.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.core.code_version import CodeVersion
from pillsnap.core.errors import StoreError
from pillsnap.core.files import canonical_json
from pillsnap.core.passwords import hide_passwords
from pillsnap.core.yaml_mapping import flatten
from pillsnap.tracking.delivery import ENDED_BECAUSE_TAG, RefusedError, deliver
from pillsnap.tracking.names import EXPERIMENT
from pillsnap.tracking.outbox import OUTBOX, Outbox
from pillsnap.tracking.resuming import RUN_OF_MLFLOW, check_unused, end_run, run_of_mlflow
from pillsnap.tracking.store import connect, ensure_experiment, first_line, store_errors, tracking_uri

if TYPE_CHECKING:
    from pillsnap.core.manifest import Manifest
    from pillsnap.tracking.event_files import EventFiles, Point

_log = logging.getLogger(__name__)
PARAM_PREFIX = "cfg."
"""`mlflow run` logs the raw parameters under their own names: ours must not meet them."""
RUNS = "runs"
"""The folder of a workspace that holds one folder a run."""
TEST = "test"
"""Context of a data set that a model was measured on."""
_EVENTS = "tensorboard"
_DEFAULT_EXPERIMENT = "0"
"""MLflow's id of "Default"."""
_MAX_PARAM = 500
_WAIT_FOR_OUTBOX_S = 30.0


class ParentRun(Protocol):
    """What a nested run needs to know of its parent, which may be open in another process."""

    @property
    def run_id(self) -> str:
        """In the store."""

    @property
    def experiment_id(self) -> str:
        """In the store."""

    @property
    def workspace(self) -> Path | None:
        """Of the nested run too."""


class TrackedRun:
    """An open MLflow run. Made by `tracked_run`. Threads may log at the same time."""

    def __init__(self, run_id: str, experiment_id: str, workspace: Path | None, started_ms: int) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.started_ms = started_ms
        self.workspace = workspace
        self._base = workspace if workspace is not None else Path(tempfile.mkdtemp(prefix="pillsnap-run-"))
        self.folder = self._base / RUNS / run_id
        uri = tracking_uri()  # of now: who changes it in mid-run means other runs
        self._outbox = Outbox(self.folder / OUTBOX, run_id, lambda: MlflowClient(uri), wait_s=_WAIT_FOR_OUTBOX_S)
        earlier = [tuple(point) for entry in self._outbox.entries() for point in entry.get("points", ())]
        self._told = {(key, step) for key, _, _, step in earlier}
        self._events = None if workspace is None else _open_events(self.folder / _EVENTS, earlier)
        self._outbox.start()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Every value of a nested configuration as a parameter, under ``cfg.``."""
        self.log_params({PARAM_PREFIX + key: value for key, value in flatten(dict(config)).items()})

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters by their names, of which `mlflow run` may have logged none: they have a prefix."""
        values = {key: _text(value) for key, value in params.items()}
        self._outbox.post({"kind": "params", "values": self._new_params(values)})

    def _new_params(self, values: dict[str, str]) -> dict[str, str]:
        """A parameter never changes in MLflow: another value of a run that goes on becomes a tag."""
        there: dict[str, str] = {}
        for entry in self._outbox.entries():
            there.update(entry["values"] if entry["kind"] == "params" else {})
        changed = {f"changed.{key}": value for key, value in values.items() if there.get(key, value) != value}
        if changed:
            self.set_tags(changed)
        return {key: value for key, value in values.items() if key not in there}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._outbox.post({"kind": "tags", "values": dict(tags)})

    def log_dataset(self, manifest: Manifest, context: str = "training") -> None:
        """The manifest as the run's data set (its digest is the start of the hash) and the whole hash as a tag."""
        self._outbox.post({"kind": "dataset", "dataset": _dataset(manifest), "context": context})
        self.set_tags({"manifest_hash": manifest.hash})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics of one step; for MLflow and for TensorBoard.

        A run that goes on after a kill walks some steps again: what it has already told of them stands. Without a step
        the newest value counts.
        """
        now, at = int(time.time() * 1000), step or 0
        points: list[Point] = [
            (key, float(value), now, at)
            for key, value in metrics.items()
            if step is None or (key, at) not in self._told
        ]
        if points:
            self._outbox.post({"kind": "metrics", "points": points})
            if self._events is not None:
                self._events.add(points)

    def log_test_metrics(self, metrics: Mapping[str, float], manifest: Manifest, model_id: str = "") -> None:
        """Figures of a model on the test split of a manifest: the run's, and the logged model's beside its data set.

        ``model_id``: of the MLflow model; empty: the run's own. Where there is none, they are the run's alone.
        """
        points = _points(metrics)
        dataset = {key: _dataset(manifest)[key] for key in ("name", "digest")}
        self._outbox.post({"kind": "model_metrics", "points": points, "dataset": dataset, "model_id": model_id})
        if self._events is not None:
            self._events.add(points)

    def flush(self) -> bool:
        """Send what waits. False where the store does not take it; it is kept for the next time."""
        return self._outbox.send()

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Upload a file, as it is now, as an artifact."""
        self._outbox.post({"kind": "file", "path": self._outbox.keep(path), "folder": folder or ""})

    def log_folder(self, path: Path, folder: str) -> None:
        """Upload a folder, as it is now, as artifacts."""
        self._outbox.post({"kind": "folder", "path": self._outbox.keep(path), "folder": folder})

    def log_text(self, text: str, name: str) -> None:
        """Upload a text as an artifact; ``name`` may have folders."""
        folder, _, file = name.rpartition("/")
        self._outbox.post({"kind": "file", "path": self._outbox.keep_text(text, file), "folder": folder})

    def post_bundle(self, bundle: Path) -> None:
        """Have a bundle logged as a model when the store answers. `run_model.log_bundle` does it at once."""
        self._outbox.post({"kind": "bundle", "path": self._outbox.keep(bundle)})

    def end(self, status: str, error: BaseException | None = None) -> None:
        """End the run. What the store does not take now stays in the outbox, and a line says how it gets there."""
        entry: dict[str, Any] = {"kind": "status", "status": status, "time_ms": int(time.time() * 1000)}
        if error is not None:
            entry["reason"] = hide_passwords(f"{type(error).__name__}: {error}")[:5000]
        if self._events is not None:
            self._events.close()
        try:
            self._outbox.post(entry)
        except OSError as failure:  # a full disk: the run ends all the same
            _log.warning("%s: cannot be written (%s)", self.folder, failure)
            self._end_directly(status, entry.get("reason", ""))
        if self._outbox.close():
            if self.workspace is None:
                shutil.rmtree(self._base, ignore_errors=True)
            return
        reason = first_line(self._outbox.last_error or Exception("no answer"))[:200]
        _log.warning(
            "the MLflow store has not taken all of run %s, which ended as %s (%s). Nothing is lost: it is kept in %s. "
            "When the store is back, send it with: pillsnap tracking sync --workspace %s",
            self.run_id, status, reason, self._outbox.folder, self._base,
        )  # fmt: skip

    def _end_directly(self, status: str, reason: str) -> None:
        try:
            client = MlflowClient(tracking_uri())
            client.set_tag(self.run_id, ENDED_BECAUSE_TAG, reason)
            client.set_terminated(self.run_id, status)
        except Exception as error:
            _log.warning("the MLflow run %s could not be ended as %s (%s)", self.run_id, status, first_line(error))

    def go_on(self) -> None:
        """The run had ended or was killed, and goes on: what it still had to tell comes first, then that it runs."""
        self._outbox.post({"kind": "status", "status": "RUNNING"})
        self.flush()


def tell_run(client: MlflowClient, run_id: str, metrics: Mapping[str, float], manifest: Manifest) -> None:
    """Log what was measured on the test split of a manifest to a run that has ended, at once.

    Raises:
        StoreError: the store does not take it.
    """
    entries = (
        {"kind": "metrics", "points": _points(metrics)},
        {"kind": "dataset", "dataset": _dataset(manifest), "context": TEST},
    )
    try:
        with store_errors():
            for entry in entries:
                deliver(client, run_id, entry, Path())
    except RefusedError as error:
        raise StoreError(f"the MLflow store does not take the figures for run {run_id}: {error}") from error


@contextmanager
def tracked_run(
    name: str,
    *,
    experiment: str = "",
    parent: ParentRun | None = None,
    workspace: Path | None = None,
    resume: str = "",
) -> Iterator[TrackedRun]:
    """Open a run, or attach to the one that ``mlflow run`` has opened for this process.

    Args:
        name: shown in the UI.
        experiment: used where ``mlflow run`` has not chosen one.
        parent: makes a nested run, in the experiment and the workspace of its parent.
        workspace: ``runs/RUN_ID`` in it keeps the run's outbox and TensorBoard's event files. Without one (and
            without a parent's) the outbox is a temporary folder, and TensorBoard gets nothing.
        resume: a run to go on with, by its id.

    Raises:
        StoreError: the store cannot be reached, or has no run ``resume``, or another process is at work on it, or the
            run of ``MLFLOW_RUN_ID`` is gone or not empty.
    """
    client = connect()
    attached = None if parent is not None or resume else run_of_mlflow(client)
    if attached is not None:
        check_unused(attached)
        os.environ.pop(RUN_OF_MLFLOW)
    with store_errors():
        if resume:
            run = client.get_run(resume)  # `go_on` sets it back to RUNNING
        elif attached is not None:
            run = attached
            client.update_run(run.info.run_id, name=name)
            _say_where(run)
        else:
            experiment_id = parent.experiment_id if parent else ensure_experiment(client, experiment)
            tags = {"mlflow.parentRunId": parent.run_id} if parent else {}
            run = client.create_run(experiment_id, run_name=name, tags=tags)
    if workspace is None and parent is not None:
        workspace = parent.workspace
    try:
        tracked = TrackedRun(run.info.run_id, run.info.experiment_id, workspace, run.info.start_time)
    except BaseException as error:  # a workspace that cannot be written, say
        if not resume:  # one that goes on may be another process's, which has it open
            end_run(client, run.info.run_id, error)
        raise
    try:
        # inside the try: a Ctrl-C from here on must not leave the run as RUNNING
        if resume:
            tracked.go_on()
        version = CodeVersion.current()
        tracked.set_tags({"git_commit": version.commit, "git_dirty": str(version.dirty).lower()})
        yield tracked
    except BaseException as error:
        tracked.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        raise
    tracked.end("FINISHED")


def _say_where(run: Run) -> None:
    """MLproject cannot name an experiment, and whoever started `mlflow run` waits for the run that it has shown."""
    if run.info.experiment_id == _DEFAULT_EXPERIMENT:
        _log.warning(
            "mlflow run has put this run into the experiment Default, apart from those of pillsnap run and tune. To "
            "have it beside them: mlflow run --experiment-name %s … (or MLFLOW_EXPERIMENT_NAME=%s)",
            EXPERIMENT, EXPERIMENT,
        )  # fmt: skip


def _open_events(folder: Path, earlier: Iterable[Point]) -> EventFiles:
    """TensorBoard is there where training is: what only evaluates or registers does without."""
    from pillsnap.tracking.event_files import EventFiles

    return EventFiles(folder, earlier)


def _dataset(manifest: Manifest) -> dict[str, str]:
    """A manifest as MLflow's data set."""
    profile = {"images": manifest.rows.num_rows, "classes": len(manifest.catalog.drugs)}
    return {
        "name": str(manifest.summary.get("name", "pillsnap")),
        "digest": manifest.hash[:36],
        "source_type": "local",
        "source": canonical_json({"manifest": str(manifest.root)}),
        "profile": canonical_json(profile),
    }


def _points(metrics: Mapping[str, float]) -> list[Point]:
    """Metrics of now, without a step."""
    now = int(time.time() * 1000)
    return [(key, float(value), now, 0) for key, value in metrics.items()]


def _text(value: Any) -> str:
    text = canonical_json(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= _MAX_PARAM else text[: _MAX_PARAM - 1] + "…"
