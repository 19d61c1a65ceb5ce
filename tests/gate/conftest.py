"""Evidence that passes everything, under a policy that asks for everything; each test spoils one thing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pillsnap.core.evidence import ClassResult, Comparison, Evidence, Latency, Metric, PairedDifference
from pillsnap.gate.decision import Decision, decide
from pillsnap.gate.policy import DEFAULT_PATH, Policy

BUNDLE, MANIFEST, CHAMPION = "b" * 64, "a" * 64, "c" * 64


def _policy(**changes: Any) -> Policy:
    document = Policy.load(Path(__file__).parents[2] / DEFAULT_PATH).model_dump()
    document |= {
        "slices": {"light": {"target": 0.7, "minimum": 0.5, "images": 50}},
        "worst_class": {"target": 0.6, "minimum": 0.4, "images": 5},
        "latency_profile": {"provider": "CPU*", "most_threads": 4, "hardware": ["*Xeon*", "*EPYC*"]},
        "test_manifest": {"trusted": (), "max_age_days": 100},
    }
    return Policy.model_validate(document | changes)


def _metric(value: float, images: int) -> Metric:
    return Metric(
        value=value,
        low=value - 0.02,
        high=value + 0.02,
        images=images,
        group_low=value - 0.04,
        group_high=value + 0.04,
        groups=40,
    )


def _paired(**changes: Any) -> PairedDifference:
    values = {"difference": 0.01, "low": -0.01, "high": 0.03, "images": 500, "groups": 40}
    return PairedDifference(**{**values, "only_candidate": 9, "only_champion": 4, "p_value": 0.3, **changes})


def _evidence(**changes: Any) -> Evidence:
    values = {
        "bundle_sha256": BUNDLE,
        "manifest_hash": MANIFEST,
        "run_id": "",
        "created": "2026-11-20T00:00:00+00:00",
        "manifest_date": "2026-11-01",
        "metrics": {
            "top1": _metric(0.91, 500),
            "top5": _metric(0.99, 500),
            "real_top1": _metric(0.86, 350),
            "latency_p95_ms": Metric(value=40.0),
            "size_mb": Metric(value=81.5),
        },
        "slices": {"light": {"0": _metric(0.8, 120), "1": _metric(0.9, 130), "2": _metric(0.85, 100)}},
        "classes": tuple(
            ClassResult(kcode=f"K-{i:06d}", drug_name="d", images=9, top1=0.8, real_top1=None, confused_with=None)
            for i in range(3)
        ),
        "failures": (),
        "confusions": (),
        "latency": Latency(
            p50_ms=1, p95_ms=2, runs=200, image="i", threads=2, provider="CPUExecutionProvider", hardware="Intel Xeon 1"
        ),
        "environment": {},
        "comparison": Comparison(champion_sha256=CHAMPION, metrics={"top1": _paired(), "real_top1": _paired()}),
    }
    return Evidence(**{**values, **changes})


def _judge(evidence: Evidence, policy: Policy, **changes: Any) -> Decision:
    given = {"bundle_sha256": BUNDLE, "manifest_hash": MANIFEST, "champion_sha256": CHAMPION, **changes}
    return decide(evidence, policy, **given)


@pytest.fixture(scope="session")
def full() -> SimpleNamespace:
    """``policy``, ``evidence``, ``paired``, ``metric`` build; ``judge`` decides on the file, manifest and champion."""
    return SimpleNamespace(
        policy=_policy, evidence=_evidence, paired=_paired, metric=_metric, judge=_judge, champion=CHAMPION
    )
