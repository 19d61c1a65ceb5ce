"""The command in a process of its own: under load, against slow and wrong clients, and at its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from pillsnap.cli.main import main

Call = Callable[..., tuple[int, str]]
PROBE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


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


def test_overload_is_answered_at_once(served_here: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served_here("--model", str(bundle), "--threads", "1", "--concurrency", "1", "--queue", "1")
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


NOHUP = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
"""The server inherits it, and heeds it."""


@pytest.mark.e2e
@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.skipif(NOHUP, reason="nohup"))]
)
def test_who_is_in_the_house_is_answered_before_the_end(
    served: Any, bundle: Path, toy: SimpleNamespace, stop: signal.Signals
) -> None:
    server = served("--model", str(bundle), "--threads", "1", "--concurrency", "1", "--queue", "32", "--deadline", "25")
    photo = toy.jpeg(1, side=4000, ending=".png")
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(server.post, photo) for _ in range(6)]
        while requests.get(f"{server.url}/metrics", timeout=10).text.find("pillsnap_inside 0.0") >= 0:
            time.sleep(0.01)
        server.process.send_signal(stop)
        answers = [job.result() for job in asked]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert server.process.wait(timeout=40) == 0
    assert "Traceback" not in server.log.read_text()
    with pytest.raises(requests.ConnectionError):
        server.post(photo)


def test_slow_clients_are_cut_off_and_cost_nobody_else(served_here: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served_here("--model", str(bundle), "--upload-time", "1", "--header-time", "1")
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


def test_a_byte_after_an_answer_keeps_no_connection_open(served_here: Any, bundle: Path, toy: SimpleNamespace) -> None:
    """Neither a head that is never finished, nor a body that nobody reads, however slowly it trickles."""
    server = served_here("--model", str(bundle), "--header-time", "1")
    second_head, unread_body, pipelined = (connect(server.url) for _ in range(3))
    second_head.sendall(PROBE)
    assert second_head.recv(65536).startswith(b"HTTP/1.1 200")
    second_head.sendall(b"G")
    unread_body.sendall(head(100_000).replace(b"image/jpeg", b"text/plain") + b"x" * 10)
    assert unread_body.recv(65536).startswith(b"HTTP/1.1 415")
    pipelined.sendall(PROBE * 3)
    opened = {"second head": second_head, "unread body": unread_body}
    closed: dict[str, float] = {}
    started = time.monotonic()
    while len(closed) < 2 and time.monotonic() < started + 10:
        for name, connection in opened.items():
            try:
                connection.sendall(b"x")
                connection.settimeout(0.05)
                if name not in closed and connection.recv(65536) == b"":
                    closed[name] = time.monotonic() - started
            except TimeoutError:
                pass
            except OSError:
                closed.setdefault(name, time.monotonic() - started)
    assert set(closed) == {"second head", "unread body"}, closed
    pipelined.settimeout(1)
    answers = pipelined.recv(65536)
    while answers.count(b"HTTP/1.1 200") < 3:
        answers += pipelined.recv(65536)
    pipelined.sendall(PROBE)  # idle for longer than a head may take: still open
    assert pipelined.recv(65536).startswith(b"HTTP/1.1 200")
    for connection in (second_head, unread_body, pipelined):
        connection.close()


@pytest.mark.e2e
def test_who_does_not_take_the_answers_is_cut_off(served: Any, bundle: Path) -> None:
    """Each holds a place in the house for as long."""
    server = served("--model", str(bundle), "--upload-time", "1")
    parts = urlsplit(server.url)
    with ExitStack() as deaf:
        for _ in range(3):
            client = deaf.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((parts.hostname, parts.port))
            # answers of over ten megabytes: more than the kernel takes for a client
            client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 400)
            with suppress(ConnectionResetError):
                client.recv(1, socket.MSG_PEEK)  # before its first answer the server may not have it yet
        process = psutil.Process(server.process.pid)
        # the kernel takes megabytes of answers first, and a busy machine takes a while to make them
        end = time.monotonic() + 120
        while len(process.net_connections("tcp")) > 1 and time.monotonic() < end:
            time.sleep(0.1)
        assert [entry.status for entry in process.net_connections("tcp")] == ["LISTEN"]


def test_who_is_refused_while_sending_is_told_why(served_here: Any, bundle: Path) -> None:
    """A socket that is closed with bytes unread is reset, and the answer with it."""
    server = served_here("--model", str(bundle), "--upload-time", "2")
    long, waiting = connect(server.url), connect(server.url)
    long.sendall(head(12_000_000))
    for _ in range(120):
        long.sendall(b"x" * 100_000)
        time.sleep(0.001)
    answer = received(long)
    assert answer.startswith("HTTP/1.1 413")
    assert '"code":"too_many_bytes"' in answer
    waiting.sendall(head(12_000_000) + b"x")  # and then neither goes on nor closes
    assert waiting.recv(65536).startswith(b"HTTP/1.1 413")
    end, cut = time.monotonic() + 10, False
    while not cut and time.monotonic() < end:
        try:
            waiting.sendall(b"x")
            time.sleep(0.05)
        except OSError:
            cut = True
    assert cut
    long.close()
    waiting.close()


def test_a_whole_address_as_target(served_here: Any, bundle: Path, toy: SimpleNamespace) -> None:
    """As a client behind a proxy asks: RFC 9112, 3.2.2. Its host is the one that is checked."""
    server = served_here("--model", str(bundle))
    photo = toy.jpeg(3)
    for target, host, body, status in (
        ("http://127.0.0.1:1/healthz", "x", b"", 200),
        ("HTTP://localhost/v1/narrow/info?a=b", "evil.example", b"", 200),
        ("http://127.0.0.1/v1/narrow/predict", "evil.example", photo, 200),
        ("http://evil.example/v1/narrow/info", "127.0.0.1", b"", 421),
        ("http://127.0.0.1", "127.0.0.1", b"", 200),
        ("http://127.0.0.1/nothing", "127.0.0.1", b"", 404),
    ):
        lines = [f"{'POST' if body else 'GET'} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
        connection = connect(server.url)
        connection.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        assert received(connection).startswith(f"HTTP/1.1 {status}"), target
        connection.close()


def test_connections_are_limited(served_here: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served_here("--model", str(bundle), "--header-time", "2", "--connections", "30")
    opened = []
    for _ in range(50):
        opened.append(connect(server.url))
        opened[-1].settimeout(5)
    turned_away = 0
    for connection in opened[-20:]:
        try:
            connection.sendall(PROBE)
            turned_away += connection.recv(100) == b""
        except ConnectionError:
            turned_away += 1
    assert turned_away == 20
    time.sleep(3)  # the silent ones are gone
    assert server.post(toy.jpeg(2)).status_code == 200
    for connection in opened:
        connection.close()
    assert "Traceback" not in server.log.read_text()


def test_a_kept_copy_that_cannot_be_read_stops_nothing(served_here: Any, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "champion").write_text("a file where the folder should be")
    (tmp_path / "home" / "challenger").symlink_to("challenger")
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    server = served_here("--model", "models:/pills@champion", "--shadow", ready=False, **away)
    assert requests.get(f"{server.url}/readyz", timeout=10).status_code == 503


@pytest.mark.e2e
def test_a_registry_that_hangs_keeps_neither_the_port_nor_the_end_waiting(served: Any, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        hanging = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        started = time.monotonic()
        server = served("--model", "models:/pills@champion", "--shadow", ready=False, **hanging)
        assert requests.get(f"{server.url}/readyz", timeout=10).json()["registry"] == "down"
        assert time.monotonic() - started < 40  # it is asked three times, 20 s each
        server.process.terminate()
        assert server.process.wait(timeout=15) == 0


def test_lengths_that_are_not_true(served_here: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served_here("--model", str(bundle), "--upload-time", "2")
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
    both = head(5, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"
    assert re.match(r"HTTP/1.1 400 .*connection: close.*bad_request", told(both + PROBE), re.DOTALL | re.IGNORECASE)
    assert "HTTP/1.1 200" not in told(both + PROBE)
    garbage = told(b"GARBAGE\r\n\r\n")
    assert garbage.startswith("HTTP/1.1 400")
    assert "application/problem+json" in garbage
    assert '"code":"bad_request"' in garbage
    assert told(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n").startswith("HTTP/1.1 400")
    assert server.post(photo).status_code == 200
    assert "Traceback" not in server.log.read_text()


@pytest.mark.e2e
def test_several_processes_answer_and_are_counted_together(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served("--model", str(bundle), "--workers", "2")

    def models() -> float:
        text = requests.get(f"{server.url}/metrics", timeout=10).text
        return sum(map(float, re.findall(r"^pillsnap_model_info\{.*\} (\S+)$", text, re.MULTILINE)))

    end = time.monotonic() + 60
    while models() < 2 and time.monotonic() < end:  # the first one answers before the second has begun
        time.sleep(0.1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post(toy.jpeg(0)).status_code, range(60)))
    assert answers == [200] * 60
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    # from either process the same: the sum of both
    [counted] = re.findall(r'pillsnap_requests_total\{code="",route="/v1/narrow/predict",status="200"\} (\S+)', text)
    assert float(counted) == 60
    assert len(psutil.Process(server.process.pid).children()) >= 2

    # a worker that is killed leaves nothing in the figures
    assert models() == 2
    workers = [
        child for child in psutil.Process(server.process.pid).children() if "spawn_main" in "".join(child.cmdline())
    ]
    workers[0].kill()
    died = f"Child process [{workers[0].pid}] died"
    end = time.monotonic() + 60
    while time.monotonic() < end:  # until the parent has seen it, its figures are there still
        time.sleep(0.5)
        if died in server.log.read_text() and models() == 2:
            break
    assert died in server.log.read_text(), "nobody need guess"
    assert models() == 2
    assert "Started" not in server.log.read_text()

    # a parent that is killed takes its workers along, and the port is free
    children = psutil.Process(server.process.pid).children()
    server.process.kill()
    server.process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.url}/healthz", timeout=5)


@pytest.mark.e2e
@pytest.mark.long
def test_workers_that_end_take_no_new_connections(served: Any, bundle: Path, toy: SimpleNamespace) -> None:
    server = served(
        "--model", str(bundle), "--workers", "2", "--threads", "1", "--concurrency", "1", "--deadline", "60"
    )
    photo = toy.jpeg(1, side=7000, ending=".png")
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(server.post, photo) for _ in range(6)]
        while "pillsnap_inside 0.0" in requests.get(f"{server.url}/metrics", timeout=10).text:
            time.sleep(0.01)
        server.process.terminate()
        time.sleep(1.5)  # the parent looks at its signals twice a second
        refused = 0
        while not all(job.done() for job in asked):
            try:
                connect(server.url).close()
            except ConnectionRefusedError:
                refused += 1
            time.sleep(0.05)
    assert refused > 0
    assert {job.result().status_code for job in asked} == {200}
    assert server.process.wait(timeout=40) == 0


@pytest.mark.e2e
@pytest.mark.parametrize("many", [20, pytest.param(100, marks=pytest.mark.long)])
def test_memory_stays_where_it_is(served: Any, bundle: Path, toy: SimpleNamespace, many: int) -> None:
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

    load(many)
    before = load(many)
    after = load(3 * many)
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


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command, in this process and without its server: its status, and what it says."""
    monkeypatch.setattr("pillsnap.serving.process.run", lambda *_: pytest.fail("it would serve"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pillsnap", "serve", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), output.out + output.err

    return run


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "missing.onnx"], 1, "missing.onnx: cannot be read"),
        (["--model", "x.onnx", "--shadow"], 2, "--shadow: there is a challenger in the registry only"),
        (["--model", "BUNDLE", "--api-keys", "missing"], 2, "--api-keys missing: cannot be read"),
        (["--model", "BUNDLE", "--api-keys", "SHORT"], 2, "a key has under 16 characters"),
        (["--threads", "0"], 2, "--threads"),
        (["--model", "BUNDLE", "--host", ""], 2, "--host: is empty"),
        (["--model", "BUNDLE", "--deadline", "nan"], 2, "deadline_s"),
        (["--model", "BUNDLE", "--allow-origin", "https://a.example/"], 2, "give scheme and host (and port) alone"),
        (["--model", "BUNDLE", "--allow-host", "name:80"], 2, "'name:80': give a name or an address"),
        (["--model", "models:/pills/1"], 2, "a version by its number could be served past the gate"),
        (["--model", "models:/pills@latest"], 2, "a version by its number could be served past the gate"),
        (["--model", "models:/@champion"], 2, "a version by its number could be served past the gate"),
    ],
)
def test_wrong_use_is_said_at_the_start(
    call: Call, arguments: list[str], status: int, message: str, bundle: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.write_text("secret\n")
    given = [{"BUNDLE": str(bundle), "SHORT": str(short)}.get(word, word) for word in arguments]
    ended, said = call(*given)
    assert (ended, message in said) == (status, True), said


def test_a_port_that_is_taken_is_said(call: Call, bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, said = call("--model", str(bundle), "--port", port)
    assert status == 1
    assert f"127.0.0.1:{port}" in said
    assert "serving" not in said
    assert "Traceback" not in said
