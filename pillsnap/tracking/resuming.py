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
from pillsnap.core.errors import StoreError
from pillsnap.core.passwords import hide_passwords
from pillsnap.tracking.delivery import ENDED_BECAUSE_TAG
from pillsnap.tracking.store import connect, first_line, store_errors, tracking_uri

_log = logging.getLogger(__name__)
RUN_OF_MLFLOW = "MLFLOW_RUN_ID"
"""Environment variable: the run that ``mlflow run`` has opened for this process."""
CONTINUES_IN = "pillsnap.continues_in"
_OPEN = ("RUNNING", "SCHEDULED")
_BEGUN_TAG = "git_commit"
"""Every run of ours has it from its first moment on."""


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


def run_of_mlflow(client: MlflowClient) -> Run | None:
    """The run that ``MLFLOW_RUN_ID`` names, whatever its status; None where it is not set.

    Raises:
        StoreError: the store has no such run, or cannot be asked.
    """
    run_id = os.environ.get(RUN_OF_MLFLOW)
    if run_id is None:
        return None
    with store_errors():
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            run = None
    if run is None or run.info.lifecycle_stage != "active":
        raise StoreError(
            f"{RUN_OF_MLFLOW} names the run {run_id!r}, which the MLflow store {hide_passwords(tracking_uri())} does "
            f"not have; unless `mlflow run` has set it just now, it is left over: unset {RUN_OF_MLFLOW}"
        )
    return run


def check_unused(run: Run) -> None:
    """That nothing is written over where a run of ``MLFLOW_RUN_ID`` is taken for new work.

    Raises:
        StoreError: it has ended, or another training was begun in it.
    """
    if run.info.status not in _OPEN:
        said = f"which is {run.info.status}"
    elif _BEGUN_TAG in run.data.tags:
        said = "in which other work was begun"
    else:
        return
    raise StoreError(
        f"{RUN_OF_MLFLOW} names the run {run.info.run_id} ({run.info.run_name}), {said}: what is logged now would be "
        f"mixed with it. It is left over in the environment: unset {RUN_OF_MLFLOW}"
    )


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

    Raises:
        StoreError: that run is not empty, or not there.
    """
    if RUN_OF_MLFLOW not in os.environ:
        yield
        return
    client = connect()
    other = run_of_mlflow(client)
    os.environ.pop(RUN_OF_MLFLOW)
    if other is None or other.info.run_id == run.info.run_id:
        yield
        return
    check_unused(other)
    opened = other.info.run_id
    text = f"Nothing is logged here. The work goes on in the run **{run.info.run_name}**, `{run.info.run_id}`."
    with store_errors():
        client.update_run(opened, name=f"goes on in: {run.info.run_name}")
        client.set_tag(opened, CONTINUES_IN, run.info.run_id)
        client.set_tag(opened, "mlflow.note.content", text)
    try:
        yield
    except BaseException as error:
        end_run(client, opened, error)
        raise
    end_run(client, opened, None)


def end_run(client: MlflowClient, run_id: str, error: BaseException | None) -> None:
    """End a run as its error says (``None``: as FINISHED). Where the store does not take it, only a line is said."""
    status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    try:
        if error is not None:
            client.set_tag(run_id, ENDED_BECAUSE_TAG, hide_passwords(f"{type(error).__name__}: {error}")[:5000])
        client.set_terminated(run_id, status)
    except MlflowException as failure:
        _log.warning("the MLflow run %s could not be ended as %s (%s)", run_id, status, first_line(failure))


@contextmanager
def ending_the_run_of_mlflow() -> Iterator[None]:
    """What comes before the run is opened: where it fails, the run that ``mlflow run`` has opened ends too.

    Where there is none, the store is not asked.

    Raises:
        StoreError: the store cannot be reached, or does not have that run.
    """
    if RUN_OF_MLFLOW not in os.environ:
        yield
        return
    client = connect()
    opened = run_of_mlflow(client)
    try:
        yield
    except BaseException as error:
        if opened is not None and opened.info.status in _OPEN:
            end_run(client, opened.info.run_id, error)
        raise
