"""What stands before every route: an id, the host's name, how many are in the house, and headers for browsers.

Plain ASGI: Starlette's BaseHTTPMiddleware would copy every body through a queue.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pillsnap.core.errors import ConfigError
from pillsnap.serving.metrics import Metrics
from pillsnap.serving.problems import MEDIA_TYPE, ProblemError, language_of
from pillsnap.serving.settings import ServeSettings

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
_ALWAYS = {"/healthz", "/readyz", "/metrics"}
"""Answered under any host name (probes use addresses) and however full the house is."""


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self._in_the_house = 0
        cross_origin = {"Cross-Origin-Resource-Policy": "cross-origin"} if settings.origins else {}
        self._headers = {**_HEADERS, **cross_origin}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = uuid.uuid4().hex
        path = scope["path"]
        began = time.perf_counter()
        status = 500

        async def send_dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update({**self._headers, "X-Request-ID": request_id})
                if "cache-control" not in headers:
                    page = path == "/" or path.startswith("/page/")
                    headers["Cache-Control"] = "no-cache" if page else "no-store"
            await send(message)

        self._in_the_house += 1
        try:
            problem = self._refused(scope, path)
            if problem is None:
                await self.app(scope, receive, send_dressed)
            else:
                state["code"] = problem.code
                language = language_of(Headers(scope=scope).get("accept-language"))
                told = problem.problem(language, request_id)
                answer = JSONResponse(told.model_dump(), told.status, dict(problem.headers), MEDIA_TYPE)
                await answer(scope, receive, send_dressed)
        finally:
            self._in_the_house -= 1
            if path not in _ALWAYS:
                route = path if path in _ROUTES else "other"
                self.metrics.requests.labels(route, str(status), state.get("code", "")).inc()
                self.metrics.request_seconds.labels(route).observe(time.perf_counter() - began)

    def _refused(self, scope: Scope, path: str) -> ProblemError | None:
        if path in _ALWAYS:
            return None
        host = Headers(scope=scope).get("host", "").rsplit(":", 1)[0].strip("[]").lower()
        if self.settings.hosts and host not in self.settings.hosts:
            return ProblemError("wrong_host")
        if self._in_the_house > self.settings.uploads:
            return ProblemError("overloaded", {"Retry-After": "1", "Connection": "close"})
        return None


def api_keys(file: Path | None) -> frozenset[bytes] | None:
    """Digests of the keys of a file, one a line; None: nobody is asked for one.

    Raises:
        ConfigError: it cannot be read, holds none, or one that is too short to be secret.
    """
    if file is None:
        return None
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-keys {file}: cannot be read ({error})") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-keys {file}: holds no key; write one a line, e.g. from: openssl rand -hex 24")
    if any(len(key) < 16 for key in keys):
        raise ConfigError(f"--api-keys {file}: a key has under 16 characters; make one with: openssl rand -hex 24")
    return frozenset(_digest(key) for key in keys)


def is_known(key: str, keys: frozenset[bytes]) -> bool:
    """Whether a key's digest is among ``keys``. All are compared, so that the time says nothing."""
    given = _digest(key)
    return bool(sum(hmac.compare_digest(given, known) for known in keys))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
