"""MLflow's own web application on the plain URI, as if every flag was forgotten: REST, ajax-api, GraphQL, PUT."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pillsnap.gate.envelope import ENVELOPE_TAG, seal

API = ("/api/2.0/mlflow", "/ajax-api/2.0/mlflow")
MODEL = b"onnx of the server"


@pytest.fixture
def bad(shelf: Any, served: Any) -> str:
    """A rejected version beside a champion, both behind the server's artifact proxy."""
    for verdict in ("PROMOTE", "REJECT"):
        path = f"models/{verdict}/artifacts"
        put(served, f"{path}/model.onnx", MODEL + verdict.encode())
        put(served, f"{path}/MLmodel", b"flavors: {}")
        version = shelf.registered(f"mlflow-artifacts:/{path}")
        shelf.hand_in(shelf.statement(version, verdict), version)
    answer = ask_alias(served, "champion", "1")
    assert (answer.status_code, answer.json) == (200, {})
    assert shelf.champion() == "1"
    return "2"


def put(served: Any, path: str, data: bytes) -> None:
    answer = served("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}", data=data)
    assert answer.status_code == 200, answer.text


def ask_alias(served: Any, alias: str, version: str, api: str = API[0]) -> Any:
    return served("POST", f"{api}/registered-models/alias", {"name": "pills", "alias": alias, "version": version})


def test_attack_the_alias_over_the_network(shelf: Any, served: Any, bad: str) -> None:
    for api in API:
        for alias in ("champion", "Champion"):
            answer = ask_alias(served, alias, bad, api)
            assert (answer.status_code, answer.json["error_code"]) == (403, "PERMISSION_DENIED")
            assert "REJECT" in answer.json["message"] or "looks like" in answer.json["message"]
        stage = {"name": "pills", "version": bad, "stage": "Production", "archive_existing_versions": True}
        answer = served("POST", f"{api}/model-versions/transition-stage", stage)
        assert (answer.status_code, "REJECT" in answer.json["message"]) == (403, True)
        tag = {"name": "pills", "version": bad, "key": "gate.verdict", "value": "PROMOTE"}
        assert served("POST", f"{api}/model-versions/set-tag", tag).status_code == 403
        assert served("DELETE", f"{api}/model-versions/delete-tag", {**tag, "value": None}).status_code == 403
        assert served("POST", f"{api}/registered-models/set-tag", tag).status_code == 403
    assert shelf.champion() == "1"
    assert shelf.problems() == []


def test_attack_every_route_that_writes_with_everything(shelf: Any, served: Any, bad: str) -> None:
    """Also those that a later MLflow adds. Whatever they answer: the champion and the gate's tags stay."""
    from mlflow.server import app

    body = {
        "name": "pills", "version": bad, "alias": "champion", "key": "gate.verdict", "value": "PROMOTE",
        "stage": "Production", "archive_existing_versions": True, "source": "mlflow-artifacts:/models/REJECT/artifacts",
        "tags": [{"key": "gate.verdict", "value": "PROMOTE"}], "aliases": ["champion"], "new_name": "other",
        "description": "**Gate: PROMOTE**", "tag": {"key": "gate.verdict", "value": "PROMOTE"},
    }  # fmt: skip
    before, tried = shelf.tags(bad), 0
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) & {"POST", "PUT", "PATCH", "DELETE"}):
            if not any(word in rule.rule for word in ("registered-models", "model-versions", "prompts", "graphql")):
                continue
            if rule.arguments or rule.rule.endswith("model-versions/delete"):  # who was rejected may go
                continue
            tried += 1
            served(method, rule.rule, body)
            if shelf.champion() is None:  # there is a role for that; here nobody asks for roles
                assert rule.rule.endswith("registered-models/alias")
                assert method == "DELETE"
                assert ask_alias(served, "champion", "1").status_code == 200
            assert shelf.champion() == "1", (method, rule.rule)
            assert {key: value for key, value in shelf.tags(bad).items() if key.startswith("gate.")} == before
    assert tried > 20
    assert shelf.store.get_model_version("pills", bad).current_stage == "None"
    assert shelf.problems() == []


def test_attack_graphql(shelf: Any, served: Any, bad: str) -> None:
    """It reads, and its one mutation has nothing to do with the registry."""
    schema = served("POST", "/graphql", {"query": "{__schema{mutationType{fields{name}}}}"}).json
    fields = [field["name"] for field in schema["data"]["__schema"]["mutationType"]["fields"]]
    assert not [name for name in fields if any(word in name.lower() for word in ("alias", "registered", "version"))]
    for field in ("setRegisteredModelAlias", "mlflowSetRegisteredModelAlias"):
        wish = f'{field}(input: {{name: "pills", alias: "champion", version: "{bad}"}})'
        query = f"mutation {{ {wish} {{ apiError {{ message }} }} }}"
        assert served("POST", "/graphql", {"query": query}).json.get("errors")
    assert shelf.champion() == "1"


def test_attack_put_on_the_files_of_a_judged_version(shelf: Any, served: Any, bad: str) -> None:
    put(served, "models/REJECT/artifacts/model.onnx", b"something else")
    shelf_before = shelf.tags(bad)
    with pytest.raises(MlflowException, match="is not the one that was judged"):
        shelf.hand_in(seal(shelf.statement(bad, bundle_sha256="0" * 64), shelf.key), bad)
    put(served, "models/PROMOTE/artifacts/model.onnx", b"something else")
    answer = ask_alias(served, "champion", "1")
    assert (answer.status_code, "was changed afterwards" in answer.json["message"]) == (403, True)
    assert shelf.tags(bad) == shelf_before


OUTSIDE = ["../../../etc/evil", "%2e%2e/%2e%2e/evil", "..%2f..%2fevil", "a/%252e%252e/evil", "../evil", "..%2fevil"]


def test_attack_a_path_that_leaves_the_artifacts(shelf: Any, served: Any, bad: str, tmp_path: Any) -> None:
    for path in OUTSIDE:
        answer = served("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}", data=b"evil")
        assert answer.status_code in (400, 404, 405, 308, 200)
    assert not [found for found in tmp_path.rglob("evil") if (tmp_path / "destination") not in found.parents]
    (tmp_path / "evil").write_text("SECRET")  # beside the folder of the artifacts
    for path in OUTSIDE:
        answer = served("GET", f"/api/2.0/mlflow-artifacts/artifacts/{path}")
        assert b"SECRET" not in answer.data
    assert ask_alias(served, "champion", "1").status_code == 200


def test_attack_tags_at_creation(shelf: Any, served: Any, bad: str) -> None:
    forged = {
        "name": "pills", "source": "mlflow-artifacts:/models/REJECT/artifacts",
        "tags": [{"key": ENVELOPE_TAG, "value": shelf.tags("1")[ENVELOPE_TAG]}],
    }  # fmt: skip
    answer = served("POST", f"{API[0]}/model-versions/create", forged)
    assert answer.status_code in (400, 403), answer.text
    answer = served("POST", f"{API[0]}/registered-models/create", {**forged, "name": "new"})
    assert (answer.status_code, answer.json["error_code"]) == (403, "PERMISSION_DENIED")
    assert len(shelf.store.search_model_versions()) == 2


NO_REQUESTS = [b"", b"{", b"[]", b'{"name": 1}', b"\xff", b'{"name": "pills", "alias": "\\ud800"}']


def test_attack_bodies_that_are_no_request(shelf: Any, served: Any, bad: str) -> None:
    for body in NO_REQUESTS:
        for path in ("registered-models/alias", "model-versions/set-tag", "model-versions/transition-stage"):
            assert served("POST", f"{API[0]}/{path}", data=body).status_code >= 400
        assert shelf.champion() == "1"
    assert ask_alias(served, "champion", "1").status_code == 200


def test_attack_an_oversize_tag(shelf: Any, served: Any, bad: str) -> None:
    for size in (100_001, 5_000_000):
        tag = {"name": "pills", "version": bad, "key": ENVELOPE_TAG, "value": "x" * size}
        assert served("POST", f"{API[0]}/model-versions/set-tag", tag).status_code in (400, 403)
    assert shelf.champion() == "1"


def test_an_honest_word_over_the_network(shelf: Any, served: Any, bad: str) -> None:
    word = seal(shelf.statement(bad, "PROMOTE"), shelf.key)
    tag = {"name": "pills", "version": bad, "key": ENVELOPE_TAG, "value": word}
    assert served("POST", f"{API[1]}/model-versions/set-tag", tag).status_code == 200
    assert ask_alias(served, "champion", bad, API[1]).status_code == 200
    shown = served("GET", f"{API[0]}/model-versions/get?name=pills&version={bad}").json["model_version"]
    assert {"key": "gate.decision", "value": "PROMOTE"} in shown["tags"]
    assert shown["aliases"] == ["champion"]
    assert json.loads(shelf.store.get_registered_model("pills").tags["gate.former_champions"]) == ["2", "1"]
