"""The gate as a service: one loop that judges whatever carries the mark ``candidate``.

A webhook wakes it, a poller stands behind the webhook; both only make it look. What it finds it judges by the same code
as ``pillsnap registry judge``, which leaves a case that is settled alone: a message that comes twice, a restart and a
kill in the middle end in one decision. One candidate that cannot be judged does not stop the others, and is tried
again: soon, as the store may have been away, then ever more rarely.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, Request, Response
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import PillSnapError, StoreError, TamperedError
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation.card import plain
from pillsnap.gate.admission import CHAMPION
from pillsnap.gate.envelope import ENVELOPE_TAG, Statement
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry.judging import candidates, is_old, judge
from pillsnap.registry.version_page import SERVICE_LOOKS, WORKING, cannot_be_judged
from pillsnap.registry.versions import aliased_version, find_version, show_service, statement_of
from pillsnap.registry.webhooks import LARGEST, Inbox
from pillsnap.tracking.store import connect, registry_errors

_log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 60.0, 3600.0
"""Until a candidate that could not be judged is tried again; twice as long after each try."""
_SHOWN_BEFORE_S = 60.0
"""Before a judgement the registry hears that a service is there, unless it has heard it so shortly before."""
Seen = tuple[str, ...]


@dataclass
class GateService:
    """The loop."""

    manifest: Manifest
    key: Ed25519PrivateKey
    trust: TrustRoot
    poll_s: float
    wake: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    judged: int = 0
    """Words that were handed in since the start."""
    trouble: list[str] = field(default_factory=list)
    """What the last look could not judge, and why, a line each."""
    clock_s: Callable[[], float] = time.monotonic
    _settled: dict[tuple[str, str], Seen] = field(default_factory=dict)
    _waiting: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """Of what could not be judged: when it is tried again, and how long the wait was."""
    _shown_s: float = -math.inf
    _away: bool = False

    def run(self) -> None:
        """Look, judge, wait; until `stop` is set."""
        while not self.stop.is_set():
            self.look()
            self.wake.wait(self.poll_s)
            self.wake.clear()

    def end(self) -> None:
        """Stop after what is being judged."""
        self.stop.set()
        self.wake.set()

    def look(self) -> list[Statement]:
        """Judge all candidates that wait; what was signed now. `trouble` says what was not."""
        self.trouble = []
        try:
            client = connect()
            waiting = candidates(client)
        except StoreError as error:
            if not self._away:
                _log.warning("the registry does not answer, waiting: %s", error)
            self._away = True
            self.trouble.append(f"nothing was judged: {error}")
            return []
        if self._away:
            _log.info("the registry answers again")
        self._away = False
        self._show(client)
        found = []
        for name, version in waiting:
            if self.stop.is_set():
                break
            statement = self._judge(client, name, version)
            if statement is not None:
                found.append(statement)
        return found

    def _judge(self, client: MlflowClient, name: str, version: str) -> Statement | None:
        try:
            entry = find_version(client, name, version)
            seen = self._seen(client, entry)
            due_s, _ = self._waiting.get((name, version), (math.inf, 0.0))
            if self._settled.get((name, version)) == seen and self.clock_s() < due_s:
                return None
            self._show(client, since_s=_SHOWN_BEFORE_S)
            before = entry.tags.get(ENVELOPE_TAG)
            if before is None:
                with registry_errors():
                    client.update_model_version(name, version, WORKING)
            _log.info("judging %s version %s", name, version)
            statement = judge(
                client, name, version, self.manifest, self.key, self.trust, progress=lambda *_: self._show(client)
            )
            entry = find_version(client, name, version)
            self._settled[name, version] = self._seen(client, entry)
            self._waiting.pop((name, version), None)
        except Exception as error:  # whatever its files make a library raise: it must not stop the others
            self._excuse(client, name, version, error)
            return None
        if entry.tags.get(ENVELOPE_TAG) == before:
            return None
        self.judged += 1
        _log.info("judged: %s version %s, verdict %s", name, version, statement.verdict)
        return statement

    def _show(self, client: MlflowClient, since_s: float = SERVICE_LOOKS.total_seconds()) -> None:
        """Say in the registry that a service is there, where it was last said longer ago than this."""
        if self.clock_s() - self._shown_s < since_s:
            return
        self._shown_s = self.clock_s()
        try:
            show_service(client)
        except StoreError as error:
            _log.warning("the registry does not take that a gate service is here: %s", error)

    def _excuse(self, client: MlflowClient, name: str, version: str, error: Exception) -> None:
        """Say why at the version; and look again after a while, or when something has changed."""
        _, before_s = self._waiting.get((name, version), (0.0, FIRST_WAIT_S / 2))
        wait_s = min(2 * before_s, LONGEST_WAIT_S)
        self._waiting[name, version] = (self.clock_s() + wait_s, wait_s)
        known = isinstance(error, (PillSnapError, MlflowException, OSError))
        said = str(error) if known else f"{type(error).__name__}: {error}"
        self.trouble.append(f"{name} version {version}: not judged: {said}")
        _log.warning(
            "%s version %s is not judged (again in %.0f s): %s", name, version, wait_s, said, exc_info=not known
        )
        try:
            entry = find_version(client, name, version)
            self._settled[name, version] = self._seen(client, entry)
            if ENVELOPE_TAG not in entry.tags:
                with registry_errors():
                    client.update_model_version(name, version, cannot_be_judged(plain(said)))
        except PillSnapError as second:
            self._settled.pop((name, version), None)
            _log.warning("%s version %s: %s", name, version, second)

    def _seen(self, client: MlflowClient, entry: ModelVersion) -> Seen:
        """Everything that would make it another case, as far as it shows without downloading the files."""
        champion = aliased_version(client, entry.name, CHAMPION)
        ring, policy = self.trust.ring(), self.trust.policy()
        try:
            statement = statement_of(entry, ring)
        except TamperedError:
            statement = None
        return (
            str(entry.creation_timestamp),
            entry.tags.get(ENVELOPE_TAG, ""),
            "" if champion is None else f"{champion.version} {champion.tags.get(ENVELOPE_TAG, '')}",
            policy.sha256,
            "too old" if statement is not None and is_old(statement, policy) else "",
            ",".join(f"{key.key_id}{key.revoked}" for key in ring.keys.values()),
        )


def listener(service: GateService, secret: str) -> FastAPI:
    """The page that the webhook calls, and one that says how the service is."""
    app = FastAPI(title="PillSnap gate service", docs_url=None, redoc_url=None, openapi_url=None)
    inbox = Inbox(secret)

    @app.post("/webhook")
    async def webhook(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                return Response(status_code=413)
        try:
            fresh = inbox.check(request.headers, body, time.time())
        except TamperedError as error:
            _log.warning("refused: %s", error)
            return Response(status_code=403)
        if fresh:
            service.wake.set()
        return Response(status_code=204)

    @app.get("/healthz")
    async def healthz() -> dict[str, object]:
        return {"status": "waiting for the registry" if service._away else "ok", "judged": service.judged}

    return app


def serve(service: GateService, host: str, port: int, secret: str) -> None:
    """Run the loop in this thread and the listener beside it, until the service is told to end."""
    server = uvicorn.Server(
        uvicorn.Config(listener(service, secret), host=host, port=port, log_level="warning", access_log=False)
    )
    thread = threading.Thread(target=server.run, name="webhook", daemon=True)
    thread.start()
    try:
        service.run()
    finally:
        server.should_exit = True
        thread.join(5)
