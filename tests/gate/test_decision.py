from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.cli.main import cli
from pillsnap.core.errors import ConfigError, EvidenceError, GateRefusedError
from pillsnap.core.evidence import ClassResult, Comparison, Evidence, Latency, Metric
from pillsnap.core.files import sha256_file
from pillsnap.gate.decision import Decision, Status, Verdict, decide
from pillsnap.gate.policy import Policy

POLICY_FILE = Path(__file__).parents[2] / "registry" / "policy.yaml"
POLICY = Policy.load(POLICY_FILE)
BUNDLE, MANIFEST = "b" * 64, "m" * 64
GOOD = {"top1": 0.9, "top5": 0.97, "real_top1": 0.85, "latency_p95_ms": 40.0, "size_mb": 81.5}
SHARES = ("top1", "top5", "real_top1")
BAD_NUMBERS = [float("nan"), float("inf"), float("-inf"), -0.1]


def evidence_of(
    values: dict[str, float], *, images: int = 500, real: int = 350, per_class: int = 5, sittings: int = 30
) -> Evidence:
    counts = {"top1": images, "top5": images, "real_top1": real}
    return Evidence(
        bundle_sha256=BUNDLE,
        manifest_hash=MANIFEST,
        run_id="",
        created="2026-11-01T00:00:00+00:00",
        metrics={name: Metric(value=value, images=counts.get(name), groups=sittings) for name, value in values.items()},
        slices={},
        classes=tuple(
            ClassResult(kcode=f"K-{i:06d}", drug_name="d", images=n, top1=1.0, real_top1=None, confused_with=None)
            for i, n in enumerate((per_class, 9, 9))
        ),
        failures=(),
        confusions=(),
        latency=Latency(p50_ms=1, p95_ms=2, runs=200, image="i", threads=2, provider="CPU", hardware="Some CPU"),
        environment={},
    )


def judge(values: dict[str, float], **counts: int) -> Decision:
    return decide(evidence_of(values, **counts), POLICY, bundle_sha256=BUNDLE, manifest_hash=MANIFEST)


def test_all_targets_met_is_promoted() -> None:
    decision = judge(GOOD)
    assert decision.verdict == Verdict.PROMOTE
    assert decision.reasons == ()
    assert {check.status for check in decision.checks} == {Status.PASS}
    assert (decision.policy_sha256, decision.bundle_sha256, decision.manifest_hash) == (POLICY.sha256, BUNDLE, MANIFEST)


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("top1", 0.85, Verdict.PROMOTE), ("top1", 0.8499, Verdict.HOLD),
        ("top1", 0.80, Verdict.HOLD), ("top1", 0.7999, Verdict.REJECT),
        ("top5", 0.95, Verdict.PROMOTE), ("top5", 0.9499, Verdict.HOLD),
        ("top5", 0.92, Verdict.HOLD), ("top5", 0.9199, Verdict.REJECT),
        ("real_top1", 0.80, Verdict.PROMOTE), ("real_top1", 0.7999, Verdict.HOLD),
        ("real_top1", 0.75, Verdict.HOLD), ("real_top1", 0.7499, Verdict.REJECT),
        ("latency_p95_ms", 49.99, Verdict.PROMOTE), ("latency_p95_ms", 50.0, Verdict.HOLD),
        ("latency_p95_ms", 99.99, Verdict.HOLD), ("latency_p95_ms", 100.0, Verdict.REJECT),
        ("size_mb", 99.99, Verdict.PROMOTE), ("size_mb", 100.0, Verdict.HOLD),
        ("size_mb", 149.99, Verdict.HOLD), ("size_mb", 150.0, Verdict.REJECT),
    ],
)  # fmt: skip
def test_the_thresholds_to_the_last_digit(name: str, value: float, verdict: Verdict) -> None:
    decision = judge({**GOOD, name: value})
    assert decision.verdict == verdict
    assert len(decision.reasons) == (verdict != Verdict.PROMOTE)


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_figure_is_rejected(name: str) -> None:
    decision = judge({key: value for key, value in GOOD.items() if key != name})
    assert decision.verdict == Verdict.REJECT
    assert f"{name} was not measured; evaluate again" in decision.reasons


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", GOOD)
def test_an_impossible_figure_is_rejected(name: str, value: float, tmp_path: Path) -> None:
    decision = judge({**GOOD, name: value})
    assert decision.verdict == Verdict.REJECT
    assert any(reason.startswith(f"{name} is ") for reason in decision.reasons)
    decision.save(tmp_path / "decision.json")  # NaN is never written


@pytest.mark.parametrize(("name", "value"), [("top1", 1.01), ("top5", 85.0), ("size_mb", 0.0), ("latency_p95_ms", 0.0)])
def test_too_good_to_be_true_is_rejected(name: str, value: float) -> None:
    assert judge({**GOOD, name: value}).verdict == Verdict.REJECT


def test_another_bundle_or_manifest_is_rejected() -> None:
    evidence = evidence_of(GOOD)
    for bundle, manifest, named in (("c" * 64, MANIFEST, "another bundle"), (BUNDLE, "n" * 64, "another manifest")):
        decision = decide(evidence, POLICY, bundle_sha256=bundle, manifest_hash=manifest)
        assert decision.verdict == Verdict.REJECT
        assert named in decision.reasons[0]
    empty = evidence.model_copy(update={"bundle_sha256": "", "manifest_hash": ""})
    assert decide(empty, POLICY, bundle_sha256="", manifest_hash="").verdict == Verdict.REJECT


def test_another_version_of_evidence_is_rejected() -> None:
    evidence = evidence_of(GOOD).model_copy(update={"evidence_version": "1"})
    assert decide(evidence, POLICY, bundle_sha256=BUNDLE, manifest_hash=MANIFEST).verdict == Verdict.REJECT


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ({"images": 349}, "test_images: 349 are too few to judge, 350 needed"),
        ({"real": 249}, "real_test_images: 249 are too few"),
        ({"per_class": 2}, "images_per_class: 2 are too few to judge, 3 needed (test images a class; K-000000"),
        ({"per_class": 0}, "images_per_class: 0 are too few"),
        ({"sittings": 29}, "real_sittings: 29 are too few to judge, 30 needed"),
    ],
)
def test_too_few_test_images_hold_the_model_back(counts: dict[str, int], named: str) -> None:
    decision = judge(GOOD, **counts)
    assert decision.verdict == Verdict.HOLD
    assert decision.reasons[0].startswith(named)
    assert judge({**GOOD, "top1": 0.5}, **counts).verdict == Verdict.REJECT


def test_counts_that_are_not_told_are_too_few() -> None:
    evidence = evidence_of(GOOD)
    silent = evidence.model_copy(update={"metrics": {n: Metric(value=m.value) for n, m in evidence.metrics.items()}})
    assert decide(silent, POLICY, bundle_sha256=BUNDLE, manifest_hash=MANIFEST).verdict == Verdict.HOLD
    classless = evidence.model_copy(update={"classes": ()})
    assert decide(classless, POLICY, bundle_sha256=BUNDLE, manifest_hash=MANIFEST).verdict == Verdict.HOLD


def test_reasons_hold_the_figures() -> None:
    evidence = evidence_of({**GOOD, "latency_p95_ms": 61.25})
    metric = Metric(value=0.783, low=0.749, high=0.814, images=612, groups=60)
    evidence = evidence.model_copy(update={"metrics": {**evidence.metrics, "real_top1": metric}})
    decision = decide(evidence, POLICY, bundle_sha256=BUNDLE, manifest_hash=MANIFEST)
    assert decision.reasons == (
        "real_top1 78.3 % is under the target 80 % (minimum 75 %), 612 images, 95 % interval 74.9–81.4 %",
        "latency_p95_ms 61.2 ms is not under 50 ms, the target (minimum: under 100 ms), "
        "200 runs on Some CPU, 2 threads",
    )


def test_a_figure_is_never_shown_on_the_wrong_side_of_its_threshold() -> None:
    assert "84.96 %" in judge({**GOOD, "top1": 0.8496}).reasons[0]
    assert "79.996 %" in judge({**GOOD, "top1": 0.79996}).reasons[0]
    checks = {check.metric: check for check in judge({**GOOD, "latency_p95_ms": 49.98, "size_mb": 0.0004}).checks}
    assert checks["latency_p95_ms"].shown[0] == "49.98 ms"
    assert checks["size_mb"].shown[0] == "0.0004 MB"


def test_tables_show_every_check() -> None:
    decision = judge({**GOOD, "top1": 0.5, "real_top1": float("nan")}, images=80)
    for text in (decision.table(), decision.markdown()):
        for words in ("top1", "50.0 %", "≥ 85 %", "≥ 80 %", "MINIMUM MISSED", "MISSING", "40.0 ms", "< 50 ms", "80"):
            assert words in text
    assert len({line.index("≥") for line in decision.table().splitlines() if "≥" in line}) == 1
    assert "**Gate: REJECT**" in decision.markdown()
    assert all(f"- {reason}" in decision.markdown() for reason in decision.reasons)


def test_a_decision_is_kept(tmp_path: Path) -> None:
    decision = judge({**GOOD, "top1": 0.82})
    decision.save(tmp_path / "decision.json")
    assert Decision.load(tmp_path / "decision.json") == decision
    (tmp_path / "decision.json").write_text('{"verdict": "YES"}')
    with pytest.raises(EvidenceError, match="is not a decision"):
        Decision.load(tmp_path / "decision.json")
    with pytest.raises(EvidenceError, match="no such file"):
        Decision.load(tmp_path / "nothing.json")


RANK = {Verdict.REJECT: 0, Verdict.HOLD: 1, Verdict.PROMOTE: 2}
share = st.floats(0, 1)
cost = st.floats(0.001, 500)
values_strategy = st.fixed_dictionaries(
    {"top1": share, "top5": share, "real_top1": share, "latency_p95_ms": cost, "size_mb": cost}
)
near = st.fixed_dictionaries(
    {
        "top1": st.floats(0.78, 1),
        "top5": st.floats(0.9, 1),
        "real_top1": st.floats(0.73, 1),
        "latency_p95_ms": st.floats(1, 110),
        "size_mb": st.floats(1, 160),
    }
)
counts_strategy = st.fixed_dictionaries(
    {
        "images": st.integers(0, 700),
        "real": st.integers(0, 500),
        "per_class": st.integers(0, 6),
        "sittings": st.integers(0, 60),
    }
)


@given(values_strategy | near, st.sampled_from(list(GOOD)), st.floats(0, 1), counts_strategy)
def test_a_worse_figure_never_gives_a_better_verdict(
    values: dict[str, float], name: str, how_much: float, counts: dict[str, int]
) -> None:
    value = values[name]
    worse = value * (1 - how_much) if name in SHARES else value + 500 * how_much
    assert RANK[judge({**values, name: worse}, **counts).verdict] <= RANK[judge(values, **counts).verdict]


@given(values_strategy | near, counts_strategy, st.sampled_from(["images", "real", "per_class", "sittings"]))
def test_fewer_images_never_give_a_better_verdict(values: dict[str, float], counts: dict[str, int], name: str) -> None:
    fewer = {**counts, name: counts[name] // 2}
    assert RANK[judge(values, **fewer).verdict] <= RANK[judge(values, **counts).verdict]


@given(near, st.sampled_from(list(GOOD)), st.sampled_from([*BAD_NUMBERS, None]))
def test_no_bad_number_is_ever_promoted(values: dict[str, float], name: str, bad: float | None) -> None:
    changed = {key: value for key, value in values.items() if key != name}
    assert judge(changed if bad is None else {**values, name: bad}).verdict == Verdict.REJECT


@pytest.fixture
def case(toys: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    manifest = toys.save_manifest(tmp_path / "manifest", toys.toy_colors(3), [(0, 0, "test", "real")])
    bundle = toys.save_bundle(tmp_path / "model.onnx", toys.toy_colors(3), manifest.hash)

    def call(values: dict[str, float], *more: str, **changes: Any) -> Result:
        update = {"bundle_sha256": sha256_file(bundle), "manifest_hash": manifest.hash, **changes}
        evidence_of(values).model_copy(update=update).save(tmp_path / "evidence.json")
        arguments = ["gate", str(tmp_path / "evidence.json"), "--bundle", str(bundle), "--manifest", str(manifest.root)]
        return CliRunner().invoke(cli, [*arguments, *more])

    return SimpleNamespace(call=call, out=tmp_path / "decision.json", folder=tmp_path)


def test_command_promotes_with_0(case: SimpleNamespace) -> None:
    done = case.call(GOOD, "--policy", str(POLICY_FILE), "--out", str(case.out))
    assert done.exit_code == 0, done.output
    assert "verdict: PROMOTE" in done.output
    assert Decision.load(case.out).verdict == Verdict.PROMOTE


@pytest.mark.parametrize(("top1", "verdict"), [(0.82, Verdict.HOLD), (0.5, Verdict.REJECT)])
def test_command_refuses_with_reasons_after_it_has_written(
    case: SimpleNamespace, top1: float, verdict: Verdict
) -> None:
    done = case.call({**GOOD, "top1": top1}, "--policy", str(POLICY_FILE), "--out", str(case.out))
    assert isinstance(done.exception, GateRefusedError)
    assert done.exception.exit_status == 1
    assert f"the gate says {verdict}:\n  - top1 {top1 * 100:.1f} % is under" in str(done.exception)
    assert Decision.load(case.out).verdict == verdict
    assert f"verdict: {verdict}" in done.output


def test_command_rejects_another_file(case: SimpleNamespace) -> None:
    done = case.call(GOOD, "--policy", str(POLICY_FILE), bundle_sha256=BUNDLE)
    assert isinstance(done.exception, GateRefusedError)
    assert "another bundle" in str(done.exception)


def test_command_asks_for_the_comparison_with_the_champion(case: SimpleNamespace) -> None:
    champion = case.folder / "champion.onnx"
    champion.write_bytes(b"whatever stands there now")
    arguments = ("--policy", str(POLICY_FILE), "--champion", str(champion))
    done = case.call(GOOD, *arguments)
    assert isinstance(done.exception, GateRefusedError)
    assert "was not compared with the champion" in str(done.exception)
    paired = {"difference": 0.0, "low": -0.01, "high": 0.01, "images": 400, "groups": 40}
    paired |= {"only_candidate": 1, "only_champion": 1, "p_value": 1.0}
    comparison = {"champion_sha256": sha256_file(champion), "metrics": {"top1": paired, "real_top1": paired}}
    done = case.call(GOOD, *arguments, comparison=Comparison.model_validate(comparison))
    assert done.exit_code == 0, done.output
    assert "champion_top1" in done.output


def test_attack_with_another_manifest_on_the_command_line(case: SimpleNamespace, toys: SimpleNamespace) -> None:
    other = toys.save_manifest(case.folder / "other", toys.toy_colors(3), [(1, 1, "test", "real")])
    more = ("--policy", str(POLICY_FILE), "--manifest", str(other.root))  # the last one counts
    done = case.call(GOOD, *more, manifest_hash=other.hash)
    assert isinstance(done.exception, GateRefusedError)
    assert "it may have seen the test images" in str(done.exception)


def test_command_without_a_policy_is_wrong_use(case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.folder)
    done = case.call(GOOD)
    assert isinstance(done.exception, ConfigError)
    assert "--policy" in str(done.exception)


def test_command_takes_nan_in_evidence_for_a_refusal(case: SimpleNamespace) -> None:
    case.call(GOOD)
    path = case.folder / "evidence.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["metrics"]["top1"]["value"] = float("nan")
    path.write_text(json.dumps(document), encoding="utf-8")
    arguments = ["gate", str(path), "--bundle", str(case.folder / "model.onnx"), "--policy", str(POLICY_FILE)]
    done = CliRunner().invoke(cli, [*arguments, "--manifest", str(case.folder / "manifest")])
    assert isinstance(done.exception, GateRefusedError)
    assert "top1 is nan" in str(done.exception)
