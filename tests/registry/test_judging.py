"""The gate measures itself, signs, and judges the same case once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import ConfigError, DataError, EngineError, GateRefusedError, StoreError
from pillsnap.core.evidence import Comparison, Evidence
from pillsnap.core.files import sha256_file
from pillsnap.evaluation import card
from pillsnap.gate.decision import Verdict
from pillsnap.gate.envelope import ENVELOPE_TAG, ChampionRef
from pillsnap.gate.keys import generate, key_id_of, load_private_key, retire
from pillsnap.inference.session import PillSession
from pillsnap.registry import judging
from pillsnap.registry.judging import EXPERIMENT, candidates, judge
from pillsnap.registry.promotion import promote, submit
from pillsnap.registry.rules import HISTORY_TAG
from pillsnap.tracking.fetching import find_artifact
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.run_model import log_bundle
from pillsnap.tracking.store import connect

Candidate = Callable[..., str]


def judgements(store: MlflowClient) -> int:
    experiment = store.get_experiment_by_name(EXPERIMENT)
    return 0 if experiment is None else len(store.search_runs([experiment.experiment_id]))


def test_a_good_version(store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path) -> None:
    statement = gate.judge(candidate())
    assert (statement.verdict, statement.reasons, statement.champion, statement.replaces) == (
        Verdict.PROMOTE, (), None, None,
    )  # fmt: skip
    assert statement.figures["top1"] == "100.0 %"
    assert (statement.manifest_hash, statement.policy_sha256) == (gate.manifest.hash, gate.trust.policy().sha256)

    run = store.get_run(statement.evidence_run_id)
    assert (run.info.status, run.data.tags["pillsnap.kind"]) == ("FINISHED", "judgement")
    evidence = find_artifact(run.info.run_id, "evaluation/evidence.json", tmp_path / "e")
    assert sha256_file(evidence) == statement.evidence_sha256
    assert Evidence.load(evidence).bundle_sha256 == statement.bundle_sha256
    kept = find_artifact(run.info.run_id, "gate/envelope.json", tmp_path / "e").read_text()

    entry = store.get_model_version("pills", "1")
    assert entry.tags[ENVELOPE_TAG] == kept
    assert entry.tags["gate.decision"] == "PROMOTE"
    assert "top1 100.0 % · top5 100.0 %" in entry.tags["gate.details"]
    assert f"runs/{run.info.run_id}" in entry.description
    assert entry.description.startswith("PROMOTE · top-1 100.0 % (≥ 85) · real 100.0 % (≥ 80) · ")
    report = f"runs/{run.info.run_id}/artifacts/evaluation/report.html?workflowType=machine_learning)"
    assert report in entry.description, "MLflow opens the file, and not the folder"
    assert f"Version {entry.tags['gate.done_by'].split(';')[0]}; signed 20" in entry.description, "by whom, and when"
    names = ["gate.decision", "gate.details", "gate.digests", "gate.done_by", ENVELOPE_TAG]
    assert list(entry.tags) == sorted(entry.tags) == names, "the verdict first, in each order that MLflow shows"
    assert store.get_registered_model("pills").aliases == {}, "judging promotes nothing"


def test_a_long_card_leaves_room_for_the_link_to_the_report(
    store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "_limits", lambda *_: "x" * 5000)
    gate.judge(candidate())
    description = store.get_model_version("pills", "1").description
    assert len(description) <= 5000
    assert "…\n\n[Report with pictures](#/experiments/" in description


def test_mlflow_can_compare_what_was_judged(
    store: MlflowClient, candidate: Candidate, gate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """By the runs of the versions: each shows the gate's figures, what the bundle is, and the data set."""
    statement = gate.judge(candidate())
    entry = store.get_model_version("pills", "1")
    for run_id in (statement.evidence_run_id, entry.run_id):
        run = store.get_run(run_id)
        assert run.data.metrics["gate_top1"] == 1.0
        assert {"gate_real_top1", "gate_latency_p95_ms", "gate_size_mb"} < set(run.data.metrics)
        assert (run.data.params["bundle.backbone"], run.data.params["bundle.engine"]) == ("toy", "onnxruntime")
        [dataset] = run.inputs.dataset_inputs
        assert dataset.dataset.digest == gate.manifest.hash[:36]
        assert [tag.value for tag in dataset.tags] == ["test"]
    model = store.get_logged_model(str(entry.source).removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics}["gate_top1"] == 1.0
    assert {metric.run_id for metric in model.metrics} == {statement.evidence_run_id}
    assert {metric.dataset_digest for metric in model.metrics} == {gate.manifest.hash[:36]}
    assert not caplog.records


def test_attack_a_version_that_names_the_run_of_another(
    store: MlflowClient, candidate: Candidate, gate: Any, toys: SimpleNamespace, tmp_path: Path
) -> None:
    """The figures of a bad model are not written to a good one's run."""
    candidate()
    bad = store.get_model_version("pills", candidate(wrong=4))
    good = store.get_model_version("pills", "1").run_id
    store.create_model_version("pills", bad.source, run_id=good)
    assert gate.judge("3").verdict == Verdict.REJECT
    assert "gate_top1" not in store.get_run(good).data.metrics


@pytest.mark.parametrize(("wrong", "verdict"), [(1, Verdict.HOLD), (3, Verdict.REJECT)])
def test_what_falls_short(store: MlflowClient, candidate: Candidate, gate: Any, wrong: int, verdict: Verdict) -> None:
    statement = gate.judge(candidate(wrong))
    assert statement.verdict == verdict
    assert statement.reasons[0].startswith(f"top1 {100 - 100 * wrong / 6:.1f} % is under the")
    tags = store.get_model_version("pills", "1").tags
    assert (tags["gate.decision"], tags["gate.defects"]) == (str(verdict), "; ".join(statement.reasons))
    assert list(tags) == sorted(tags)


def test_the_same_case_is_judged_once(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    version = candidate()
    first = gate.judge(version)
    assert gate.judge(version) == first
    assert gate.judge("latest") == first
    assert judgements(store) == 1
    again = gate.judge(version, again=True)
    assert (again.replaces, again.verdict) == (first.decision_id, Verdict.PROMOTE)
    assert again.issued_at_ms > first.issued_at_ms
    assert judgements(store) == 2


def test_another_policy_or_champion_is_another_case(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    first = gate.judge(candidate())
    gate.set_policy(minimum_test_images={"total": 1000, "real": 5, "per_class": 1})
    second = gate.judge("1")
    assert (second.verdict, second.replaces) == (Verdict.HOLD, first.decision_id)
    assert any("60 are too few" in reason for reason in second.reasons)
    gate.set_policy(minimum_test_images={"total": 10, "real": 5, "per_class": 1})
    assert gate.judge("1").verdict == Verdict.PROMOTE

    rival = gate.judge(candidate())
    assert rival.champion is None
    promote("pills", "1")
    later = gate.judge("2")
    assert later.champion == ChampionRef(version="1", bundle_sha256=first.bundle_sha256)
    assert later.verdict == Verdict.PROMOTE


def test_a_rejected_one_is_not_measured_again_for_every_new_champion(
    store: MlflowClient, candidate: Candidate, gate: Any
) -> None:
    rejected = gate.judge(candidate(wrong=4))
    gate.judge(candidate())
    promote("pills", "2")
    assert gate.judge("1") == rejected
    held = gate.judge(candidate(wrong=1))
    assert held.champion is not None


def test_the_champion_is_not_its_own_rival(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    first = gate.judge(candidate())
    promote("pills", "1")
    assert gate.judge("1") == first
    gate.judge(candidate())
    second = gate.judge("2")
    promote("pills", "2")
    assert gate.judge("2") == second, "compared with version 1, and champion now"
    assert gate.judge("1") == first, "who was champion keeps its word, so that going back stays possible"


def test_a_worse_one_does_not_follow_a_better_one(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    gate.set_policy(at_least={name: {"target": 0.5, "minimum": 0.4} for name in ("top1", "top5", "real_top1")})
    gate.judge(candidate())
    promote("pills", "1")
    statement = gate.judge(candidate(wrong=2))
    assert statement.verdict == Verdict.HOLD
    assert any("champion" in reason for reason in statement.reasons), statement.reasons


def test_a_run_that_praises_itself(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    """Its own evidence, metrics and tags say 99 %: none of that is looked at."""
    version = candidate(wrong=5)
    entry = store.get_model_version("pills", version)
    store.log_metric(entry.run_id, "test_top1", 0.99)
    store.set_tag(entry.run_id, "gate.verdict", "PROMOTE")
    store.log_text(entry.run_id, json.dumps({"top1": 0.99}), "evaluation/evidence.json")
    assert gate.judge(version).verdict == Verdict.REJECT


def test_trained_on_another_manifest(candidate: Candidate, gate: Any) -> None:
    statement = gate.judge(candidate(manifest_hash="c" * 64))
    assert statement.verdict == Verdict.REJECT
    assert any("trained on" in reason for reason in statement.reasons), statement.reasons


def broken(toys: SimpleNamespace, kind: str, folder: Path, manifest_hash: str) -> Path:
    colors = toys.toy_colors(6)
    if kind == "nan":
        return Path(toys.save_bundle(folder / "b.onnx", colors, manifest_hash, nan=True))
    return Path(toys.save_bundle(folder / "b.onnx", colors[:3], manifest_hash))


@pytest.mark.parametrize(("kind", "said"), [("nan", "NaN"), ("classes", "3 classes in the bundle, 6 in the manifest")])
def test_what_cannot_be_measured_is_rejected(
    store: MlflowClient, gate: Any, toys: SimpleNamespace, tmp_path: Path, kind: str, said: str
) -> None:
    from pillsnap.registry.versions import register

    with tracked_run("candidate", experiment="exp") as run:
        log_bundle(run, broken(toys, kind, tmp_path, gate.manifest.hash))
    register(run.run_id, "pills")
    statement = gate.judge("1")
    assert statement.verdict == Verdict.REJECT
    assert said in statement.reasons[0]
    assert str(tmp_path) not in statement.reasons[0], "no path of the gate's machine"
    assert said in store.get_model_version("pills", "1").description
    assert gate.judge("1") == statement, "and it stays so without measuring again"


def test_a_manifest_that_does_not_fit_takes_no_good_word_away(
    store: MlflowClient, candidate: Candidate, gate: Any, toys: SimpleNamespace, tmp_path: Path
) -> None:
    """Else one wrong folder on the command line would take the champion out of service."""
    word = gate.judge(candidate())
    promote("pills", "1")
    other = toys.save_manifest(tmp_path / "other", toys.toy_colors(3), [(1, 1, "test", "real")])
    with pytest.raises(DataError, match=r"6 classes in the bundle, 3 in the manifest.*Its word \(PROMOTE\) stands"):
        judge(connect(), "pills", "1", other, gate.key, gate.trust, again=True)
    assert gate.judge("1") == word
    assert promote("pills", "1") == word


def test_a_champion_is_judged_again_by_itself(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    gate.judge(candidate())
    promote("pills", "1")
    second = gate.judge(candidate())
    promote("pills", "2")
    again = gate.judge("2", again=True)
    assert (again.verdict, again.reasons, again.replaces) == (Verdict.PROMOTE, (), second.decision_id)
    assert again.champion == second.champion, "the one that it followed"
    assert gate.judge(candidate()).champion.version == "2", "which others can still be compared with"


def test_a_promotion_while_the_gate_measures_stands_on_the_page(
    store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.judge(candidate())
    real = judging._measure

    def measure(*given: Any) -> Any:
        promote("pills", "1")
        return real(*given)

    monkeypatch.setattr(judging, "_measure", measure)
    gate.judge("1", again=True)
    entry = store.get_model_version("pills", "1")
    assert "; champion 20" in entry.description
    assert "; champion 20" in entry.tags[HISTORY_TAG]


def test_another_manifest_of_the_same_drugs_takes_no_champion_out_of_service(
    store: MlflowClient, candidate: Candidate, gate: Any, toys: SimpleNamespace, tmp_path: Path
) -> None:
    word = gate.judge(candidate())
    promote("pills", "1")
    grown = toys.save_manifest(
        tmp_path / "grown", toys.toy_colors(6), [(k, k, "test", "real") for n in range(11) for k in range(6)]
    )
    with pytest.raises(DataError, match=r"was trained on manifest .*Its word \(PROMOTE\) stands"):
        judge(connect(), "pills", "1", grown, gate.key, gate.trust, again=True)
    assert gate.judge("1") == word
    candidate()
    assert judge(connect(), "pills", "2", grown, gate.key, gate.trust).verdict == Verdict.REJECT


def unloadable(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    """The file of this digest needs what is not on this machine."""
    real = PillSession.load.__func__  # type: ignore[attr-defined]

    def load(cls: Any, bundle: Any, **options: Any) -> Any:
        if isinstance(bundle, Path) and sha256_file(bundle) == sha256:
            raise EngineError(f"{bundle}: is for engine 'openvino', and OpenVINO cannot be imported")
        return real(cls, bundle, **options)

    monkeypatch.setattr(PillSession, "load", classmethod(load))


def test_a_champion_that_does_not_load_here_is_no_fault_of_the_candidate(
    store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = gate.judge(candidate())
    promote("pills", "1")
    version = candidate()
    with monkeypatch.context() as lacking:
        unloadable(lacking, champion.bundle_sha256)
        with pytest.raises(
            GateRefusedError, match=r"the champion, which does not load on the gate's machine \(its file:"
        ):
            gate.judge(version)
    assert ENVELOPE_TAG not in store.get_model_version("pills", version).tags
    assert gate.judge(version).verdict == Verdict.PROMOTE


def test_an_engine_that_the_gate_lacks_is_no_fault_of_the_candidate(
    store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = candidate()
    unloadable(monkeypatch, sha256_file(tmp_path / "run-0" / "pillsnap.onnx"))
    with pytest.raises(GateRefusedError, match="cannot be judged on this machine: the model's file: is for engine"):
        gate.judge(version)
    assert ENVELOPE_TAG not in store.get_model_version("pills", version).tags


def test_what_had_nothing_in_common_with_a_champion_is_compared_with_the_next(
    store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.judge(candidate())
    promote("pills", "1")
    version = candidate()
    with monkeypatch.context() as strange:
        strange.setattr(
            "pillsnap.evaluation.evidence.compare", lambda *_: Comparison(champion_sha256="0" * 64, metrics={})
        )
        first = gate.judge(version)
    assert first.verdict == Verdict.REJECT
    assert all(reason.startswith("champion_") for reason in first.reasons)
    gate.judge(candidate())
    promote("pills", "3")
    assert gate.judge(version).verdict == Verdict.PROMOTE


def test_the_champions_own_file_is_not_held_back_beside_it(
    store: MlflowClient, candidate: Candidate, gate: Any
) -> None:
    from pillsnap.registry.versions import register

    gate.set_policy(champion__margin={"top1": 0.0001, "real_top1": 0.0001})
    gate.judge(candidate())
    promote("pills", "1")
    assert gate.judge(candidate()).verdict == Verdict.HOLD, "too few photos to say that it is no worse"
    run_id = store.get_model_version("pills", "1").run_id
    assert gate.judge(str(register(run_id, "pills").version)).verdict == Verdict.PROMOTE


def test_two_gates_at_once_leave_one_word(
    store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = candidate()
    real = judging.seal
    others = []

    def meanwhile(statement: Any, key: Any) -> str:
        monkeypatch.setattr(judging, "seal", real)
        others.append(gate.judge(version))  # the other gate is faster
        return real(statement, key)

    monkeypatch.setattr(judging, "seal", meanwhile)
    assert gate.judge(version) == others[0]
    assert others[0].decision_id in store.get_model_version("pills", version).tags["gate.digests"]


def test_a_key_that_nobody_trusts(store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    generate(tmp_path / "mine.key", tmp_path / "elsewhere", now=datetime.now(UTC))
    version = candidate()
    with pytest.raises(ConfigError, match=r"the private key is \w+, which is not trusted here \(trusted: \w+\)"):
        judge(connect(), "pills", version, gate.manifest, load_private_key(tmp_path / "mine.key"), gate.trust)
    assert judgements(store) == 0, "it is told before anything is measured"
    retire(gate.trust.keys_folder, key_id_of(gate.key.public_key()), now=datetime.now(UTC))
    with pytest.raises(ConfigError, match=r"does not sign now: retired on .* take another one"):
        gate.judge(version)
    assert ENVELOPE_TAG not in store.get_model_version("pills", version).tags
    with pytest.raises(ConfigError, match="cannot be read"):
        load_private_key(tmp_path / "none.key")


def test_a_champion_that_has_lost_its_proof(
    store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path
) -> None:
    gate.judge(candidate())
    promote("pills", "1")
    [stored] = list(tmp_path.glob("mlartifacts/exp/models/*/artifacts/model.onnx"))
    stored.write_bytes(stored.read_bytes() + b" ")
    with pytest.raises(GateRefusedError, match="cannot be compared with the champion, which has not proven itself"):
        gate.judge(candidate())


def test_the_mark(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    assert candidates(connect()) == []
    for _ in range(4):
        candidate()
    candidate(name="others")
    submit("pills", "2")
    store.set_registered_model_alias("pills", "candidate", "3")
    store.set_model_version_tag("pills", "4", "Candidate", "no")
    store.set_model_version_tag("others", "1", "CANDIDATE", "please")
    assert candidates(connect()) == [("others", "1"), ("pills", "2"), ("pills", "3")]


def test_a_registry_that_does_not_take_the_evidence(
    candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch, store: MlflowClient
) -> None:
    version = candidate()
    monkeypatch.setattr("pillsnap.tracking.run.TrackedRun.flush", lambda self: False)
    with pytest.raises(StoreError, match="does not take the evidence of pills; judge again later"):
        gate.judge(version)
    assert ENVELOPE_TAG not in store.get_model_version("pills", version).tags
    with pytest.raises(MlflowException):
        store.get_model_version_by_alias("pills", "champion")
