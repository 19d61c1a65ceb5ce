"""One connection: uvicorn's protocol, with a limit to everything that it would wait for for ever."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pillsnap.serving.problems import MEDIA_TYPE, ProblemError
from pillsnap.serving.settings import ServeSettings


class PatientButNotForEver(H11Protocol):
    """Uvicorn waits for ever for the rest of a head, of a body that nobody reads, and for a client to take its answer.

    A clock runs while a part of a request is awaited and no answer is being made: from the opening of the connection,
    and again from the first byte after an answer. Who sends nothing, or a byte a minute, is cut off, and so is who
    does not take what was answered. An idle connection between two requests has uvicorn's own limit; a body that a
    route reads has that of `uploads`.
    """

    _settings: ServeSettings
    _ending: ReadBeforeClosing
    _clock: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One too many is closed at once: without a file left the server could not even say no."""
        self._settings = ServeSettings.from_environment()
        self._ending = ReadBeforeClosing(transport, self, self._settings.upload_s)
        super().connection_made(cast(asyncio.Transport, self._ending))
        if len(self.connections) > self._settings.connections:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Something arrived: the head of a request, a part of one, or a body that nobody reads any more."""
        if self._ending.began:
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The connection is idle, or the next request was there already."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client does not take its answers: it has as long for them as for sending a photo."""
        super().pause_writing()
        self._taking = self.loop.call_later(self._settings.upload_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken nearly all."""
        super().resume_writing()
        self._stop_taking()

    def connection_lost(self, exc: Exception | None) -> None:
        """The clocks are stopped."""
        self._stop_clock()
        self._stop_taking()
        super().connection_lost(exc)
        self._ending.ended()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as every error is. Its language is not known."""
        body = ProblemError("bad_request").problem("en", uuid.uuid4().hex).model_dump_json().encode()
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

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

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None


class ReadBeforeClosing:
    """A transport whose `close` first takes what the client is still sending, and throws it away.

    A socket that is closed with bytes unread is reset, and a client that is in the middle of its photo would lose the
    answer that says why it was refused. The client sees the end of the answer and closes; or the time is over.
    """

    def __init__(self, transport: asyncio.Transport, protocol: H11Protocol, limit_s: float) -> None:
        self._transport = transport
        self._protocol = protocol
        self._limit_s = limit_s
        self._limit: asyncio.TimerHandle | None = None
        self.began = False
        """The end has begun: nothing more is read for anybody."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more can be said."""
        return self.began or self._transport.is_closing()

    def close(self) -> None:
        """Send what is to be sent, then close; after the limit in any case."""
        if self.began:
            return
        self.began = True
        self._limit = self._protocol.loop.call_later(self._limit_s, self._transport.abort)
        cycle = self._protocol.cycle
        sending = cycle is not None and cycle.response_complete and cycle.more_body
        if sending and not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()

    def ended(self) -> None:
        """The connection is gone."""
        self.began = True
        if self._limit is not None:
            self._limit.cancel()
