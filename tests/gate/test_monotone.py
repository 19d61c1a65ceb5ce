"""Properties of the gate over policies and evidence of all kinds: worse is never better, missing never passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillsnap.gate.decision import Decision, Verdict
from pillsnap.gate.policy import Policy

RANK = {Verdict.REJECT: 0, Verdict.HOLD: 1, Verdict.PROMOTE: 2}
BAD = [float("nan"), float("inf"), float("-inf"), -0.5]
EVIDENCE_WITH_A_TREE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
METRIC_FIELDS = ("value", "low", "group_low", "images")
"""Of all shares; of the real photos the sittings too."""

# Paths into the evidence: which way is worse, and by how much a step goes.
DOWN: dict[tuple[Any, ...], float] = {
    **{("metrics", name, field): 1 for name in ("top1", "top5", "real_top1") for field in METRIC_FIELDS},
    ("metrics", "real_top1", "groups"): 1,
    **{("slices", "light", value, field): 1 for value in "012" for field in METRIC_FIELDS},
    **{("classes", index, field): 1 for index in range(3) for field in ("top1", "images")},
    **{("comparison", "metrics", name, field): 1 for name in ("top1", "real_top1") for field in ("low", "difference")},
    **{("comparison", "metrics", name, "images"): 1 for name in ("top1", "real_top1")},
}
UP = {
    ("metrics", "latency_p95_ms", "value"): 200.0,
    ("metrics", "size_mb", "value"): 200.0,
    ("latency", "threads"): 8,
}
THRESHOLDS_UP = [
    *(("at_least", name, end) for name in ("top1", "top5", "real_top1") for end in ("target", "minimum")),
    *(("slices", "light", end) for end in ("target", "minimum", "images")),
    *(("worst_class", end) for end in ("target", "minimum", "images")),
    *(("minimum_test_images", name) for name in ("total", "real", "per_class", "sittings")),
]
THRESHOLDS_DOWN = [
    *(("below", name, end) for name in ("latency_p95_ms", "size_mb") for end in ("target", "minimum")),
    *(("champion", "margin", name) for name in ("top1", "real_top1")),
    ("latency_profile", "most_threads"),
    ("test_manifest", "max_age_days"),
]


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    at(document, path[:-1])[path[-1]] = value


def worse(path: tuple[Any, ...], value: Any, how_much: float) -> Any:
    if path in UP:
        step = UP[path] * how_much
        return value + (round(step) if isinstance(value, int) else step)
    if isinstance(value, int):
        return max(0, value - round(how_much * 500))
    least = -1.0 if path[0] == "comparison" else 0.0
    return value - (value - least) * how_much


def judge(full: SimpleNamespace, document: dict[str, Any], policy: Policy) -> Decision:
    return full.judge(type(full.evidence()).model_validate(document), policy)


paths = st.sampled_from([*DOWN, *UP])
steps = st.floats(0, 1)
spoiled = st.lists(st.tuples(paths, st.floats(0, 0.3)), max_size=4)
judged_by = st.sampled_from(["point", "lower_bound"])


def a_document(full: SimpleNamespace, changes: list[tuple[tuple[Any, ...], float]]) -> dict[str, Any]:
    document = full.evidence().model_dump()
    document["classes"] = list(document["classes"])
    for path, how_much in changes:
        put(document, path, worse(path, at(document, path), how_much))
    return document


@EVIDENCE_WITH_A_TREE
@given(changes=spoiled, path=paths, how_much=steps, by=judged_by)
def test_worse_evidence_never_gives_a_better_verdict(
    full: SimpleNamespace, changes: Any, path: tuple[Any, ...], how_much: float, by: str
) -> None:
    policy = full.policy(judge_by=by)
    document = a_document(full, changes)
    before = judge(full, document, policy)
    put(document, path, worse(path, at(document, path), how_much))
    assert RANK[judge(full, document, policy).verdict] <= RANK[before.verdict]


@pytest.mark.parametrize("path", [path for path in [*DOWN, *UP] if path[-1] not in ("low", "group_low")], ids=str)
def test_each_figure_at_its_worst_is_not_promoted(full: SimpleNamespace, path: tuple[Any, ...]) -> None:
    """The property above would hold of a gate that looks at nothing."""
    document = a_document(full, [(path, 1.0)])
    assert judge(full, document, full.policy()).verdict != Verdict.PROMOTE


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    "path", [path for path in [*DOWN, *UP] if path[-1] in ("value", "top1") and path[0] != "comparison"], ids=str
)
def test_attack_with_nan_infinity_and_negative_figures(
    full: SimpleNamespace, path: tuple[Any, ...], bad: float
) -> None:
    document = a_document(full, [])
    put(document, path, bad)
    assert judge(full, document, full.policy()).verdict == Verdict.REJECT


@pytest.mark.parametrize(
    "path",
    [
        *(("metrics", name) for name in ("top1", "top5", "real_top1", "latency_p95_ms", "size_mb")),
        ("slices", "light"),
        ("comparison", "metrics", "top1"),
        ("comparison", "metrics", "real_top1"),
    ],
    ids=str,
)
def test_what_is_missing_is_rejected(full: SimpleNamespace, path: tuple[Any, ...]) -> None:
    document = a_document(full, [])
    del at(document, path[:-1])[path[-1]]
    assert judge(full, document, full.policy()).verdict == Verdict.REJECT


def stricter(document: dict[str, Any], path: tuple[Any, ...], how_much: float) -> Policy | None:
    """The policy with one threshold moved; None where that is no policy (a minimum over its target)."""
    value = at(document, path)
    if path in THRESHOLDS_UP:
        moved = value + round(500 * how_much) if isinstance(value, int) else value + (1 - value) * how_much
    else:
        moved = max(1, round(value * (1 - how_much))) if isinstance(value, int) else value * (1 - how_much)
    put(document, path, moved)
    try:
        return Policy.model_validate(document)
    except ValueError:
        return None


@EVIDENCE_WITH_A_TREE
@given(changes=spoiled, path=st.sampled_from([*THRESHOLDS_UP, *THRESHOLDS_DOWN]), how_much=steps)
def test_a_stricter_policy_never_gives_a_better_verdict(
    full: SimpleNamespace, changes: Any, path: tuple[Any, ...], how_much: float
) -> None:
    policy = full.policy()
    document = a_document(full, changes)
    strict = stricter(policy.model_dump(), path, how_much)
    if strict is not None:
        assert RANK[judge(full, document, strict).verdict] <= RANK[judge(full, document, policy).verdict]


@EVIDENCE_WITH_A_TREE
@given(changes=spoiled)
def test_by_the_lower_bound_is_never_easier(full: SimpleNamespace, changes: Any) -> None:
    document = a_document(full, changes)
    point, bound = (judge(full, document, full.policy(judge_by=by)).verdict for by in ("point", "lower_bound"))
    assert RANK[bound] <= RANK[point]
