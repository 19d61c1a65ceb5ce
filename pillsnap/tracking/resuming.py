"""An MLflow run that goes on: found again, and pointed at by the run that was opened in its place.

Knows the tracking store alone; which run is to go on, and from where, others decide.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.code_version import CodeVersion
from pillsnap.tracking.delivery import ENDED_BECAUSE_TAG
from pillsnap.tracking.store import connect, first_line, store_errors

_log = logging.getLogger(__name__)
RUN_OF_MLFLOW = "MLFLOW_RUN_ID"
"""Environment variable: the run that ``mlflow run`` has opened for this process."""
CONTINUES_IN = "pillsnap.continues_in"


def find_run(run_id: str) -> Run | None:
    """A run that is there and not deleted. Raises StoreError: the store cannot be asked."""
    client = connect()
    with store_errors():
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    return run if run.info.lifecycle_stage == "active" else None


def warn_of_other_code(run: Run) -> None:
    """Say where a run that goes on was begun with another commit than it goes on with."""
    before, now = run.data.tags.get("git_commit"), CodeVersion.current().commit
    if before is not None and before != now:
        _log.warning(
            "the code was commit %s when the run began, and is %s now: it may not end as it would have",
            before[:12], now[:12],
        )  # fmt: skip


@contextmanager
def pointing_at(run: Run) -> Iterator[None]:
    """While ``run`` goes on: the empty run that ``mlflow run`` has opened for it says so, and ends as it does.

    It is not deleted: ``mlflow run`` has shown its id, and asks for its status at the end.
    """
    opened = os.environ.pop(RUN_OF_MLFLOW, None)
    if opened is None or opened == run.info.run_id:
        yield
        return
    client = connect()
    text = f"Nothing is logged here. The work goes on in the run **{run.info.run_name}**, `{run.info.run_id}`."
    with store_errors():
        client.update_run(opened, name=f"goes on in: {run.info.run_name}")
        client.set_tag(opened, CONTINUES_IN, run.info.run_id)
        client.set_tag(opened, "mlflow.note.content", text)
    try:
        yield
    except BaseException as error:
        _end(client, opened, error)
        raise
    _end(client, opened, None)


def _end(client: MlflowClient, run_id: str, error: BaseException | None) -> None:
    status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    try:
        if error is not None:
            client.set_tag(run_id, ENDED_BECAUSE_TAG, f"{type(error).__name__}: {error}"[:5000])
        client.set_terminated(run_id, status)
    except MlflowException as failure:
        _log.warning("the MLflow run %s could not be ended as %s (%s)", run_id, status, first_line(failure))


@contextmanager
def ending_the_run_of_mlflow() -> Iterator[None]:
    """What comes before the run is opened: where it fails, the run that ``mlflow run`` has opened ends too.

    Raises:
        StoreError: the store cannot be reached; better said before the work than after it.
    """
    client = connect()
    opened = os.environ.get(RUN_OF_MLFLOW)
    try:
        yield
    except BaseException as error:
        if opened is not None:
            _end(client, opened, error)
        raise
