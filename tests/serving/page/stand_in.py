"""A server that stands in for PillSnap's: it serves the page as the real one must, and answers what a test tells it to.

It writes down what it receives, so that a test can look at the bytes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from pillsnap.clients.phone import FOLDER as CLIENTS
from pillsnap.core.client_contract import ClientContract

PAGE = CLIENTS.parent / "serving" / "page"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SHA256 = "3f6c0d1ab7e24c5f98b2d7706e1a4f0c5d8892be01f74a63cc1e9d2a7b40e815"
MODEL = {"name": "pillsnap", "version": "3", "alias": "champion", "sha256": SHA256}
FINGERPRINT = "9c1f0b7a52d3e846"
NAMES = [
    ("K-990017", "가온정 50밀리그램", "한빛제약(주)"),
    ("K-990042", "나래정 50밀리그램", "(주)푸른약품"),
    ("K-990003", "다솜캡슐 20밀리그램", "새봄바이오(주)"),
    ("K-990088", "라온정 10밀리그램(말레산염)", "한빛제약(주)"),
    ("K-990061", "마루서방정 100밀리그램", "늘솔파마(주)"),
]
CONFIDENCES = (0.934, 0.031, 0.012, 0.008, 0.0004)
DOUBTFUL = (0.341, 0.292, 0.118, 0.061, 0.04)


def judgement(
    confidences: tuple[float, ...] = CONFIDENCES, names: list[tuple[str, str, str]] = NAMES, **changed: Any
) -> dict[str, Any]:
    predictions = [
        {"rank": rank, "kcode": kcode, "drug_name": name, "manufacturer": maker, "confidence": confidence}
        for rank, ((kcode, name, maker), confidence) in enumerate(zip(names, confidences, strict=False), 1)
    ]
    return {"predictions": predictions, "sure": confidences[0] >= 0.5, "unsure_below": 0.5} | changed


def answer(*arguments: Any, **changed: Any) -> dict[str, Any]:
    """What `/v1/narrow/predict` answers."""
    return (
        judgement(*arguments)
        | {
            "model": MODEL,
            "preprocessing_fingerprint": FINGERPRINT,
            "image": {"format": "jpeg", "width": 512, "height": 512, "size_kb": 31.2},
            "warnings": [],
            "processing_time_ms": 38.4,
            "stages_ms": {"queue": 0.1, "decode": 0.6, "prepare": 1.4, "inference": 36.0},
        }
        | changed
    )


def batch_answer(front: dict[str, Any], back: dict[str, Any], combined: dict[str, Any] | None) -> dict[str, Any]:
    """What `/v1/narrow/batch_predict?same_pill=true` answers."""
    shared = {"model": MODEL, "preprocessing_fingerprint": FINGERPRINT, "processing_time_ms": 71.0}
    results = [{"name": f"{side}.jpg"} | result for side, result in (("front", front), ("back", back))]
    return {"results": results, "combined": combined} | shared


def problem(code: str, status: int, **changed: Any) -> tuple[int, dict[str, Any]]:
    told = {"type": f"urn:pillsnap:problem:{code}", "title": f"title of {code}", "status": status}
    return status, told | {"detail": f"detail of {code}", "code": code, "request_id": "7f3a91"} | changed


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    images: list[bytes]
    names: list[str]


@dataclass
class Site:
    """What a test sets and reads."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answers: deque[Any] = field(default_factory=deque)
    """For the coming questions: a dict (200), or (status, problem) or (status, problem, headers)."""
    delay_s: float = 0.0
    key: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def fresh(self) -> None:
        self.received.clear()
        self.answers.clear()
        self.delay_s, self.key = 0.0, None
        self.info = {
            "model": MODEL,
            "classes": 100,
            "client_contract": ClientContract().get_config(),
            "unsure_below": 0.5,
        }


def app_of(site: Site) -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def policy(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def file(path: Path) -> Response:
        if not path.is_file():
            return Response(status_code=404)
        return Response(path.read_bytes(), media_type=TYPES[path.suffix])

    @app.get("/")
    def index() -> Response:
        return file(PAGE / "index.html")

    @app.get("/page/{name}")
    def page(name: str) -> Response:
        return file((CLIENTS if (CLIENTS / name).is_file() else PAGE) / name)

    def denied(request: Request) -> Response | None:
        if site.key is None or request.headers.get("X-API-Key") == site.key:
            return None
        return told(problem("unauthorized", 401))

    @app.get("/v1/narrow/info")
    def info(request: Request) -> Response:
        return denied(request) or JSONResponse(site.info)

    @app.post("/v1/narrow/{endpoint}")
    async def predict(request: Request, endpoint: str) -> Response:
        images, names = [], []
        if endpoint == "predict":
            images.append(await request.body())
        else:
            async with request.form() as form:
                for part in form.getlist("images"):
                    assert isinstance(part, UploadFile)
                    images.append(await part.read())
                    names.append(part.filename or "")
        path = f"{request.url.path}?{request.url.query}".rstrip("?")
        site.received.append(Received(path, dict(request.headers), images, names))
        await asyncio.sleep(site.delay_s)
        return denied(request) or told(site.answers.popleft() if site.answers else answer())

    def told(given: Any) -> Response:
        if isinstance(given, dict):
            return JSONResponse(given)
        status, content, headers = (*given, {})[:3]
        body = content if isinstance(content, str) else json.dumps(content)
        return Response(body, status, headers, "application/problem+json")

    return app


@contextmanager
def running() -> Iterator[Site]:
    site = Site()
    site.fresh()
    listening = socket.create_server(("127.0.0.1", 0))
    site.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server = uvicorn.Server(uvicorn.Config(app_of(site), log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
