"""Under ``mlflow run``: end when it ends, and keep it from calling FAILED what was interrupted.

A SIGTERM to ``mlflow run`` ends only that process; what it started would train on, unseen, in a run that nobody
expects to change any more. So the child watches it and ends itself as if the signal had been its own.

At Ctrl-C it sends SIGTERM to its child, waits for it, then sets the run to FAILED, also where the child has ended it as
KILLED: MLflow asks whether ``"KILLED"`` is among statuses that are numbers. A second Ctrl-C while it waits leaves that
out.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import click
import psutil

from pillsnap.core.errors import PillSnapError
from pillsnap.core.interruption import has_heard, is_told, would_repeat

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
    with suppress(PillSnapError, KeyboardInterrupt):
        from pillsnap.tracking.resuming import ending_the_run_of_mlflow

        with ending_the_run_of_mlflow():  # where nobody has taken it yet
            raise KeyboardInterrupt("before the work began")
    with suppress(psutil.Error, KeyboardInterrupt):  # it is gone, and says nothing of the run; or a second Ctrl-C
        while not has_heard(signal.SIGTERM) and _is_alive(launcher) and would_repeat():  # later SIGTERM ends all
            time.sleep(0.02)
        if has_heard(signal.SIGTERM):
            launcher.send_signal(signal.SIGINT)


def _is_alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


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
        while _is_alive(launcher):
            threading.Event().wait(_POLL_S)
    except psutil.Error:
        pass  # it is gone
    if is_told():
        return
    click.echo("mlflow run has ended: ending too", err=True)
    os.kill(os.getpid(), signal.SIGTERM)
