"""The MLflow runs of a study: one parent for its whole life, one nested run a trial, and none left as running.

The parent is the same run when the study goes on. Which processes there are is the business of others: a trial's
process opens its nested run by the parent's id alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pillsnap.tracking.run import TrackedRun, tracked_run
from pillsnap.tracking.store import connect, first_line, store_errors

_log = logging.getLogger(__name__)
STATE_TAG = "optuna.state"
"""complete, pruned, failed, lost (its process was killed or hung) or interrupted."""
TRIAL_TAG = "optuna.trial"
RETRY_TAG = "optuna.retry_of"
_GOES_ON = "pillsnap.goes_on_in"


@dataclass(frozen=True)
class RunRef:
    """A run by its name in the store; goes from process to process."""

    run_id: str
    experiment_id: str


@contextmanager
def study_run(name: str, *, experiment: str, former: str | None) -> Iterator[TrackedRun]:
    """Open the parent run of a study, or go on in the one that it had.

    Args:
        name: shown in the UI.
        experiment: used where ``mlflow run`` has not chosen one.
        former: id of the run that the study had when it last ran. One that the store does not know (another store, or
            deleted) is replaced.

    Raises:
        StoreError: the store cannot be reached.
    """
    if former is not None and _is_known(former):
        client = connect()
        opened = os.environ.get("MLFLOW_RUN_ID")
        with store_errors():
            if opened not in (None, former):  # mlflow run has opened another: it says where the figures are
                client.set_tag(opened, _GOES_ON, former)
                client.set_tag(opened, "mlflow.note.content", f"The study goes on in the run {former}.")
            client.update_run(former, status="RUNNING")
        os.environ["MLFLOW_RUN_ID"] = former
        _log.info("the study goes on in the MLflow run %s", former)
    with tracked_run(name, experiment=experiment) as run:
        yield run


@contextmanager
def trial_run(number: int, parent: RunRef) -> Iterator[TrackedRun]:
    """The nested run of a trial. Raises StoreError where the store cannot be reached."""
    outer = TrackedRun(connect(), parent.run_id, parent.experiment_id)
    with tracked_run(_name(number), parent=outer) as run:
        yield run


def end_forsaken(parent: RunRef, is_running: Callable[[int], bool], state: Callable[[int], str]) -> list[int]:
    """End the nested runs whose trials do not run any more: their processes were killed before they could.

    Args:
        parent: of the study.
        is_running: whether the trial of this number is at work.
        state: what is to be said of it.

    Returns:
        Numbers of the trials whose runs were ended.

    Raises:
        StoreError: the store cannot be reached.
    """
    client = connect()
    ended = []
    with store_errors():
        for run in _children(parent, "attributes.status = 'RUNNING'"):
            number = _number(run)
            if number is None or is_running(number):
                continue
            client.set_tag(run.info.run_id, STATE_TAG, state(number))
            client.set_tag(run.info.run_id, TRIAL_TAG, str(number))
            client.set_terminated(run.info.run_id, "KILLED")
            ended.append(number)
    return ended


def numbers_with_runs(parent: RunRef) -> set[int]:
    """Which trials have a run. Raises StoreError."""
    with store_errors():
        numbers = [_number(run) for run in _children(parent, "")]
    return {number for number in numbers if number is not None}


def mark(run: TrackedRun, state: str) -> None:
    """Say what became of a trial; a store that does not answer costs the mark, not the trial."""
    try:
        with store_errors():
            run.set_tags({STATE_TAG: state})
    except Exception as error:  # whatever it is, the trial's value is in the study's database
        _log.warning("the MLflow run %s could not be marked as %s (%s)", run.run_id, state, error)


def _children(parent: RunRef, also: str) -> list[Run]:
    client = connect()
    wanted = f"tags.mlflow.parentRunId = '{parent.run_id}'" + (f" and {also}" if also else "")
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([parent.experiment_id], wanted, ViewType.ACTIVE_ONLY, 1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _name(number: int) -> str:
    return f"trial {number}"


def _number(run: Run) -> int | None:
    word = (run.info.run_name or "").removeprefix("trial ")
    return int(word) if word.isdigit() else None


def _is_known(run_id: str) -> bool:
    try:
        return str(connect().get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            _log.warning("the MLflow run %s of the study cannot be found (%s)", run_id, first_line(error))
        return False
