from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pillsnap.core.errors import ConfigError
from pillsnap.gate.policy import DEFAULT_PATH, Policy

OURS = Path(__file__).parents[2] / DEFAULT_PATH


def changed(tmp_path: Path, dotted: str, value: Any) -> Path:
    document = yaml.safe_load(OURS.read_text(encoding="utf-8"))
    *parents, last = dotted.split(".")
    section = document
    for key in parents:
        section = section[key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_the_policy_holds_the_specification() -> None:
    policy = Policy.load(str(OURS))
    shares, costs = policy.at_least, policy.below
    assert (shares.top1.target, shares.top1.minimum) == (0.85, 0.80)
    assert (shares.top5.target, shares.top5.minimum) == (0.95, 0.92)
    assert (shares.real_top1.target, shares.real_top1.minimum) == (0.80, 0.75)
    assert (costs.latency_p95_ms.target, costs.latency_p95_ms.minimum) == (50, 100)
    assert (costs.size_mb.target, costs.size_mb.minimum) == (100, 150)


def test_its_digest_follows_the_values_not_the_layout(tmp_path: Path) -> None:
    ours = Policy.load(OURS)
    assert Policy.load(changed(tmp_path, "below.size_mb.target", 100.0)).sha256 == ours.sha256
    assert Policy.load(changed(tmp_path, "below.size_mb.target", 101)).sha256 != ours.sha256


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("at_least.top1.taget", 0.9, "at_least.top1.taget: unknown key"),
        ("extra", 1, "extra: unknown key"),
        ("at_least.top1", None, "at_least.top1: Field required"),
        ("below", None, "below: Field required"),
        ("minimum_test_images.real", None, "minimum_test_images.real"),
        ("at_least.top1.target", "0.85", "at_least.top1.target: .*found '0.85'"),
        ("at_least.top1.target", 85, "at_least.top1.target"),
        ("at_least.top1.minimum", True, "at_least.top1.minimum"),
        ("at_least.top1.minimum", float("nan"), "at_least.top1.minimum"),
        ("below.size_mb.minimum", float("inf"), "below.size_mb.minimum"),
        ("below.size_mb.target", 0, "below.size_mb.target"),
        ("minimum_test_images.total", -1, "minimum_test_images.total"),
        ("minimum_test_images.total", 3.5, "minimum_test_images.total"),
        ("policy_version", 1, "policy_version: 1 is no longer read; set 2"),
        ("judge_by", "luck", "judge_by: .*found 'luck'"),
        ("slices", {"light": {"target": 0.7, "minimum": 0.5}}, "slices.light.images: Field required"),
        ("slices", {"light": {"target": 0.5, "minimum": 0.7, "images": 9}}, "slices.light: minimum"),
        ("slices", {"Light <b>": {"target": 0.7, "minimum": 0.5, "images": 9}}, "slices"),
        ("worst_class", {"target": 0.7, "minimum": 0.5, "images": 0}, "worst_class.images"),
        ("latency_profile", None, "latency_profile: Field required"),
        ("latency_profile.hardware", [], "latency_profile.hardware"),
        ("latency_profile.most_threads", 0, "latency_profile.most_threads"),
        ("latency_profile.thread", 2, "latency_profile.thread: unknown key"),
        ("champion", None, "champion: Field required"),
        ("champion.margin.top1", None, "champion.margin.top1: Field required"),
        ("champion.margin.top1", -0.1, "champion.margin.top1"),
        ("test_manifest", None, "test_manifest: Field required"),
        ("test_manifest.trusted", ["abc"], "test_manifest.trusted.0"),
        ("test_manifest.max_age_days", 0, "test_manifest.max_age_days"),
        ("decision_max_age_days", 10**9, "decision_max_age_days"),
        ("minimum_test_images.total", 0, "minimum_test_images.total"),
        ("at_least.top1.minimum", 0.9, r"at_least.top1: minimum \(0.9\) must not be over target \(0.85\)"),
        ("below.size_mb.minimum", 50, r"below.size_mb: minimum \(50\) must not be under target \(100\)"),
    ],
)
def test_a_wrong_policy_is_answered_with_file_and_key(tmp_path: Path, key: str, value: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.yaml: {named}"):
        Policy.load(changed(tmp_path, key, value))


def test_a_missing_policy_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.yaml: no gate policy there .* --policy"):
        Policy.load(tmp_path / "policy.yaml")


def test_an_empty_file_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").touch()
    with pytest.raises(ConfigError, match="at_least"):
        Policy.load(tmp_path / "policy.yaml")


def test_attack_with_a_loose_threshold_below_a_strict_one(tmp_path: Path) -> None:
    text = OURS.read_text(encoding="utf-8")
    path = tmp_path / "policy.yaml"
    path.write_text(text + "decision_max_age_days: null\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="decision_max_age_days: stands twice"):
        Policy.load(path)
    path.write_text(text.replace("target: 0.85,", "target: 0.85, target: 0.1,"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"at_least\.top1\.target: stands twice"):
        Policy.load(path)


def test_how_long_a_decision_holds(tmp_path: Path) -> None:
    assert Policy.load(OURS).decision_max_age == timedelta(days=30)
    document = Policy.load(OURS).model_dump() | {"decision_max_age_days": None}
    assert Policy.model_validate(document).decision_max_age is None


def test_trusted_manifests_are_part_of_the_digest(tmp_path: Path) -> None:
    path = changed(tmp_path, "test_manifest.trusted", ["a" * 64])
    assert Policy.load(path).test_manifest.trusted == ("a" * 64,)
    assert Policy.load(path).sha256 != Policy.load(OURS).sha256
