"""An MLflow run that goes on: opened again, and pointed at by the run that was opened in its place.

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

from pillsnap.tracking.source import CodeVersion
from pillsnap.tracking.store import connect, first_line, store_errors

_log = logging.getLogger(__name__)
RUN_OF_MLFLOW = "MLFLOW_RUN_ID"
"""Environment variable: the run that ``mlflow run`` has opened for this process."""
ENDED_BECAUSE = "ended_because"
CONTINUES_IN = "pillsnap.continues_in"


def store_knows(run_id: str) -> bool:
    """Whether a run is there and not deleted. Raises StoreError: the store cannot be asked."""
    client = connect()
    with store_errors():
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
    return str(run.info.lifecycle_stage) == "active"


def open_again(client: MlflowClient, run_id: str) -> Run:
    """Set a run back to RUNNING. Says so where the code is another one by now."""
    run = client.get_run(run_id)
    client.update_run(run_id, status="RUNNING")
    if ENDED_BECAUSE in run.data.tags:
        client.delete_tag(run_id, ENDED_BECAUSE)
    before, now = run.data.tags.get("git_commit"), CodeVersion.current()
    if before is not None and before != now.commit:
        client.set_tag(run_id, "git_commit_resumed", now.commit)
        _log.warning("the code was commit %s when the run began, and is %s now", before[:12], now.commit[:12])
    return run


def point_from(client: MlflowClient, empty_run_id: str, run: Run) -> None:
    """Make the run that ``mlflow run`` has opened say where its work is found.

    It is not deleted: ``mlflow run`` has shown its id, and ends it itself.
    """
    name = run.info.run_name
    client.update_run(empty_run_id, name=f"goes on in: {name}")
    client.set_tag(empty_run_id, CONTINUES_IN, run.info.run_id)
    text = f"Nothing is logged here. The work goes on in the run **{name}**, `{run.info.run_id}`, begun before."
    client.set_tag(empty_run_id, "mlflow.note.content", text)


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
            try:
                client.set_tag(opened, ENDED_BECAUSE, f"{type(error).__name__}: {error}"[:5000])
                client.set_terminated(opened, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            except MlflowException as failure:
                _log.warning("the MLflow run %s could not be ended (%s)", opened, first_line(failure))
        raise
