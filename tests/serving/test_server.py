"""The command in a process of its own: under load, against slow and wrong clients, and at its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30)


def head(length: object, *more: str) -> bytes:
    lines = ["POST /v1/narrow/predict HTTP/1.1", "Host: 127.0.0.1", "Content-Type: image/jpeg", *more]
    return ("\r\n".join([*lines, f"Content-Length: {length}"]) + "\r\n\r\n").encode()


def received(connection: socket.socket) -> str:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts).decode()


def test_overload_is_answered_at_once(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served("--model", str(bundle), "--threads", "1", "--concurrency", "1", "--queue", "1")
    photo = toy.jpeg(1, side=4000, ending=".png")  # takes a while to decode
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.post(photo), range(48)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.json()["code"] for answer in refused} == {"overloaded"}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    good = [answer.json()["predictions"][0]["kcode"] for answer in answers if answer.status_code == 200]
    assert set(good) == {"K-990002"}


def test_sigterm_answers_what_is_in_the_house(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served("--model", str(bundle), "--threads", "1", "--concurrency", "1", "--queue", "32")
    photo = toy.jpeg(1, side=4000, ending=".png")
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(server.post, photo) for _ in range(6)]
        while requests.get(f"{server.url}/metrics", timeout=10).text.find("pillsnap_inside 0.0") >= 0:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        answers = [job.result() for job in asked]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert server.process.wait(timeout=40) == 0
    assert "Traceback" not in server.log.read_text()
    with pytest.raises(requests.ConnectionError):
        server.post(photo)


def test_slow_clients_are_cut_off_and_cost_nobody_else(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served("--model", str(bundle), "--upload-time", "1", "--header-time", "1")
    photo = toy.jpeg(2)
    silent = [connect(server.url) for _ in range(50)]
    half_a_head = connect(server.url)
    half_a_head.sendall(b"POST /v1/narrow/predict HTTP/1.1\r\nHost: 127")
    slow = connect(server.url)
    slow.sendall(head(len(photo)) + photo[:100])
    assert server.post(photo).status_code == 200
    answer = received(slow)
    assert answer.startswith("HTTP/1.1 408")
    assert '"code":"slow_upload"' in answer
    assert received(half_a_head) == ""
    assert {received(connection) for connection in silent} == {""}
    for connection in (*silent, half_a_head, slow):
        connection.close()
    assert server.post(photo).status_code == 200


def test_lengths_that_are_not_true(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served("--model", str(bundle), "--upload-time", "2")
    photo = toy.jpeg(2)

    def told(data: bytes, end: bool = False) -> str:
        with connect(server.url) as connection:
            try:
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass
            return received(connection)

    assert told(head(len(photo) + 1) + photo).startswith("HTTP/1.1 408")
    declared = told(head(2**40))
    assert declared.startswith("HTTP/1.1 413")
    assert '"code":"too_many_bytes"' in declared
    for wrong in ("-1", "1e3", "x", "1, 2"):
        assert told(head(wrong) + b"x").startswith("HTTP/1.1 400"), wrong
    chunked = b"\r\n".join(
        [b"POST /v1/narrow/predict HTTP/1.1", b"Host: 127.0.0.1", b"Content-Type: image/jpeg",
         b"Transfer-Encoding: chunked", b"", b""]
    )  # fmt: skip
    megabyte = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    assert told(chunked + megabyte * 12).startswith("HTTP/1.1 413")
    assert told(b"GARBAGE\r\n\r\n").startswith("HTTP/1.1 400")
    assert told(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 400")
    assert server.post(photo).status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_several_processes_answer_and_are_counted_together(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served("--model", str(bundle), "--workers", "2")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post(toy.jpeg(0)).status_code, range(200)))
    assert answers == [200] * 200
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    # from either process the same: the sum of both
    [counted] = re.findall(r'pillsnap_requests_total\{code="",route="/v1/narrow/predict",status="200"\} (\S+)', text)
    assert float(counted) == 200
    assert len(psutil.Process(server.process.pid).children()) >= 2
    server.process.terminate()
    assert server.process.wait(timeout=40) == 0


def test_memory_stays_where_it_is(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served("--model", str(bundle), "--threads", "1")
    process = psutil.Process(server.process.pid)
    photos = [toy.jpeg(0), toy.jpeg(1, side=1000), toy.jpeg(2, ending=".png"), b"no picture"]

    def load(requests_each: int) -> float:
        def ask(number: int) -> None:
            with requests.Session() as session:
                for turn in range(requests_each):
                    session.post(
                        f"{server.url}/v1/narrow/predict",
                        data=photos[(number + turn) % len(photos)],
                        headers={"Content-Type": "image/jpeg"},
                        timeout=30,
                    )

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return process.memory_info().rss / 2**20

    load(100)
    before = load(100)
    after = load(300)
    assert after - before < 25, f"{before:.0f} MiB grew to {after:.0f} MiB"


def test_the_server_needs_no_torch_and_little_else(bundle: Path, toy: SimpleNamespace, tmp_path: Path) -> None:
    """One request in a process where everything that the slim image lacks cannot be imported."""
    slim = Path(__file__).parents[2] / "requirements" / "serve-slim.txt"
    allowed = {line.strip().lower() for line in slim.read_text().splitlines() if line and not line.startswith("#")}
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(toy.jpeg(3))
    heavy = ["torch", "torchvision", "timm", "optuna", "matplotlib", "sklearn", "scipy", "pandas", "pyarrow",
             "imagehash", "jinja2", "flask", "alembic", "tensorboard", "mlflow.server", "PIL"]  # fmt: skip
    program = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {heavy!r}:
            raise ModuleNotFoundError("not in the slim image: " + name, name=name)
sys.meta_path.insert(0, Missing())
from starlette.testclient import TestClient
from pillsnap.serving.app import create_app
from pillsnap.serving.settings import ServeSettings
import pillsnap.cli.serve, pillsnap.serving.process
settings = ServeSettings(model={str(bundle)!r}, threads=1, concurrency=1)
with TestClient(create_app(settings)) as client:
    answer = client.post("/v1/narrow/predict", content=open({str(photo)!r}, "rb").read(),
                         headers={{"Content-Type": "image/jpeg"}})
    print(answer.json()["predictions"][0]["kcode"])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "K-990004", ended.stderr
    assert not allowed & {name.lower() for name in heavy}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "missing.onnx"], 1, "missing.onnx: cannot be read"),
        (["--model", "x.onnx", "--shadow"], 2, "--shadow: there is a challenger in the registry only"),
        (["--model", "BUNDLE", "--api-keys", "missing"], 2, "--api-keys missing: cannot be read"),
        (["--model", "BUNDLE", "--api-keys", "SHORT"], 2, "a key has under 16 characters"),
        (["--threads", "0"], 2, "--threads"),
    ],
)
def test_wrong_use_is_said_at_the_start(
    arguments: list[str], status: int, message: str, bundle: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.write_text("secret\n")
    given = [{"BUNDLE": str(bundle), "SHORT": str(short)}.get(word, word) for word in arguments]
    ended = subprocess.run(
        [sys.executable, "-m", "pillsnap", "serve", *given],
        capture_output=True, text=True, check=False, env={**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///none.db"},
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert message in ended.stderr


def test_a_port_that_is_taken_is_said(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "pillsnap", "serve", "--model", str(bundle), "--port", port],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr
