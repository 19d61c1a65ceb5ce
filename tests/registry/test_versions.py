"""What the registry's versions and aliases let through, and what not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import BundleError, ConfigError, EvidenceError, GateRefusedError, StoreError
from pillsnap.core.files import sha256_file
from pillsnap.gate.decision import Verdict
from pillsnap.gate.policy import Policy
from pillsnap.registry.versions import champion_session, find_version, list_versions, promote, register
from pillsnap.tracking.models import MODEL_URI_TAG, fetched_bundle
from pillsnap.tracking.run import tracked_run

POLICY = Policy.load(Path(__file__).parents[2] / "registry" / "policy.yaml")
HOLD = {"top1": 0.82}
REJECT = {"top1": 0.31, "real_top1": 0.2}
Candidate = Callable[..., str]


def alias_of(store: MlflowClient, alias: str = "champion", name: str = "pills") -> str | None:
    try:
        return str(store.get_model_version_by_alias(name, alias).version)
    except MlflowException:
        return None


def stored_onnx(tmp_path: Path, store: MlflowClient, run_id: str) -> Path:
    """Where the artifact store keeps a run's bundle."""
    model_id = store.get_run(run_id).data.tags[MODEL_URI_TAG].removeprefix("models:/")
    [path] = tmp_path.glob(f"mlartifacts/exp/models/{model_id}/artifacts/model.onnx")
    return path


def test_registering_writes_down_what_the_gate_says(store: MlflowClient, candidate: Candidate) -> None:
    run_id = candidate()
    judged = register(run_id, "pills", POLICY)
    assert (judged.name, judged.version, judged.decision.verdict) == ("pills", "1", Verdict.PROMOTE)
    entry = store.get_model_version("pills", "1")
    assert entry.run_id == run_id
    assert entry.tags["gate.verdict"] == "PROMOTE"
    assert entry.tags["gate.reasons"] == "every target is met"
    assert entry.tags["gate.top1"] == "90.0 %"
    assert entry.tags["gate.policy_sha256"] == POLICY.sha256
    with fetched_bundle("models:/pills/1") as kept:
        assert entry.tags["gate.bundle_sha256"] == sha256_file(kept)
    assert "| top1 | 90.0 % |" in entry.description
    assert run_id in entry.description
    assert alias_of(store) is None, "registering promotes nothing"
    assert register(candidate(), "pills", POLICY).version == "2"


def test_registering_is_open_to_every_run(store: MlflowClient, candidate: Candidate) -> None:
    judged = register(candidate(**REJECT), "pills", POLICY)
    assert judged.decision.verdict == Verdict.REJECT
    tags = store.get_model_version("pills", judged.version).tags
    assert tags["gate.verdict"] == "REJECT"
    assert "top1 31.0 % is under the minimum 80 %" in tags["gate.reasons"]


def test_a_good_version_becomes_champion_and_answers(
    store: MlflowClient, candidate: Candidate, toys: SimpleNamespace
) -> None:
    register(candidate(), "pills", POLICY)
    assert promote("pills", "1", "champion", POLICY).decision.verdict == Verdict.PROMOTE
    assert alias_of(store) == "1"
    with champion_session("pills") as (session, version):
        assert version == "1"
        assert len(session.metadata.classes) == 3
    register(candidate(), "pills", POLICY)
    assert promote("pills", "latest", "champion", POLICY).version == "2"
    assert alias_of(store) == "2"
    assert promote("pills", "1", "champion", POLICY).version == "1", "back to the former one"
    assert [(entry.version, aliases) for entry, aliases in list_versions("pills")] == [(2, ()), (1, ("champion",))]


@pytest.mark.parametrize(
    ("figures", "alias", "reasons"),
    [
        (HOLD, "champion", ["HOLD", "top1 82.0 % is under the target 85 %", "500 images"]),
        (REJECT, "champion", ["REJECT", "top1 31.0 % is under the minimum 80 %", "real_top1 20.0 %", "350 images"]),
        (REJECT, "challenger", ["REJECT", "top1 31.0 %", "real_top1 20.0 % is under the minimum 75 %"]),
        ({"latency_p95_ms": 120.0}, "challenger", ["latency_p95_ms 120.0 ms is not under 100 ms"]),
    ],
)
def test_refused(
    store: MlflowClient, candidate: Candidate, figures: dict[str, float], alias: str, reasons: list[str]
) -> None:
    register(candidate(), "pills", POLICY)
    promote("pills", "1", alias, POLICY)
    register(candidate(**figures), "pills", POLICY)
    with pytest.raises(GateRefusedError, match=f"pills version 2 does not become {alias}") as caught:
        promote("pills", "2", alias, POLICY)
    for reason in reasons:
        assert reason in str(caught.value)
    assert alias_of(store, alias) == "1", "the former one stays"


def test_hold_may_challenge(store: MlflowClient, candidate: Candidate) -> None:
    register(candidate(**HOLD), "pills", POLICY)
    assert promote("pills", "1", "challenger", POLICY).decision.verdict == Verdict.HOLD
    assert (alias_of(store, "challenger"), alias_of(store)) == ("1", None)
    with champion_session("pills", "challenger") as (_, version):
        assert version == "1"


def test_forged_tags_do_not_help(store: MlflowClient, candidate: Candidate) -> None:
    register(candidate(**REJECT), "pills", POLICY)
    for key, value in {"gate.verdict": "PROMOTE", "gate.top1": "99.9 %", "gate.reasons": "every target is met"}.items():
        store.set_model_version_tag("pills", "1", key, value)
    with pytest.raises(GateRefusedError, match="REJECT"):
        promote("pills", "1", "champion", POLICY)
    tags = store.get_model_version("pills", "1").tags
    assert (tags["gate.verdict"], tags["gate.top1"]) == ("REJECT", "31.0 %"), "and they are set right"


def test_evidence_of_another_bundle(store: MlflowClient, candidate: Candidate) -> None:
    judged = register(candidate(bundle_sha256="b" * 64), "pills", POLICY)
    assert judged.decision.verdict == Verdict.REJECT
    with pytest.raises(GateRefusedError, match="the evidence is of another bundle"):
        promote("pills", "1", "champion", POLICY)


def test_evidence_of_another_manifest(store: MlflowClient, candidate: Candidate) -> None:
    register(candidate(manifest_hash="c" * 64), "pills", POLICY)
    with pytest.raises(GateRefusedError, match="the evidence is of another manifest"):
        promote("pills", "1", "challenger", POLICY)


def test_a_version_made_past_us_with_a_good_runs_id(store: MlflowClient, candidate: Candidate) -> None:
    """By hand: the bundle of a bad run under the run of a good one. The evidence does not fit the bytes."""
    good, bad = candidate(), candidate(**REJECT)
    store.create_registered_model("pills")
    store.create_model_version("pills", store.get_run(bad).data.tags[MODEL_URI_TAG], run_id=good)
    with pytest.raises(GateRefusedError, match="the evidence is of another bundle"):
        promote("pills", "1", "champion", POLICY)


def test_an_alias_set_by_hand_is_not_served(store: MlflowClient, candidate: Candidate) -> None:
    register(candidate(**HOLD), "pills", POLICY)
    store.set_registered_model_alias("pills", "champion", "1")
    with (
        pytest.raises(GateRefusedError, match="its verdict is HOLD: the alias was set past"),
        champion_session("pills"),
    ):
        pass
    store.delete_model_version_tag("pills", "1", "gate.verdict")
    with pytest.raises(GateRefusedError, match="its verdict is none"), champion_session("pills"):
        pass


def test_bytes_changed_after_the_judgement(
    store: MlflowClient, candidate: Candidate, toys: SimpleNamespace, tmp_path: Path
) -> None:
    run_id = candidate()
    register(run_id, "pills", POLICY)
    promote("pills", "1", "champion", POLICY)
    toys.save_bundle(stored_onnx(tmp_path, store, run_id), toys.toy_colors(3)[::-1], "a" * 64)
    with pytest.raises(GateRefusedError, match="is not the one that the gate judged"), champion_session("pills"):
        pass
    with pytest.raises(GateRefusedError, match="the evidence is of another bundle"):
        promote("pills", "1", "champion", POLICY)
    stored_onnx(tmp_path, store, run_id).write_bytes(b"not a model any more")
    with pytest.raises(BundleError), champion_session("pills"):
        pass


def test_evidence_that_is_gone_or_damaged(store: MlflowClient, candidate: Candidate, tmp_path: Path) -> None:
    run_id = candidate()
    register(run_id, "pills", POLICY)
    [evidence] = tmp_path.glob(f"mlartifacts/exp/{run_id}/artifacts/evaluation/evidence.json")
    evidence.write_text("{}")
    with pytest.raises(EvidenceError, match="is not evidence"):
        promote("pills", "1", "champion", POLICY)
    evidence.unlink()
    with pytest.raises(EvidenceError, match="was never evaluated, or the store lost it"):
        promote("pills", "1", "champion", POLICY)
    assert alias_of(store) is None


def test_a_stricter_policy_is_asked_anew(store: MlflowClient, candidate: Candidate) -> None:
    register(candidate(), "pills", POLICY)
    document = POLICY.model_dump()
    document["at_least"]["top1"] = {"target": 0.95, "minimum": 0.5}
    strict = Policy.model_validate(document)
    with pytest.raises(GateRefusedError, match=r"top1 90\.0 % is under the target 95 %"):
        promote("pills", "1", "champion", strict)
    assert store.get_model_version("pills", "1").tags["gate.policy_sha256"] == strict.sha256


def test_runs_that_cannot_be_registered(store: MlflowClient, candidate: Candidate) -> None:
    with pytest.raises(StoreError, match=r"f{32}"):
        register("f" * 32, "pills", POLICY)
    with tracked_run("only trained", experiment="exp") as run:
        pass
    with pytest.raises(StoreError, match="has no bundle; a run that exports and evaluates"):
        register(run.run_id, "pills", POLICY)
    store.set_tag(run.run_id, MODEL_URI_TAG, "models:/m-0")
    with pytest.raises(EvidenceError, match=r"has no evaluation/evidence\.json"):
        register(run.run_id, "pills", POLICY)
    assert store.search_registered_models() == []


def test_what_is_not_there(store: MlflowClient, candidate: Candidate) -> None:
    with pytest.raises(StoreError, match="the registry has no model 'pills'"):
        promote("pills", "1", "champion", POLICY)
    with pytest.raises(StoreError, match="the registry has no champion of 'pills'"), champion_session("pills"):
        pass
    register(candidate(), "pills", POLICY)
    register(candidate(), "pills", POLICY)
    for version in ("7", "newest", ""):
        with pytest.raises(StoreError, match=f"pills has no version {version}; there are 1, 2"):
            promote("pills", version, "champion", POLICY)
    with pytest.raises(ConfigError, match="--alias 'Champion': the gate knows champion and challenger"):
        promote("pills", "1", "Champion", POLICY)
    with pytest.raises(StoreError, match=r"no champion of .*set one with: pillsnap"), champion_session("pills"):
        pass
    with pytest.raises(ConfigError, match="quotation mark"):
        find_version(store, "pills' or name = 'x", "1")
    with pytest.raises(StoreError, match="no model 'none'"):
        list_versions("none")


def test_the_registry_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError):
        register("f" * 32, "pills", POLICY)
    with pytest.raises(StoreError):
        promote("pills", "1", "champion", POLICY)
    with pytest.raises(StoreError), champion_session("pills"):
        pass
