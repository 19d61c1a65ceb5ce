from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from pillsnap.core.evidence import Comparison, Metric
from pillsnap.gate.decision import Status, Verdict
from pillsnap.gate.policy import JudgeBy

NAN = float("nan")


def expect(decision: Any, verdict: Verdict, reason: str) -> None:
    """The verdict, and exactly one reason."""
    assert decision.verdict == verdict, decision.reasons
    [found] = decision.reasons
    assert re.search(reason, found), found


def test_good_evidence_passes_every_check(full: SimpleNamespace) -> None:
    decision = full.judge(full.evidence(), full.policy())
    assert (decision.verdict, decision.reasons) == (Verdict.PROMOTE, ())
    assert {check.status for check in decision.checks} == {Status.PASS}
    assert len({check.metric for check in decision.checks}) == len(decision.checks)
    assert decision.champion_sha256 == full.champion


def test_figures_are_what_people_read(full: SimpleNamespace) -> None:
    figures = full.judge(full.evidence(), full.policy()).figures()
    assert figures == {
        "top1": "91.0 %", "top5": "99.0 %", "real_top1": "86.0 %", "latency_p95_ms": "40.0 ms", "size_mb": "81.5 MB",
        "worst_light": "80.0 % (light 0)", "worst_light_images": "100", "worst_light_known": "350",
        "worst_class": "80.0 % (K-000000)",
        "worst_class_images": "9", "test_images": "500", "real_test_images": "350", "real_sittings": "40",
        "images_per_class": "9", "latency_threads": "2", "manifest_age_days": "19.0",
        "champion_top1": "+1.00 points", "champion_real_top1": "+1.00 points",
    }  # fmt: skip
    assert "top1" not in full.judge(full.evidence(metrics={}), full.policy()).figures()


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.7, "PROMOTE"), (0.6999, "HOLD"), (0.5, "HOLD"), (0.4999, "REJECT"), (NAN, "REJECT")]
)
def test_the_worst_slice_decides(full: SimpleNamespace, value: float, verdict: str) -> None:
    light = {"0": full.metric(0.99, 150), "1": full.metric(value, 100)}
    decision = full.judge(full.evidence(slices={"light": light}), full.policy())
    assert decision.verdict == verdict
    assert all(reason.startswith("worst_light") and "(light 1)" in reason for reason in decision.reasons)


def test_a_slice_that_is_missing_or_tells_nothing(full: SimpleNamespace) -> None:
    expect_missing = full.judge(full.evidence(slices={"side": {"0": full.metric(0.9, 99)}}), full.policy())
    assert expect_missing.verdict == Verdict.REJECT
    assert expect_missing.reasons[0] == "worst_light was not measured; evaluate again"
    few = full.evidence(slices={"light": {"0": full.metric(0.9, 301), "1": full.metric(0.9, 49)}})
    expect(full.judge(few, full.policy()), Verdict.HOLD, "worst_light_images: 49 are too few.*light 1 has the fewest")
    bad_and_few = full.evidence(slices={"light": {"0": full.metric(0.9, 347), "1": full.metric(0.1, 3)}})
    assert full.judge(bad_and_few, full.policy()).verdict == Verdict.REJECT  # few photos are no way out
    assert full.judge(bad_and_few, full.policy(slices={})).verdict == Verdict.PROMOTE
    unknown = full.evidence(slices={"light": {"0": full.metric(0.9, 150), "1": full.metric(0.9, 99)}})
    reason = "worst_light_known: 249 are too few to judge, 250 needed .test photos whose light is known"
    expect(full.judge(unknown, full.policy()), Verdict.HOLD, reason)  # nor is a condition that is not written down


@pytest.mark.parametrize(
    ("top1", "verdict"), [(0.6, "PROMOTE"), (0.59, "HOLD"), (0.4, "HOLD"), (0.39, "REJECT"), (None, "REJECT")]
)
def test_the_worst_class_decides(full: SimpleNamespace, top1: float | None, verdict: str) -> None:
    first, *others = full.evidence().classes
    classes = (first.model_copy(update={"top1": top1}), *others)
    decision = full.judge(full.evidence(classes=classes), full.policy())
    assert decision.verdict == verdict
    assert all("K-000000" in reason for reason in decision.reasons)
    assert full.judge(full.evidence(classes=classes), full.policy(worst_class=None)).verdict == Verdict.PROMOTE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"provider": "CUDAExecutionProvider"}, "by CUDAExecutionProvider, not CPU"),
        ({"provider": ""}, "by an unknown provider"),
        ({"threads": 5}, "with 5 threads, not 1 to 4"),
        ({"threads": 0}, "with 0 threads"),
        ({"threads": -1}, "with -1 threads"),
        ({"hardware": "Apple M9"}, "on Apple M9, not .*Xeon"),
        ({"hardware": ""}, "on unknown hardware"),
        ({"runs": 0}, "in 0 runs"),
    ],
)
def test_attack_with_a_latency_measured_elsewhere(full: SimpleNamespace, changes: dict[str, Any], reason: str) -> None:
    latency = full.evidence().latency.model_copy(update=changes)
    expect(full.judge(full.evidence(latency=latency), full.policy()), Verdict.REJECT, f"latency_profile: .*{reason}")


def test_hardware_is_known_in_any_case_of_letters(full: SimpleNamespace) -> None:
    latency = full.evidence().latency.model_copy(update={"hardware": "AMD epyc 9654", "threads": 4})
    assert full.judge(full.evidence(latency=latency), full.policy()).verdict == Verdict.PROMOTE


@pytest.mark.parametrize(
    ("manifest_date", "created", "reason"),
    [
        ("2026-08-11T00:00:00Z", "2026-11-20T00:00:00+00:00", "manifest_age_days 101.0, at most 100 days"),
        ("", "2026-11-20T00:00:00+00:00", "is not known"),
        ("yesterday", "2026-11-20T00:00:00+00:00", "is not known"),
        ("2026-11-01", "", "is not known"),
        ("2026-11-22", "2026-11-20T00:00:00+00:00", "cannot be: the manifest is dated 2026-11-22, after"),
        ("0001-01-01T00:00:00+23:00", "2026-11-20", "is not known"),
    ],
)
def test_attack_with_an_old_test_set(full: SimpleNamespace, manifest_date: str, created: str, reason: str) -> None:
    evidence = full.evidence(manifest_date=manifest_date, created=created)
    expect(full.judge(evidence, full.policy()), Verdict.REJECT, reason)
    free = full.policy(test_manifest={"trusted": (), "max_age_days": None})
    assert full.judge(evidence, free).verdict == Verdict.PROMOTE


def test_the_manifest_of_today_may_be_dated_in_another_time_zone(full: SimpleNamespace) -> None:
    assert full.judge(full.evidence(manifest_date="2026-11-20T09:00:00"), full.policy()).verdict == Verdict.PROMOTE
    assert full.judge(full.evidence(manifest_date="2026-08-12"), full.policy()).verdict == Verdict.PROMOTE


def test_attack_with_a_swapped_test_set(full: SimpleNamespace) -> None:
    evidence = full.evidence(manifest_hash="d" * 64)
    expect(full.judge(evidence, full.policy()), Verdict.REJECT, "evidence is of another manifest")
    swapped = full.judge(evidence, full.policy(), manifest_hash="d" * 64, trained_on="a" * 64)
    expect(swapped, Verdict.REJECT, "trained on manifest a{12}…, so it may have seen the test images of d{12}")
    only = full.policy(test_manifest={"trusted": ("a" * 64,), "max_age_days": None})
    expect(full.judge(evidence, only, manifest_hash="d" * 64), Verdict.REJECT, r"none of those .*trusts \(a{12}…\)")
    other = full.judge(full.evidence(), only, trained_on="d" * 64)
    assert other.verdict == Verdict.PROMOTE, "a trusted test set is one for all data sets"


def test_attack_with_an_empty_test_set(full: SimpleNamespace) -> None:
    metrics = {**full.evidence().metrics, "top1": Metric(value=1.0, images=0)}
    decision = full.judge(full.evidence(metrics=metrics), full.policy())
    assert decision.verdict == Verdict.REJECT
    assert decision.reasons[0] == "top1 is of 0 images, which tells nothing; evaluate again"
    assert full.judge(full.evidence(metrics={}, slices={}, classes=()), full.policy()).verdict == Verdict.REJECT


def test_the_lower_bound_is_that_of_the_groups_else_wilson(full: SimpleNamespace) -> None:
    policy = full.policy(judge_by=JudgeBy.LOWER_BOUND)
    decision = full.judge(full.evidence(), policy)
    assert decision.judged_by == JudgeBy.LOWER_BOUND
    assert decision.verdict == Verdict.PROMOTE
    top1 = decision.checks[0]
    assert top1.value == pytest.approx(0.87)
    assert "top1 87.0 %, the lower end of its group interval, reaches the target 85 %" in top1.text
    figures = full.evidence().metrics
    no_groups = {**figures, "real_top1": Metric(value=0.86, low=0.79, high=0.9, images=350, groups=40)}
    wilson = full.judge(full.evidence(metrics=no_groups), policy)
    expect(wilson, Verdict.HOLD, "real_top1 79.0 %, the lower end of its Wilson interval, is under the target 80 %")
    assert full.judge(full.evidence(metrics=no_groups), full.policy()).verdict == Verdict.PROMOTE


@pytest.mark.parametrize("low", [None, NAN, -0.1, 1.1, float("inf")])
def test_a_lower_bound_that_is_missing_never_passes(full: SimpleNamespace, low: float | None) -> None:
    figures = full.evidence().metrics
    policy = full.policy(judge_by=JudgeBy.LOWER_BOUND)
    for metric in (
        Metric(value=0.99, low=low, images=500),
        *([] if low is None else [Metric(value=0.99, low=0.98, group_low=low, images=500)]),
    ):
        expect(full.judge(full.evidence(metrics={**figures, "top5": metric}), policy), Verdict.REJECT, "top5 has no")


@pytest.mark.parametrize(("low", "verdict"), [(-0.05, "PROMOTE"), (0.0, "PROMOTE"), (-0.0501, "HOLD"), (-0.9, "HOLD")])
def test_not_worse_than_the_champion(full: SimpleNamespace, low: float, verdict: str) -> None:
    metrics = {"top1": full.paired(), "real_top1": full.paired(low=low)}
    comparison = Comparison(champion_sha256=full.champion, metrics=metrics)
    decision = full.judge(full.evidence(comparison=comparison), full.policy())
    assert decision.verdict == verdict
    if verdict == "HOLD":
        expect(decision, Verdict.HOLD, "champion_real_top1 may be worse than .*lower end must reach -5 points")


@pytest.mark.parametrize(
    "changes",
    [
        *({end: bad} for end in ("low", "high", "difference") for bad in (NAN, float("inf"), -1.1, 1.1)),
        {"images": 0}, {"images": -1}, {"groups": 0},
    ],
)  # fmt: skip
def test_attack_with_an_impossible_comparison(full: SimpleNamespace, changes: dict[str, Any]) -> None:
    metrics = {"top1": full.paired(**changes), "real_top1": full.paired()}
    comparison = Comparison(champion_sha256=full.champion, metrics=metrics)
    expect(full.judge(full.evidence(comparison=comparison), full.policy()), Verdict.REJECT, "champion_top1 .*cannot be")


def test_attack_without_a_comparison(full: SimpleNamespace) -> None:
    policy, other = full.policy(), "d" * 64
    alone = full.judge(full.evidence(comparison=None), policy)
    assert alone.verdict == Verdict.REJECT
    assert len(alone.reasons) == 2
    assert "champion_top1 was not compared with the champion (sha256 cccccccccccc…); eval" in alone.reasons[0]
    theirs = full.judge(full.evidence(), policy, champion_sha256=other)
    assert theirs.verdict == Verdict.REJECT
    assert "was compared with sha256 cccccccccccc…, not with the champion (sha256 dddd" in theirs.reasons[0]
    empty = full.evidence(comparison=Comparison(champion_sha256="", metrics=full.evidence().comparison.metrics))
    assert full.judge(empty, policy, champion_sha256="").verdict == Verdict.REJECT
    half = Comparison(champion_sha256=full.champion, metrics={"top1": full.paired()})
    expect(full.judge(full.evidence(comparison=half), policy), Verdict.REJECT, "real_top1 .*a drug that both know")
    assert full.judge(full.evidence(comparison=None), policy, champion_sha256=None).verdict == Verdict.PROMOTE
