"""The loop that judges what is marked: once each, whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from fastapi.testclient import TestClient
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import StoreError
from pillsnap.gate.decision import Verdict
from pillsnap.gate.envelope import ENVELOPE_TAG
from pillsnap.registry import gate_service
from pillsnap.registry.gate_service import LONGEST_WAIT_S, WORKING, GateService, listener
from pillsnap.registry.promotion import promote, submit
from pillsnap.registry.versions import service_seen
from pillsnap.registry.webhooks import LARGEST
from pillsnap.tracking.fetching import MODEL_URI_TAG

Candidate = Callable[..., str]


@pytest.fixture
def service(gate: Any) -> GateService:
    return GateService(gate.manifest, gate.key, gate.trust, poll_s=60)


def test_what_is_marked_is_judged_once(store: MlflowClient, candidate: Candidate, service: GateService) -> None:
    candidate()
    candidate(wrong=4)
    assert service.look() == [], "nobody has asked"
    submit("pills", "1")
    store.set_registered_model_alias("pills", "candidate", "2")
    assert [statement.verdict for statement in service.look()] == [Verdict.PROMOTE, Verdict.REJECT]
    assert service.look() == []
    assert service.judged == 2


def test_a_word_that_has_grown_old_is_given_anew(
    store: MlflowClient, candidate: Candidate, service: GateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate()
    submit("pills", "1")
    [first] = service.look()
    assert service.look() == []
    for module in ("judging", "gate_service"):
        monkeypatch.setattr(f"pillsnap.registry.{module}.is_old", lambda word, _: word == first)
    [second] = service.look()
    assert second.replaces == first.decision_id
    assert service.look() == []


def test_what_a_library_cannot_fetch_does_not_stop_the_others(
    store: MlflowClient, candidate: Candidate, service: GateService
) -> None:
    """Any engineer can register such a source: without its client, or a login, the libraries raise what is theirs."""
    store.create_registered_model("pills")
    store.create_model_version("pills", "gs://bucket/model")
    submit("pills", "1")
    candidate()
    submit("pills", "2")
    [statement] = service.look()
    assert statement.model_version == "2"
    assert "its files cannot be had" in store.get_model_version("pills", "1").description


def test_what_nobody_expects_does_not_stop_the_others(
    store: MlflowClient, candidate: Candidate, service: GateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("1", "2"):
        candidate()
        submit("pills", number)
    real = gate_service.judge

    def judge(client: Any, name: str, version: str, *rest: Any, **options: Any) -> Any:
        if version == "1":
            raise AssertionError("a library's own")
        return real(client, name, version, *rest, **options)

    monkeypatch.setattr(gate_service, "judge", judge)
    assert [statement.model_version for statement in service.look()] == ["2"]
    assert "AssertionError: a library's own" in store.get_model_version("pills", "1").description


def test_another_gate_that_starts_anew_finds_it_done(
    store: MlflowClient, candidate: Candidate, service: GateService, gate: Any
) -> None:
    candidate()
    submit("pills", "1")
    [first] = service.look()
    again = GateService(gate.manifest, gate.key, gate.trust, poll_s=60)
    assert again.look() == []
    assert again.judged == 0
    assert first.decision_id in store.get_model_version("pills", "1").tags["gate.digests"]


def test_killed_in_the_middle(
    store: MlflowClient, candidate: Candidate, service: GateService, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate()
    submit("pills", "1")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # nothing of ours runs after it, as after kill -9

    with monkeypatch.context() as patch:
        patch.setattr("pillsnap.registry.judging._hand_in", killed)
        with pytest.raises(KeyboardInterrupt):
            service.look()
    entry = store.get_model_version("pills", "1")
    assert ENVELOPE_TAG not in entry.tags
    assert entry.description == WORKING.strip() or entry.description == WORKING
    [statement] = GateService(gate.manifest, gate.key, gate.trust, poll_s=60).look()
    entry = store.get_model_version("pills", "1")
    assert statement.decision_id in entry.tags["gate.digests"]
    assert "PROMOTE" in entry.description


def test_one_that_cannot_be_judged_stops_nobody(
    store: MlflowClient, candidate: Candidate, service: GateService, tmp_path: Path
) -> None:
    candidate()
    candidate()
    submit("pills", "1")
    submit("pills", "2")
    run_id = store.get_model_version("pills", "1").run_id
    model_id = store.get_run(run_id).data.tags[MODEL_URI_TAG].removeprefix("models:/")
    [stored] = tmp_path.glob(f"mlartifacts/exp/models/{model_id}/artifacts/model.onnx")
    was = stored.read_bytes()
    stored.unlink()
    assert [statement.model_version for statement in service.look()] == ["2"]
    said = store.get_model_version("pills", "1").description
    assert "The gate cannot judge this version" in said
    assert "holds no model.onnx" in said
    assert service.look() == [], "and it is not tried again every second"
    stored.write_bytes(was)
    assert GateService(service.manifest, service.key, service.trust, 60).look()[0].verdict == Verdict.PROMOTE


def test_one_that_could_not_be_judged_is_tried_again_ever_more_rarely(
    store: MlflowClient, candidate: Candidate, service: GateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate()
    submit("pills", "1")
    now_s, tried_s = 0.0, []
    service.clock_s = lambda: now_s

    def away(*_: object, **__: object) -> None:
        tried_s.append(now_s)
        raise StoreError("the store of the files does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(gate_service, "judge", away)
        while now_s < 2.5 * LONGEST_WAIT_S:
            service.look()
            now_s += 60
    assert tried_s[:4] == [0, 60, 180, 420]
    assert max(np.diff(tried_s)) == LONGEST_WAIT_S
    assert "does not answer" in store.get_model_version("pills", "1").description
    now_s += LONGEST_WAIT_S
    assert [statement.verdict for statement in service.look()] == [Verdict.PROMOTE]
    now_s += 2 * LONGEST_WAIT_S
    assert service.look() == []


def test_a_service_shows_that_it_is_there_and_not_more_often_than_needed(
    store: MlflowClient, candidate: Candidate, service: GateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, shown_s = 0.0, []
    show = gate_service.show_service
    service.clock_s = lambda: now_s

    def spy(client: MlflowClient) -> None:
        shown_s.append(now_s)
        show(client)

    monkeypatch.setattr(gate_service, "show_service", spy)
    candidate()
    assert service_seen(store) is None
    for _ in range(8):
        service.look()
        now_s += 100
    assert shown_s == [0, 600]
    assert service_seen(store) is not None
    candidate()
    submit("pills", "2")
    assert "The gate service was seen 20" in store.get_model_version("pills", "2").description
    assert len(service.look()) == 1
    assert shown_s == [0, 600, 800], "who waits is looked at: that is said before it is judged"

    monkeypatch.setattr(gate_service, "show_service", mock.Mock(side_effect=StoreError("for the role gate")))
    now_s += 600
    candidate()
    submit("pills", "3")
    assert len(service.look()) == 1, "what the registry does not take of it stops no judgement"


def test_a_service_that_measures_for_long_says_that_it_is_there(
    store: MlflowClient, candidate: Candidate, service: GateService, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, real = 0.0, gate_service.judge
    shown_s: list[float] = []
    service.clock_s = lambda: now_s
    monkeypatch.setattr(gate_service, "show_service", lambda _: shown_s.append(now_s))

    def slow_judge(*given: Any, progress: Callable[[int, int], None]) -> Any:
        def later(done: int, of: int) -> None:
            nonlocal now_s
            now_s += 600
            progress(done, of)

        return real(*given, progress=later)

    monkeypatch.setattr(gate_service, "judge", slow_judge)
    candidate()
    submit("pills", "1")
    assert len(service.look()) == 1
    assert shown_s[:2] == [0, 600]


def test_a_new_champion_makes_another_case_of_who_waits(
    store: MlflowClient, candidate: Candidate, service: GateService
) -> None:
    for version in (candidate(), candidate()):
        submit("pills", version)
    assert len(service.look()) == 2
    promote("pills", "1")
    [later] = service.look()
    assert (later.model_version, later.champion and later.champion.version) == ("2", "1")


def test_the_registry_away(
    service: GateService, candidate: Candidate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    candidate()
    submit("pills", "1")

    def away() -> MlflowClient:
        raise StoreError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(gate_service, "connect", away)
        assert service.look() == service.look() == []
        assert TestClient(listener(service, "s")).get("/healthz").json()["status"] == "waiting for the registry"
    assert caplog.text.count("the registry does not answer, waiting") == 1
    assert len(service.look()) == 1
    assert TestClient(listener(service, "s")).get("/healthz").json() == {"status": "ok", "judged": 1}


def test_it_waits_until_it_is_woken_and_ends_when_told(service: GateService, store: MlflowClient) -> None:
    looked = threading.Semaphore(0)
    looks = SimpleNamespace(n=0)

    def look() -> list[Any]:
        looks.n += 1
        looked.release()
        return []

    service.look = look  # type: ignore[method-assign]
    thread = threading.Thread(target=service.run)
    thread.start()
    assert looked.acquire(timeout=10)
    service.wake.set()
    assert looked.acquire(timeout=10)
    service.end()
    thread.join(10)
    assert not thread.is_alive()
    assert looks.n == 2


def test_attack_on_the_listener(service: GateService) -> None:
    client = TestClient(listener(service, "secret"))
    assert client.post("/webhook", content=b"{}").status_code == 403
    assert client.post("/webhook", content=b"x" * (LARGEST + 1)).status_code == 413
    assert client.get("/docs").status_code == 404
    assert not service.wake.is_set()
