"""Running the application: uvicorn with limits on connections, in one process or several."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pillsnap.core.errors import PillSnapError
from pillsnap.serving.metrics import MULTIPROCESS
from pillsnap.serving.settings import ServeSettings

_KEEP_ALIVE_S = 15
_DRAIN_S = 30
_LONGEST_HEAD = 32 * 1024
"""Bytes of a request's line and headers."""


class PatientButNotForEver(H11Protocol):
    """Uvicorn's protocol, which waits for ever for the headers of a new connection, with a limit to that.

    Who opens connections and sends nothing, or a byte a minute, is cut off.
    """

    _first: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock starts."""
        super().connection_made(transport)
        self._first = self.loop.call_later(ServeSettings.from_environment().header_s, self._too_late)

    def handle_events(self) -> None:
        """Something arrived; once it is a whole head of a request, the clock is stopped."""
        super().handle_events()
        if self.cycle is not None and self._first is not None:
            self._first.cancel()
            self._first = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The clock is stopped."""
        if self._first is not None:
            self._first.cancel()
        super().connection_lost(exc)

    def _too_late(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def run(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are in the house are answered first.

    Raises:
        PillSnapError: nobody can listen there.
    """
    _check_free(host, port)
    settings.to_environment()
    metrics_folder = tempfile.mkdtemp(prefix="pillsnap-metrics-") if settings.workers > 1 else None
    if metrics_folder is not None:
        os.environ[MULTIPROCESS] = metrics_folder
    try:
        uvicorn.run(
            "pillsnap.serving.app:from_environment",
            factory=True,
            host=host,
            port=port,
            workers=settings.workers,
            http=PatientButNotForEver,
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_DRAIN_S,
            h11_max_incomplete_event_size=_LONGEST_HEAD,
        )
    except KeyboardInterrupt:
        pass  # uvicorn hands the signal on once it has drained
    finally:
        if metrics_folder is not None:
            shutil.rmtree(metrics_folder, ignore_errors=True)


def _check_free(host: str, port: int) -> None:
    """Uvicorn would end without a reason that people understand, and several workers would be restarted for ever."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise PillSnapError(
            f"{host}:{port}: cannot listen there ({error.strerror or error}); give another --host or --port"
        ) from error
