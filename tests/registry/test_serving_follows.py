"""The real server beside a real registry: it follows under load, it does not follow what is not proven."""

from __future__ import annotations

import runpy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.tracking import MlflowClient

from pillsnap.registry.promotion import promote, rollback
from pillsnap.tracking.store import tracking_uri

_serving = runpy.run_path(str(Path(__file__).parents[1] / "serving" / "conftest.py"))
served, jpeg = _serving["served"], _serving["jpeg"]
pytestmark = pytest.mark.e2e
CLIENTS = 4


@pytest.fixture
def two_champions(store: MlflowClient, candidate: Callable[..., str], gate: Any) -> dict[str, str]:
    """Version → digest of its bundle; 2 is champion, 1 was."""
    found = {}
    for _ in range(2):
        version = candidate()
        found[version] = gate.judge(version).bundle_sha256
        promote("pills", version)
    return found


def version_served(url: str) -> str:
    return str(requests.get(f"{url}/readyz", timeout=10).json()["model"]["version"])


def wait_for(url: str, version: str) -> None:
    for _ in range(600):
        if version_served(url) == version:
            return
        time.sleep(0.05)
    raise AssertionError(f"version {version} is not served, but {version_served(url)}")


def start(served: Any, gate: Any, *arguments: str) -> Any:
    environment = {"MLFLOW_TRACKING_URI": tracking_uri(), "PILLSNAP_TRUST_ROOT": str(gate.trust.folder)}
    return served("--model", "models:/pills@champion", "--poll", "0.1", "--threads", "1", *arguments, **environment)


@pytest.mark.parametrize("swaps", [3, pytest.param(20, marks=pytest.mark.long)])
def test_swaps_under_load_lose_no_request(two_champions: dict[str, str], served: Any, gate: Any, swaps: int) -> None:
    server = start(served, gate)
    stop = threading.Event()
    answers: list[tuple[int, str, str]] = []
    photo = jpeg(2)

    def ask() -> None:
        with requests.Session() as session:
            while not stop.is_set():
                answer = session.post(
                    f"{server.url}/v1/narrow/predict", data=photo, headers={"Content-Type": "image/jpeg"}, timeout=30
                )
                body = answer.json()
                model = body.get("model", {})
                answers.append((answer.status_code, model.get("version"), model.get("sha256")))
                assert body["predictions"][0]["kcode"] == "K-990003"

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        for _ in range(swaps):
            before = len(answers)
            _, statement = rollback("pills")
            wait_for(server.url, statement.model_version)
            while len(answers) < before + 2 * CLIENTS:
                time.sleep(0.01)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert {status for status, _, _ in answers} == {200}
    assert {(version, digest) for _, version, digest in answers} == set(two_champions.items())
    moves = sum(a != b for a, b in zip([v for _, v, _ in answers], [v for _, v, _ in answers[1:]], strict=False))
    assert moves >= swaps
    assert f"pillsnap_model_loads_total {swaps + 1}.0" in requests.get(f"{server.url}/metrics", timeout=10).text


def test_a_champion_that_was_tampered_with_raises_the_alarm(
    two_champions: dict[str, str], served: Any, gate: Any, tmp_path: Path
) -> None:
    server = start(served, gate)
    assert version_served(server.url) == "2"
    for path in tmp_path.glob("mlartifacts/exp/models/*/artifacts/model.onnx"):
        path.write_bytes(path.read_bytes() + b"\0")
    # past the gate: straight into the database, as whoever holds its password could
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'")
    for _ in range(200):
        state = requests.get(f"{server.url}/readyz", timeout=10).json()
        if state["refused"]:
            break
        time.sleep(0.05)
    assert state["refused"] == "not_proven"
    assert state["model"]["version"] == "2"
    assert server.post(jpeg(0)).json()["model"]["version"] == "2"
    assert "pillsnap_champion_refused 1.0" in requests.get(f"{server.url}/metrics", timeout=10).text
    assert "is not the one that was judged" in server.log.read_text()


def test_the_server_starts_without_the_registry(two_champions: dict[str, str], served: Any, gate: Any) -> None:
    first = start(served, gate)
    assert first.post(jpeg(1)).json()["model"]["version"] == "2"
    first.process.terminate()
    first.process.wait(timeout=40)
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PILLSNAP_TRUST_ROOT": str(gate.trust.folder)}
    second = served("--model", "models:/pills@champion", "--threads", "1", **away)
    state = requests.get(f"{second.url}/readyz", timeout=10).json()
    assert (state["registry"], state["kept_copy"], state["model"]["version"]) == ("down", True, "2")
    assert second.post(jpeg(1)).json()["predictions"][0]["kcode"] == "K-990002"
    assert requests.get(f"{second.url}/v1/narrow/info", timeout=10).json()["judgement"]["verdict"] == "PROMOTE"


def test_the_challenger_answers_in_the_shadow(
    two_champions: dict[str, str], candidate: Callable[..., str], served: Any, gate: Any
) -> None:
    version = candidate(wrong=1)  # it answers class 0 wrongly
    gate.judge(version)
    promote("pills", version, "challenger")
    server = start(served, gate, "--shadow")

    def outcomes() -> dict[str, float]:
        text = requests.get(f"{server.url}/metrics", timeout=10).text
        lines = [line for line in text.splitlines() if line.startswith("pillsnap_shadow_total")]
        return {line.split('"')[1]: float(line.split()[-1]) for line in lines}

    for label in (0, 1, 2):
        for _ in range(5):
            assert server.post(jpeg(label)).json()["predictions"][0]["kcode"] == f"K-99000{label + 1}"
            time.sleep(0.05)
    found = outcomes()
    assert found.get("differs", 0) >= 1
    assert found.get("agrees", 0) >= 1
    assert sum(found.values()) == 15
