"""Under ``mlflow run``: end when it ends, and keep it from calling FAILED what was interrupted.

A SIGTERM to ``mlflow run`` ends only that process; what it started would train on, unseen, in a run that nobody
expects to change any more. So the child watches it and ends itself as if the signal had been its own.

At Ctrl-C it waits for its child, then sets the run to FAILED, also where the child has ended it as KILLED: MLflow
asks whether ``"KILLED"`` is among statuses that are numbers. A second Ctrl-C while it waits leaves that out.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import click
import psutil

from pillsnap.core.interruption import is_told

_POLL_S = 1.0


def end_with_mlflow_run() -> Callable[[], None]:
    """Start watching, where this process is a descendant of ``mlflow run``.

    Returns:
        To be called last by who ends because it was interrupted.
    """
    launcher = _find_launcher()
    if launcher is None:
        return lambda: None
    threading.Thread(target=_watch, args=(launcher,), daemon=True, name="mlflow-run-watch").start()
    return lambda: _interrupt(launcher)


def _interrupt(launcher: psutil.Process) -> None:
    with suppress(psutil.Error):  # it is gone, and says nothing of the run
        launcher.send_signal(signal.SIGINT)


def _find_launcher() -> psutil.Process | None:
    try:
        for ancestor in psutil.Process().parents():
            words = ancestor.cmdline()
            if "run" in words and any("mlflow" in os.path.basename(word) for word in words):
                return ancestor
    except psutil.Error:
        return None
    return None


def _watch(launcher: psutil.Process) -> None:
    try:
        while launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
            threading.Event().wait(_POLL_S)
    except psutil.Error:
        pass  # it is gone
    if is_told():
        return
    click.echo("mlflow run has ended: ending too", err=True)
    os.kill(os.getpid(), signal.SIGTERM)
