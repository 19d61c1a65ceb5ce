"""The MLflow runs of a study: one parent for its whole life, one nested run a trial, and none left as running.

The parent is the same run when the study goes on. Which processes there are is the business of others: a trial's
process opens its nested run by the parent's id alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run, ViewType

from pillsnap.tracking.resuming import find_run, pointing_at
from pillsnap.tracking.run import TrackedRun, tracked_run
from pillsnap.tracking.store import connect, store_errors

_log = logging.getLogger(__name__)
STATE_TAG = "optuna.state"
"""complete, pruned, failed, lost (its process was killed or hung) or interrupted."""
TRIAL_TAG = "optuna.trial"
RETRY_TAG = "optuna.retry_of"


@dataclass(frozen=True)
class RunRef:
    """A run by its name in the store; goes from process to process."""

    run_id: str
    experiment_id: str
    workspace: Path | None = None
    """Of the runs of the trials: where their outboxes and TensorBoard's files lie. None: nowhere that stays."""


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
    known = find_run(former) if former is not None else None
    with ExitStack() as stack:
        if known is not None:
            stack.enter_context(pointing_at(known))
            _log.info("the study goes on in the MLflow run %s", former)
        resume = known.info.run_id if known is not None else ""
        # no workspace: several processes, on one machine or on many, may work at one study
        yield stack.enter_context(tracked_run(name, experiment=experiment, resume=resume))


@contextmanager
def trial_run(number: int, parent: RunRef) -> Iterator[TrackedRun]:
    """The nested run of a trial. Raises StoreError where the store cannot be reached."""
    with tracked_run(_name(number), parent=parent) as run:
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
