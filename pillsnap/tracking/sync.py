"""Sending what runs could not send while they worked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pillsnap.core.errors import StoreError
from pillsnap.core.passwords import hide_passwords
from pillsnap.tracking.journal import JOURNAL_FILE, is_waiting
from pillsnap.tracking.outbox import OUTBOX, REFUSED_FILE, Outbox
from pillsnap.tracking.run import RUNS
from pillsnap.tracking.store import connect, first_line, tracking_uri

_BASES = (".", "tune")
"""Where a workspace has runs: of trainings, and of the trials of studies."""


@dataclass(frozen=True)
class SyncedRun:
    """What became of one run's outbox."""

    run_id: str
    sent: int
    """Entries that were sent now."""
    waiting: int
    """Entries that still wait."""
    status: str
    """What the run has ended with; empty where it was killed, and can go on."""
    problem: str
    """Why something waits or was refused; empty where all is well."""


def waiting_runs(workspace: Path) -> list[tuple[Path, str]]:
    """The runs of a workspace, trials too, that have something to send: the folder for `sync_run`, and the id."""
    outboxes = [path.parent for base in _BASES for path in (workspace / base / RUNS).glob(f"*/{OUTBOX}/{JOURNAL_FILE}")]
    return sorted((path.parents[2], path.parent.name) for path in outboxes if is_waiting(path))


def sync_run(workspace: Path, run_id: str) -> SyncedRun:
    """Send what one run has waiting.

    Args:
        workspace: the folder whose ``runs`` holds the run.
        run_id: the run.

    Raises:
        StoreError: the store cannot be reached.
    """
    client = connect()
    folder = workspace / RUNS / run_id / OUTBOX
    try:
        outbox = Outbox(folder, run_id, lambda: client)
    except StoreError as error:
        return SyncedRun(run_id, 0, 0, "", str(error))
    before = outbox.waiting()
    status = _last_status(outbox)
    all_sent = outbox.send()
    waiting = outbox.waiting()
    problem = "" if all_sent else _problem(outbox)
    if outbox.refused:
        problem = f"{outbox.refused} refused by the store, kept in {folder / REFUSED_FILE}: {_last_refusal(folder)}"
    outbox.close()
    return SyncedRun(run_id, before - waiting, waiting, status, problem)


def _last_status(outbox: Outbox) -> str:
    statuses = [entry["status"] for entry in outbox.entries() if entry["kind"] == "status"]
    return "" if not statuses or statuses[-1] == "RUNNING" else str(statuses[-1])


def _problem(outbox: Outbox) -> str:
    error = outbox.last_error
    reason = first_line(error)[:300] if error is not None else "no answer"
    store = hide_passwords(tracking_uri())
    return f"{reason}. Is MLFLOW_TRACKING_URI ({store}) the store that the run was started with?"


def _last_refusal(folder: Path) -> str:
    lines = (folder / REFUSED_FILE).read_text(encoding="utf-8").splitlines()
    return str(json.loads(lines[-1])["error"])[:300]
