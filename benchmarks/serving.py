"""The server beside a bare loop, and beside ``mlflow models serve`` of the same model: requests a second and p95.

    python benchmarks/serving.py BUNDLE.onnx PHOTO.jpg
    python benchmarks/serving.py BUNDLE.onnx PHOTO.jpg --minutes 60        memory over an hour at saturation

All in one run on the loopback, in turns. The bare loop is what anybody would write first: cv2 decodes and prepares as
the bundle says, the bundle's engine (ONNX Runtime, where it names no other) runs with all cores, one photo after
another, no server at all. The clients write to sockets and parse nothing: they cost the server as little as can be.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import psutil
import requests

from pillsnap.core.cpu import usable_cores
from pillsnap.core.preprocessing import UnifiedPreprocessor
from pillsnap.evaluation.latency import hardware_name
from pillsnap.inference.session import PillSession

Times = list[float]
"""Milliseconds of each request."""


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], url: str, path: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server process while it is ready; its process id."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
        try:
            started = time.monotonic()
            while True:
                try:
                    if requests.get(url + path, timeout=2).ok:
                        break
                except requests.RequestException:
                    pass
                if process.poll() is not None or time.monotonic() - started > 120:
                    log.seek(0)
                    sys.exit(f"{command[2]} does not start:\n{log.read()[-3000:]}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            process.wait(timeout=60)


def message(port: int, path: str, kind: str, body: bytes) -> bytes:
    """A whole HTTP request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask(connection: socket.socket, request: bytes) -> None:
    """One request on a connection that is kept; raises where the answer is not 200."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("the server closed the connection")
        answer += part
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ConnectionError(head.decode() + rest.decode(errors="replace"))
    length = int(
        next(line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    )
    while len(rest) < length:
        rest += connection.recv(65536)


def clients(port: int, request: bytes, count: int, seconds: float) -> tuple[float, Times]:
    """``count`` clients without a pause for so long: (requests a second, the time of each)."""
    times: Times = []
    failed: list[BaseException] = []
    end = time.perf_counter() + seconds

    def run() -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while (start := time.perf_counter()) < end:
                    ask(connection, request)
                    times.append(1000 * (time.perf_counter() - start))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return len(times) / (time.perf_counter() - started), times


def bare_loop(session: PillSession, photo: bytes) -> Callable[[float], tuple[float, Times]]:
    """What runs the loop for so many seconds; of the session it takes the engine alone."""
    engine = session.engine
    prepare = UnifiedPreprocessor(session.metadata.preprocessing).to_model_input

    def once() -> None:
        image = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR_RGB)
        _, probabilities_NK = engine.run(prepare(image)[np.newaxis])
        np.argsort(-probabilities_NK[0])[:5]

    def run(seconds: float) -> tuple[float, Times]:
        times: Times = []
        started = time.perf_counter()
        while (start := time.perf_counter()) < started + seconds:
            once()
            times.append(1000 * (time.perf_counter() - start))
        return len(times) / (time.perf_counter() - started), times

    run(1)
    return run


@contextmanager
def mlflow_serve(bundle: Path) -> Iterator[int]:
    """``mlflow models serve`` of the bundle, as it is logged here; its port."""
    from pillsnap.tracking.fetching import MODEL_URI_TAG
    from pillsnap.tracking.run import tracked_run
    from pillsnap.tracking.run_model import log_bundle
    from pillsnap.tracking.store import connect

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        with tracked_run("bench", experiment="bench") as run:
            log_bundle(run, bundle)
        uri = connect().get_run(run.run_id).data.tags[MODEL_URI_TAG]
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "-m",
            uri,
            "-p",
            str(port),
            "--env-manager",
            "local",
        ]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts `uvicorn` by its name
        with running(command, f"http://127.0.0.1:{port}", "/health", {"PATH": path}):
            yield port


def row(name: str, rate: float, times: Times) -> str:
    """A line of the table."""
    p50, p95 = np.percentile(times, [50, 95])
    return f"{name:<44} | {rate:8.1f} | {p50:7.1f} | {p95:7.1f}"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="of all in turns")
    parser.add_argument("--seconds", type=float, default=5, help="of each in a round")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[2], help="of the server: each value in turn")
    parser.add_argument("--minutes", type=float, default=0, help="saturate the server so long and watch its memory")
    parser.add_argument("--no-mlflow", action="store_true", help="leave MLflow's server out")
    options = parser.parse_args()
    photo = options.photo.read_bytes()
    cores = usable_cores()
    port = free_port()
    serve = [sys.executable, "-m", "pillsnap", "serve", "--model", str(options.bundle), "--port", str(port)]
    print(f"{options.bundle.name}, {len(photo) / 1e3:.0f} kB photo; {cores} cores, {hardware_name()}")
    request = message(port, "/v1/narrow/predict", "image/jpeg", photo)
    if options.minutes:
        soak(serve, port, request, options.minutes)
        return
    session = PillSession.load(options.bundle, threads=cores)
    bare = bare_loop(session, photo)
    found: dict[str, list[tuple[float, Times]]] = {}
    for at_once in options.concurrency:
        with running([*serve, "--concurrency", str(at_once)], f"http://127.0.0.1:{port}", "/readyz"):
            clients(port, request, 1, 1)
            for _ in range(options.rounds):
                found.setdefault("bare loop, no server", []).append(bare(options.seconds))
                for count in (1, 2, 4, 8):
                    name = f"pillsnap serve, {count} client{'s' * (count > 1)}, {at_once} at once"
                    found.setdefault(name, []).append(clients(port, request, count, options.seconds))
    if not options.no_mlflow:
        side = session.metadata.preprocessing.target_size
        image = cv2.resize(cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR_RGB), (side, side))
        body = json.dumps({"inputs": image[np.newaxis].tolist()}).encode()
        with mlflow_serve(options.bundle) as other:
            asked = message(other, "/invocations", "application/json", body)
            clients(other, asked, 1, 2)
            for _ in range(options.rounds):
                found.setdefault(f"mlflow models serve, 1 client ({len(body) / 1e6:.1f} MB)", []).append(
                    clients(other, asked, 1, options.seconds)
                )
    print(f"{'':<44} | per s    | p50 ms  | p95 ms")
    rates = {}
    for name, runs in found.items():
        rates[name] = statistics.median(rate for rate, _ in runs)
        print(row(name, rates[name], [value for _, times in runs for value in times]))
    loop = rates["bare loop, no server"]
    ours = {name: rate for name, rate in rates.items() if name.startswith("pillsnap")}
    alone = max(rate for name, rate in ours.items() if ", 1 client," in name)
    print(f"pillsnap ÷ bare loop: {max(ours.values()) / loop:.3f} at best, {alone / loop:.3f} with one client")
    for name, rate in rates.items():
        if name.startswith("mlflow"):
            print(f"pillsnap ÷ mlflow models serve: {alone / rate:.1f}")


def soak(serve: list[str], port: int, request: bytes, minutes: float) -> None:
    """Memory of the server while four clients never pause."""
    with running(serve, f"http://127.0.0.1:{port}", "/readyz") as process_id:
        process = psutil.Process(process_id)
        print("minute | requests | resident MiB | p95 ms")
        done = 0
        pieces = 12
        for piece in range(pieces + 1):
            _, times = clients(port, request, 4, 60 * minutes / pieces if piece else 5)
            done += len(times)
            resident = process.memory_info().rss / 2**20
            print(
                f"{piece * minutes / pieces:6.1f} | {done:8d} | {resident:12.1f} | {np.percentile(times, 95):6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
