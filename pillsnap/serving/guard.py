"""What stands before every route: an id, the host's name, how many are in the house, and headers for browsers.

Plain ASGI: Starlette's BaseHTTPMiddleware would copy every body through a queue.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
import uuid
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pillsnap.core.errors import ConfigError
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.problems import ProblemError, problem_response
from pillsnap.serving.settings import ServeSettings

_log = logging.getLogger(__name__)
MOST_BYTES = 256 * 2**20
"""Of all bodies that are in the house at once, in one process: 64 requests of ten photos would be over 6 GB."""
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_ROUTES = {"/v1/narrow/predict", "/v1/narrow/batch_predict", "/v1/narrow/info", "/v1/narrow/classes", "/"}
_SCHEMES = ("http://", "https://")
_ALWAYS = {"/healthz", "/readyz", "/metrics"}
"""Answered under any host name (probes use addresses) and however full the house is."""


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self._requests = 0
        self._bytes = 0
        cross_origin = {"Cross-Origin-Resource-Policy": "cross-origin"} if settings.origins else {}
        self._headers = {**_HEADERS, **cross_origin}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(scope, time.perf_counter())
        self._requests += 1

        async def receive_counted() -> Message:
            message = await receive()
            count = len(message.get("body", b""))
            visit.bytes += count
            self._bytes += count
            if not message.get("more_body", False):
                visit.began = time.perf_counter()
            if self._bytes > MOST_BYTES:
                raise _overloaded()
            return message

        async def send_dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                self._dress(MutableHeaders(scope=message), visit)
            await send(message)

        try:
            await self._answer(visit, receive_counted, send_dressed)
        finally:
            self._requests -= 1
            self._bytes -= visit.bytes
            if visit.path not in _ALWAYS:
                route = visit.path if visit.path in _ROUTES else "other"
                self.metrics.requests.labels(route, str(visit.status or 500), visit.state.get("code", "")).inc()
                self.metrics.request_seconds.labels(route).observe(time.perf_counter() - visit.began)

    async def _answer(self, visit: _Visit, receive: Receive, send: Send) -> None:
        problem = self._refused(visit)
        if problem is None:
            try:
                await self.app(visit.scope, receive, send)
                return
            except Exception:
                _log.exception("request %s failed", visit.id)
                if visit.status is not None:  # too late to say anything else
                    raise
                problem = ProblemError("internal")
        visit.state["code"] = problem.code
        language = Headers(scope=visit.scope).get("accept-language")
        await problem_response(problem, language, visit.id)(visit.scope, receive, send)

    def _dress(self, headers: MutableHeaders, visit: _Visit) -> None:
        headers.update({**self._headers, "X-Request-ID": visit.id})
        if "cache-control" not in headers:
            page = visit.path == "/" or visit.path.startswith("/page/")
            headers["Cache-Control"] = "no-cache" if page else "no-store"

    def _refused(self, visit: _Visit) -> ProblemError | None:
        headers = Headers(scope=visit.scope)
        if "transfer-encoding" in headers and "content-length" in headers:  # RFC 9112, 6.1: perhaps smuggled
            return ProblemError("bad_request", {"Connection": "close"})
        if visit.path in _ALWAYS:
            return None
        if self.settings.hosts and _host_name(headers.get("host", "")) not in self.settings.hosts:
            return ProblemError("wrong_host")
        if self._requests > self.settings.uploads:
            return _overloaded()
        return None


class _Visit:
    """A request while it is in the house."""

    def __init__(self, scope: Scope, began: float) -> None:
        if scope["method"] == "HEAD":  # wherever there is GET; the protocol leaves the body out
            scope = {**scope, "method": "GET"}
        if scope["path"].lower().startswith(_SCHEMES):
            scope = _in_origin_form(scope)
        self.scope = scope
        self.state = scope.setdefault("state", {})
        self.id = self.state["request_id"] = uuid.uuid4().hex
        self.path: str = scope["path"]
        self.began = began
        """When its last byte was there; until then, when it came."""
        self.bytes = 0
        """Of its body, so far."""
        self.status: int | None = None
        """Of the answer, as soon as there is one."""


def _in_origin_form(scope: Scope) -> Scope:
    """A request whose target is a whole address, as a proxy's client sends it: its host is the one that counts.

    RFC 9112, 3.2.2.
    """
    host, slash, path = scope["path"].partition("://")[2].partition("/")
    raw = slash.encode() + scope["raw_path"].partition(b"://")[2].partition(b"/")[2]
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    return {
        **scope,
        "path": slash + path or "/",
        "raw_path": raw or b"/",
        "headers": [(b"host", host.encode("latin-1", "replace")), *headers],
    }


def _host_name(header: str) -> str:
    """The name in a Host header, in the form of `ServeSettings.hosts`: without port, brackets and last dot."""
    name = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
    return name.rstrip(".").lower()


def _overloaded() -> ProblemError:
    return ProblemError("overloaded", {"Retry-After": "1", "Connection": "close"})


def api_keys(file: Path | None) -> frozenset[bytes] | None:
    """Digests of the keys of a file, one a line; None: nobody is asked for one.

    Raises:
        ConfigError: it cannot be read, holds none, or one that is too short to be secret.
    """
    if file is None:
        return None
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-keys {file}: cannot be read ({error})") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-keys {file}: holds no key; write one a line, e.g. from: openssl rand -hex 24")
    if any(len(key) < 16 for key in keys):
        raise ConfigError(f"--api-keys {file}: a key has under 16 characters; make one with: openssl rand -hex 24")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ConfigError(f"--api-keys {file}: a key has characters that no header can carry; use letters and digits")
    return frozenset(_digest(key) for key in keys)


def is_known(key: str, keys: frozenset[bytes]) -> bool:
    """Whether a key's digest is among ``keys``. All are compared, so that the time says nothing."""
    given = _digest(key)
    return bool(sum(hmac.compare_digest(given, known) for known in keys))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
