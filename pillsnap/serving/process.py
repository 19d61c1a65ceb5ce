"""Running the application: uvicorn with limits on connections, in one process or several."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pillsnap.serving.metrics import MULTIPROCESS
from pillsnap.serving.settings import ServeSettings

_KEEP_ALIVE_S = 15
_DRAIN_S = 30
_LONGEST_HEAD = 32 * 1024
"""Bytes of a request's line and headers."""


class PatientButNotForEver(H11Protocol):
    """Uvicorn's protocol, which waits for ever for the rest of a head or of a body that nobody reads, with a limit.

    A clock runs while a part of a request is awaited and no answer is being made: from the opening of the connection,
    and again from the first byte after an answer. Who sends nothing, or a byte a minute, is cut off. An idle connection
    between two requests has uvicorn's own limit; a body that a route reads has that of `uploads`.
    """

    _settings: ServeSettings
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One too many is closed at once: without a file left the server could not even say no."""
        super().connection_made(transport)
        self._settings = ServeSettings.from_environment()
        if len(self.connections) > self._settings.connections:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something arrived: the head of a request, a part of one, or a body that nobody reads any more."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The connection is idle, or the next request was there already."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The clock is stopped."""
        self._stop_clock()
        super().connection_lost(exc)

    def _watch(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        idle = self.timeout_keep_alive_task is not None
        if answering or idle:
            self._stop_clock()
        elif self._clock is None and not self.transport.is_closing():
            self._clock = self.loop.call_later(self._settings.header_s, self.transport.close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def run(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that are in the house are answered first."""
    settings.to_environment()
    if settings.workers == 1:  # of several, uvicorn exchanges one after another when its first process gets a SIGHUP
        _hang_up_as_terminate()
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


def _hang_up_as_terminate() -> None:
    """A terminal that is closed must not cost the requests that are in the house; nohup stays nohup."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
