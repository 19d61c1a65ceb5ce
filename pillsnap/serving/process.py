"""Running the application: uvicorn with limits on connections, in one process or several."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG
from uvicorn.supervisors import Multiprocess

from pillsnap.core.interruption import deaf_children
from pillsnap.serving.connection import PatientButNotForEver
from pillsnap.serving.metrics import MULTIPROCESS
from pillsnap.serving.settings import ServeSettings

_KEEP_ALIVE_S = 15
_DRAIN_S = 30
_START_S = 60
"""That a worker may take to say that it lives: it imports much, and waits for the registry."""
_LONGEST_HEAD = 32 * 1024
"""Bytes of a request's line and headers."""


class Parent(Multiprocess):
    """Uvicorn's parent of several workers. At the end it lets go of the port, so that nobody waits at a closed door.

    A terminal that is closed ends it, as it ends a single worker; uvicorn would exchange the workers.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        hang_up = signal.getsignal(signal.SIGHUP)
        super().__init__(config, sockets)
        signal.signal(signal.SIGHUP, hang_up)

    def init_processes(self) -> None:
        """Start the workers."""
        with deaf_children():
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        """Replace those that died."""
        with deaf_children():
            super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """End the workers. Each answers what it has."""
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


class NewsOnly(logging.Filter):
    """Of what uvicorn says of itself: warnings, and the death of a worker, which it calls an information."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is said."""
        return record.levelno >= logging.WARNING or record.getMessage().startswith("Child process")


def run(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are in the house are answered first."""
    settings.to_environment()
    options = {**uvicorn_options(), "host": host, "port": port, "workers": settings.workers, "factory": True}
    application = "pillsnap.serving.app:from_environment"
    try:
        if settings.workers == 1:
            os.environ.pop(MULTIPROCESS, None)
            uvicorn.run(application, **options)
        else:
            _run_several(uvicorn.Config(application, **options))
    except KeyboardInterrupt:
        pass  # uvicorn hands the signal on once it has drained


def uvicorn_options() -> dict[str, Any]:
    """Of uvicorn, whatever the settings: its limits, and what it says of itself."""
    return {
        "http": PatientButNotForEver,
        "ws": "none",
        "access_log": False,
        "log_config": _log_config(),
        "server_header": False,
        "timeout_keep_alive": _KEEP_ALIVE_S,
        "timeout_graceful_shutdown": _DRAIN_S,
        "timeout_worker_healthcheck": _START_S,
        "h11_max_incomplete_event_size": _LONGEST_HEAD,
    }


def _run_several(config: uvicorn.Config) -> None:
    folder = os.environ[MULTIPROCESS] = tempfile.mkdtemp(prefix="pillsnap-metrics-")
    try:
        Parent(config, sockets=[config.bind_socket()]).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end_with_parent() -> None:
    """In a worker: end when the parent is gone, which alone could end it. In a single process it does nothing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _log_config() -> dict[str, Any]:
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"news": {"()": NewsOnly}}
    config["handlers"]["default"]["filters"] = ["news"]
    return config
