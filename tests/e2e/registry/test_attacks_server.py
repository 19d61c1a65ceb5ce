"""Attacks through the registry's server, as those who could try them would: without a login, or as an engineer."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
import requests
from onnx import TensorProto, helper

MODEL, API = "pills", "/api/2.0/mlflow"
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def judged(registry: Any) -> tuple[str, str]:
    """A version that is good enough, and one that is not; both have the gate's word, neither is champion."""
    good, bad = registry.register(), registry.register(3)
    for version in (good, bad):
        assert registry.set_alias("erik", version, "candidate" if version == good else "Candidate").ok
    assert registry.judged(good) == "PROMOTE"
    assert registry.judged(bad) == "REJECT"
    return good, bad


ENDPOINTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", f"{API}/registered-models/alias", {"name": MODEL, "alias": "champion", "version": "1"}),
    ("DELETE", f"{API}/registered-models/alias", {"name": MODEL, "alias": "champion"}),
    ("POST", f"{API}/model-versions/set-tag", {"name": MODEL, "version": "1", "key": "gate.verdict", "value": "x"}),
    ("DELETE", f"{API}/model-versions/delete-tag", {"name": MODEL, "version": "1", "key": "gate.verdict"}),
    ("POST", f"{API}/model-versions/transition-stage", {
        "name": MODEL, "version": "1", "stage": "Production", "archive_existing_versions": True}),
    ("POST", f"{API}/registered-models/rename", {"name": MODEL, "new_name": "other"}),
    ("DELETE", f"{API}/registered-models/delete", {"name": MODEL}),
    ("DELETE", f"{API}/model-versions/delete", {"name": MODEL, "version": "1"}),
    ("POST", f"{API}/model-versions/create", {"name": MODEL, "source": "s3://x/y"}),
    ("PATCH", f"{API}/model-versions/update", {"name": MODEL, "version": "1", "description": "x"}),
    ("GET", f"{API}/registered-models/search", {}),
    ("GET", f"{API}/webhooks", {}),
    ("POST", f"{API}/webhooks", {"name": "x", "url": "http://127.0.0.1:1", "events": []}),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/models/m-1/artifacts/model.onnx", {}),
    ("POST", "/graphql", {"query": "query { mlflowSearchModelVersions(input: {}) { modelVersions { name } } }"}),
    ("GET", "/api/2.0/mlflow/users/list", {}),
]  # fmt: skip


@pytest.mark.parametrize("front", ["/api/", "/ajax-api/"])
@pytest.mark.parametrize(("method", "path", "body"), ENDPOINTS, ids=[f"{m} {p}" for m, p, _ in ENDPOINTS])
def test_attack_anonymous(registry: Any, judged: Any, method: str, path: str, body: dict[str, Any], front: str) -> None:
    answer = registry.ask(None, method, path.replace("/api/", front), json=body)
    assert answer.status_code == 401, answer.text[:300]


def test_attack_wrong_password(registry: Any, judged: Any) -> None:
    answer = requests.get(f"{registry.url}{API}/registered-models/search", auth=("rita", "guess"), timeout=30)
    assert answer.status_code == 401


@pytest.mark.parametrize("alias", ["champion", "challenger"])
def test_attack_engineer_promotes_a_good_version(registry: Any, judged: tuple[str, str], alias: str) -> None:
    answer = registry.set_alias("erik", judged[0], alias)
    assert answer.status_code == 403
    assert "erik is engineer" in answer.json()["message"]
    assert registry.champion() is None


@pytest.mark.parametrize("user", ["erik", "gate", "admin"])
def test_attack_others_use_the_old_stage(registry: Any, judged: Any, user: str) -> None:
    body = {"name": MODEL, "version": judged[0], "stage": "production", "archive_existing_versions": False}
    answer = registry.ask(user, "POST", f"{API}/model-versions/transition-stage", json=body)
    assert answer.status_code == 403
    assert registry.version(judged[0])["current_stage"] == "None"


@pytest.mark.parametrize("user", ["gate", "admin"])
def test_attack_who_signs_or_administers_does_not_promote(registry: Any, judged: Any, user: str) -> None:
    assert registry.set_alias(user, judged[0], "champion").status_code == 403


def test_attack_release_manager_promotes_what_was_rejected(registry: Any, judged: Any) -> None:
    answer = registry.set_alias("rita", judged[1], "champion")
    assert answer.status_code == 403
    assert "REJECT" in answer.json()["message"]


def test_a_release_manager_takes_an_alias_away_and_an_engineer_does_not(registry: Any, judged: Any) -> None:
    """Of a model that the engineer has made: MLflow itself would let only its maker."""
    assert registry.set_alias("rita", judged[0], "challenger").status_code == 200
    body = {"name": MODEL, "alias": "challenger"}
    answer = registry.ask("erik", "DELETE", f"{API}/registered-models/alias", json=body)
    assert (answer.status_code, "for the role release_manager" in answer.text) == (403, True)
    answer = registry.ask("rita", "DELETE", f"{API}/registered-models/alias", json=body)
    assert answer.status_code == 200, answer.text
    assert "challenger" not in registry.version(judged[0]).get("aliases", [])


@pytest.mark.parametrize("user", ["erik", "rita", "admin"])
def test_attack_true_envelope_by_another_hand(registry: Any, judged: Any, user: str) -> None:
    envelope = registry.tags(judged[0])["gate.envelope"]
    answer = registry.set_tag(user, judged[0], "gate.envelope", envelope)
    assert answer.status_code == 403
    assert "for the role gate" in answer.json()["message"]


def test_attack_other_versions_envelope_by_the_gates_login(registry: Any, judged: Any) -> None:
    good, bad = judged
    answer = registry.set_tag("gate", bad, "gate.envelope", registry.tags(good)["gate.envelope"])
    assert answer.status_code == 403
    assert registry.tags(bad)["gate.decision"] == "REJECT"


def test_attack_readable_tag_by_the_gates_own_login(registry: Any, judged: Any) -> None:
    """The store refuses it whoever asks; here the highest of those who could."""
    assert registry.set_tag("gate", judged[1], "gate.verdict", "PROMOTE").status_code == 403
    assert registry.tags(judged[1])["gate.decision"] == "REJECT"


def test_attack_oversize_tag(registry: Any, judged: Any) -> None:
    answer = registry.set_tag("gate", judged[1], "gate.envelope", "x" * 2_000_000)
    assert 400 <= answer.status_code < 500
    assert registry.ask(None, "GET", "/health").ok


@pytest.mark.parametrize("user", ["erik", "rita", "gate"])
def test_attack_webhooks_by_others_than_the_admin(registry: Any, judged: Any, user: str) -> None:
    assert registry.ask(user, "GET", f"{API}/webhooks").status_code == 403


@pytest.mark.parametrize("name", ["../../secrets.json", "..%2f..%2fsecrets.json", "%2e%2e/%2e%2e/users.db"])
def test_attack_path_that_leaves_the_artifacts(registry: Any, judged: Any, name: str) -> None:
    answer = registry.ask("admin", "GET", f"/api/2.0/mlflow-artifacts/artifacts/{name}")
    assert answer.status_code >= 400
    assert "SECRET" not in answer.text
    assert not answer.content.startswith(b"SQLite")


def test_attack_other_host_name(registry: Any, judged: Any) -> None:
    answer = registry.ask("rita", "GET", f"{API}/registered-models/search", headers={"Host": "evil.example"})
    assert answer.status_code == 403


def test_attack_page_of_another_origin(registry: Any, judged: Any) -> None:
    answer = registry.ask(
        "rita", "POST", f"{API}/registered-models/alias", headers={"Origin": "http://evil.example"},
        json={"name": MODEL, "alias": "champion", "version": judged[0]},
    )  # fmt: skip
    assert answer.status_code == 403
    assert registry.champion() is None


def test_attack_artifact_put_between_judgement_and_promotion(registry: Any, judged: Any) -> None:
    version = registry.register()
    registry.set_alias("erik", version, "candidate")
    assert registry.judged(version) == "PROMOTE"
    place = registry.model_file(version).relative_to(registry.home / "artifacts").as_posix()
    put = registry.ask("erik", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{place}", data=b"something else")
    assert put.ok, "MLflow lets whoever may edit overwrite artifacts: the alias is where it shows"
    answer = registry.set_alias("rita", version, "champion")
    assert answer.status_code == 403
    assert registry.champion() is None


def test_attack_secrets_in_logs_and_modes(registry: Any, judged: Any) -> None:
    secret = json.loads((registry.home / "secrets.json").read_text())
    hidden = [*secret.values(), (registry.home / "webhook.secret").read_text().strip()]
    hidden += [registry.password(user) for user in ("admin", "rita", "erik", "gate")]
    said = registry.log("server") + registry.log("gate")
    assert not [value for value in hidden if value in said]
    private = [path for path in registry.home.glob("*") if path.suffix in {".secret", ".json", ".ini"}]
    assert len(private) == 3
    for path in (*private, *(registry.home / "passwords").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    assert registry.home.stat().st_mode & 0o077 == 0


# ---- webhooks


def _signed(secret: str, body: bytes, delivery: str, when: float) -> dict[str, str]:
    content = f"{delivery}.{int(when)}.".encode() + body
    signature = base64.b64encode(hmac.new(secret.encode(), content, hashlib.sha256).digest()).decode()
    return {
        "X-MLflow-Signature": f"v1,{signature}",
        "X-MLflow-Timestamp": str(int(when)),
        "X-MLflow-Delivery-Id": delivery,
    }


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("unsigned", 403),
        ("forged", 403),
        ("late", 403),
        ("future", 403),
        ("changed", 403),
        ("huge", 413),
        ("true", 204),
    ],
)
def test_attack_webhook(registry: Any, judged: Any, case: str, status: int) -> None:
    secret = (registry.home / "webhook.secret").read_text().strip()
    body, now = b'{"entity": "model_version_alias"}', time.time()
    when = {"late": now - 3600, "future": now + 3600}.get(case, now)
    headers = {} if case == "unsigned" else _signed("guess" if case == "forged" else secret, body, f"id-{case}", when)
    sent = {"changed": body + b" ", "huge": b"x" * 300_000}.get(case, body)
    url = f"http://127.0.0.1:{registry.gate_port}/webhook"
    assert requests.post(url, data=sent, headers=headers, timeout=30).status_code == status


def test_attack_webhook_replayed_makes_no_second_decision(registry: Any, judged: Any) -> None:
    secret = (registry.home / "webhook.secret").read_text().strip()
    before = registry.tags(judged[0])["gate.digests"]
    headers = _signed(secret, b"{}", "again", time.time())
    for _ in range(5):
        url = f"http://127.0.0.1:{registry.gate_port}/webhook"
        assert requests.post(url, data=b"{}", headers=headers, timeout=30).status_code == 204
    time.sleep(3)
    assert registry.tags(judged[0])["gate.digests"] == before


# ---- files that are no model


def _custom_operator(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].domain = "evil.custom"
    model.opset_import.append(helper.make_opsetid("evil.custom", 1))
    path.write_bytes(model.SerializeToString())


def _external_data(path: Path) -> None:
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../../../etc/passwd")
    path.write_bytes(model.SerializeToString())


def _pickle(path: Path) -> None:
    path.write_bytes(b"cposix\nsystem\n(S'touch " + str(path.with_name("owned")).encode() + b"'\ntR.")


def _huge(path: Path) -> None:
    with open(path, "r+b") as stream:
        stream.truncate(3_000_000_000)  # a hole: takes no room on the disk


@pytest.mark.parametrize(
    "spoil",
    [_pickle, *(pytest.param(spoil, marks=pytest.mark.long) for spoil in (_custom_operator, _external_data, _huge))],
    ids=lambda f: f.__name__[1:],
)
def test_attack_file_that_is_no_bundle(registry: Any, judged: Any, spoil: Any) -> None:
    version = registry.register(change=spoil)
    registry.set_alias("erik", version, "candidate")
    end = time.monotonic() + 90
    while "cannot be judged" not in (told := json.dumps(registry.version(version))) and "cannot judge" not in told:
        assert time.monotonic() < end, told[:2000] + registry.log("gate")[-2000:]
        time.sleep(0.5)
    assert registry.tags(version).get("gate.decision", "REJECT") == "REJECT"
    assert registry.set_alias("rita", version, "champion").status_code == 403
    assert not registry.model_file(version).with_name("owned").exists()
    assert registry.processes["gate"].poll() is None, "one that cannot be judged does not stop the service"
    shutil.rmtree(registry.model_file(version).parent, ignore_errors=True)


def test_attack_champion_by_sql_is_refused_by_its_reader(registry: Any, judged: Any) -> None:
    from pillsnap.core.errors import PillSnapError
    from pillsnap.registry.champion import champion_session

    with sqlite3.connect(registry.home / "mlflow.db") as base:
        base.execute("INSERT INTO registered_model_aliases (name, alias, version) VALUES (?, 'champion', ?)",
                     (MODEL, judged[1]))  # fmt: skip
    try:
        with registry.login("erik"), pytest.raises(PillSnapError, match="REJECT"), champion_session(MODEL):
            pass
    finally:
        with sqlite3.connect(registry.home / "mlflow.db") as base:
            base.execute("DELETE FROM registered_model_aliases WHERE alias = 'champion'")
