"""The application over toy bundles, in this process and as the real command in its own."""

from __future__ import annotations

import logging
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import requests
import uvicorn
from numpy.typing import NDArray
from starlette.testclient import TestClient

from pillsnap.cli.serve import serve
from pillsnap.serving.app import create_app
from pillsnap.serving.process import uvicorn_options
from pillsnap.serving.settings import VARIABLE, ServeSettings

_TOY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "toy.py")))
CLASSES = 6


def jpeg(label: int = 0, side: int = 512, ending: str = ".jpg") -> bytes:
    """A picture of one class's colour."""
    return encoded(_TOY.toy_picture(_TOY.toy_colors(CLASSES)[label], side), ending)


def encoded(picture: NDArray[np.uint8], ending: str = ".jpg") -> bytes:
    """A file of B, G, R."""
    return bytes(cv2.imencode(ending, picture)[1])


def save_bundle(path: Path, turned: int = 0, **options: Any) -> Path:
    """A toy bundle; ``turned`` moves its answers on by so many classes, so that two bundles can be told apart."""
    catalog = _TOY.toy_catalog(CLASSES)
    colors = np.roll(_TOY.toy_colors(CLASSES), turned, axis=0)
    return Path(_TOY.save_model(path, _TOY.toy_graph(colors, **options), _TOY.toy_metadata(catalog).to_props()))


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        **{**vars(_TOY), "jpeg": jpeg, "encoded": encoded, "save_bundle": save_bundle, "classes": CLASSES}
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundle") / "toy.onnx")


@pytest.fixture
def settings(bundle: Path, tmp_path: Path) -> Callable[..., ServeSettings]:
    """Settings of a test, with some values changed."""

    def make(**values: Any) -> ServeSettings:
        usual = {"model": str(bundle), "home": tmp_path / "home", "threads": 1, "concurrency": 2, "poll_s": 3600.0}
        return ServeSettings(**{**usual, **values})

    return make


@pytest.fixture
def client_of(settings: Callable[..., ServeSettings]) -> Callable[..., AbstractContextManager[TestClient]]:
    """A client of an application with these settings, and this source of models."""

    @contextmanager
    def make(source: Any = None, **values: Any) -> Iterator[TestClient]:
        chosen = settings(**values)
        app = create_app(chosen, source)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    return make


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One application for a whole file: the usual settings."""
    chosen = ServeSettings(
        model=str(bundle), home=tmp_path_factory.mktemp("home"), threads=1, concurrency=2, poll_s=3600.0
    )
    with TestClient(create_app(chosen), raise_server_exceptions=False) as made:
        yield made


@dataclass
class Served:
    """A running server."""

    url: str
    process: Any
    """None: it is a thread of this one."""
    log: Path

    def post(self, data: bytes, **options: Any) -> requests.Response:
        return requests.post(
            f"{self.url}/v1/narrow/predict", data=data, headers={"Content-Type": "image/jpeg"}, timeout=60, **options
        )


@pytest.fixture
def served_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """As `served`, in a thread of this process: the command's own settings and uvicorn's options, without its start."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []
    log = tmp_path / "serve.log"
    handler = logging.FileHandler(log)
    logging.getLogger().addHandler(handler)

    def start(*arguments: str, ready: bool = True, **environment: str) -> Served:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        taken: list[ServeSettings] = []
        monkeypatch.setattr("pillsnap.serving.process.run", lambda settings, *_: taken.append(settings))
        serve.main([*arguments, "--home", str(tmp_path / "home")], standalone_mode=False)
        options = {**uvicorn_options(), "log_config": None, "log_level": "warning", "host": "127.0.0.1", "port": 0}
        monkeypatch.setenv(VARIABLE, "")  # to be taken back
        taken[0].to_environment()
        server = uvicorn.Server(uvicorn.Config("pillsnap.serving.app:from_environment", factory=True, **options))
        thread = threading.Thread(target=server.run)
        running.append((server, thread))
        thread.start()
        end = time.monotonic() + 60
        while not server.started and time.monotonic() < end:
            assert thread.is_alive(), log.read_text()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        while not requests.get(url + ("/readyz" if ready else "/healthz"), timeout=5).ok:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        return Served(url, None, log)

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(40)
        assert not thread.is_alive()
    logging.getLogger().removeHandler(handler)
    handler.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start the command in a process of its own, wait until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, ready: bool = True, **environment: str) -> Served:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tmp_path / f"serve-{len(started)}.log"
        command = [sys.executable, "-m", "pillsnap", "serve", "--port", str(port), "--home", str(tmp_path / "home")]
        with log.open("w") as out:
            process = subprocess.Popen(
                [*command, *arguments], stdout=out, stderr=out, text=True, env={**os.environ, **environment}
            )
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        path = "/readyz" if ready else "/healthz"
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                if requests.get(url + path, timeout=5).ok:
                    return Served(url, process, log)
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    yield start
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
