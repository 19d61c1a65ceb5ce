"""Under ``mlflow run``: end when it ends.

A SIGTERM to ``mlflow run`` ends only that process; what it started would train on, unseen, in a run that nobody
expects to change any more. So the child watches it and ends itself as if the signal had been its own.
"""

from __future__ import annotations

import os
import signal
import threading

import click
import psutil

_POLL_S = 1.0


def end_with_mlflow_run() -> None:
    """Start watching, where this process is a descendant of ``mlflow run``."""
    launcher = _find_launcher()
    if launcher is not None:
        threading.Thread(target=_watch, args=(launcher,), daemon=True, name="mlflow-run-watch").start()


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
    click.echo("mlflow run has ended: ending too", err=True)
    os.kill(os.getpid(), signal.SIGTERM)
