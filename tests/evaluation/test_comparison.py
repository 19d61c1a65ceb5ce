from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import BundleError, EvidenceError
from pillsnap.evaluation.comparison import compare, paired_difference
from pillsnap.evaluation.evidence import evaluate


def booleans(text: str) -> np.ndarray:
    return np.asarray([letter == "1" for letter in text], np.bool_)


def test_counted_by_hand() -> None:
    found = paired_difference(
        booleans("1111100000"), booleans("1110011000"), list("abcdefghij"), booleans("1111111110")
    )
    assert found is not None
    assert (found.images, found.only_candidate, found.only_champion) == (9, 2, 2)
    assert found.difference == 0
    assert found.p_value == 1
    assert found.low < 0 < found.high
    better = paired_difference(booleans("1" * 12), booleans("0" * 10 + "11"), list("abcdefghijkl"), booleans("1" * 12))
    assert better is not None
    assert better.difference == pytest.approx(10 / 12)
    assert better.p_value == pytest.approx(2 * 0.5**10)
    assert better.low > 0.5
    assert paired_difference(booleans("1"), booleans("1"), ["a"], booleans("0")) is None


def test_the_same_answers_are_no_difference_and_no_certainty() -> None:
    same = booleans("1110" * 200)
    found = paired_difference(same, same, [str(n // 8) for n in range(800)], np.ones(800, np.bool_))
    assert found is not None
    assert (found.difference, found.p_value) == (0, 1)
    assert -0.01 < found.low < 0 < found.high < 0.01


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=50))
def test_turned_round_it_is_the_other_way_round(drawn: list[tuple[bool, bool, int]]) -> None:
    first = np.asarray([entry[0] for entry in drawn], np.bool_)
    second = np.asarray([entry[1] for entry in drawn], np.bool_)
    groups = [str(entry[2]) for entry in drawn]
    everywhere = np.ones(len(drawn), np.bool_)
    ours, theirs = (
        paired_difference(first, second, groups, everywhere),
        paired_difference(second, first, groups, everywhere),
    )
    assert ours is not None
    assert theirs is not None
    assert -1 <= ours.low <= ours.difference <= ours.high <= 1
    assert ours.difference == -theirs.difference
    assert ours.p_value == theirs.p_value
    assert (ours.only_candidate, ours.only_champion) == (theirs.only_champion, theirs.only_candidate)


@pytest.fixture
def photos(toys: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    images = [(k, k, "test", "real" if n % 2 else "studio") for n in range(6) for k in range(6)]
    manifest = toys.save_manifest(tmp_path / "data", toys.toy_colors(6), images)
    return SimpleNamespace(
        manifest=manifest, bundle=toys.save_bundle(tmp_path / "ours.onnx", toys.toy_colors(6), manifest.hash)
    )


def test_a_candidate_beside_a_champion(photos: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path) -> None:
    colors = toys.toy_colors(6)
    colors[0] = (1, 1, 1)  # the champion never finds the first drug
    champion = toys.save_bundle(tmp_path / "champion.onnx", colors)
    evidence = evaluate(photos.bundle, photos.manifest, champion=champion).evidence
    assert evidence.comparison is not None
    assert evidence.comparison.champion_sha256 == toys_sha(champion)
    top1, real = evidence.comparison.metrics["top1"], evidence.comparison.metrics["real_top1"]
    assert (top1.images, top1.only_candidate, top1.only_champion) == (36, 6, 0)
    assert top1.difference == pytest.approx(1 / 6)
    assert (real.images, real.only_candidate) == (18, 3)
    assert evaluate(photos.bundle, photos.manifest).evidence.comparison is None


def test_a_champion_that_knows_fewer_drugs_is_compared_on_those(
    photos: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path
) -> None:
    champion = toys.save_bundle(tmp_path / "champion.onnx", toys.toy_colors(4))
    comparison = evaluate(photos.bundle, photos.manifest, champion=champion).evidence.comparison
    assert comparison is not None
    assert comparison.metrics["top1"].images == 24
    assert comparison.metrics["top1"].difference == 0


def test_a_drug_that_the_champion_has_retired_is_not_compared(
    photos: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path
) -> None:
    champion = toys.save_bundle(tmp_path / "champion.onnx", toys.toy_colors(6), retired=(1,))
    comparison = evaluate(photos.bundle, photos.manifest, champion=champion).evidence.comparison
    assert comparison is not None
    assert (comparison.metrics["top1"].images, comparison.metrics["top1"].only_candidate) == (30, 0)


def test_real_photos_too_are_compared_by_sittings() -> None:
    """Four sittings of which one differs, in all of its photos: that is one difference in four, not in forty."""
    names = [SimpleNamespace(kcode=f"K-{k}", retired=False) for k in range(2)]
    session: Any = SimpleNamespace(metadata=SimpleNamespace(classes=names), sha256="c" * 64)
    groups = [f"s{n // 10}" for n in range(40)]
    ours: Any = SimpleNamespace(
        labels_N=np.zeros(40, np.int64),
        predicted_N=np.zeros(40, np.int64),
        rows=pa.table({"domain": ["real"] * 40}),
    )
    theirs = np.asarray([1] * 10 + [0] * 30)
    found = compare(ours, session, theirs, session, groups)
    for name in ("top1", "real_top1"):
        paired = found.metrics[name]
        assert (paired.groups, paired.images, paired.difference) == (4, 40, 0.25)
        assert (paired.low, paired.high) == (0, 0.75)


def test_a_champion_that_cannot_answer(photos: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path) -> None:
    broken = toys.save_bundle(tmp_path / "champion.onnx", toys.toy_colors(6), nan=True)
    with pytest.raises(BundleError, match="NaN"):
        evaluate(photos.bundle, photos.manifest, champion=broken)


def toys_sha(path: Path) -> str:
    from pillsnap.core.files import sha256_file

    return sha256_file(path)


def test_what_else_the_evidence_holds(photos: SimpleNamespace) -> None:
    evidence = evaluate(photos.bundle, photos.manifest).evidence
    assert (evidence.agreements["client"].images, evidence.agreements["client"].top1) == (36, 1)
    assert 0 < (evidence.agreements["client"].largest_difference or 0) < 0.2, "a JPEG changes a little"
    assert "pytorch" not in evidence.agreements, "a toy was never in PyTorch"
    assert evidence.calibration["temperature"] == 1
    assert evidence.calibration["ece"] == pytest.approx(evidence.calibration["ece_uncalibrated"])
    assert evidence.code["uncommitted"] in {"yes", "no"}
    assert evidence.metrics["top1"].groups == 36
    assert set(evidence.slices["domain"]) == {"real", "studio"}
    assert evidence.worst_slices == {}, "no condition has thirty photos"


def test_a_quantised_bundle_is_asked_too(photos: SimpleNamespace, toys: SimpleNamespace, tmp_path: Path) -> None:
    colors = toys.toy_colors(6)
    colors[:2] = colors[1::-1]  # takes the first two drugs for each other
    other = toys.save_bundle(tmp_path / "int8.onnx", colors)
    agreement = evaluate(photos.bundle, photos.manifest, quantised=other).evidence.agreements["quantised"]
    assert (agreement.images, agreement.top1) == (36, pytest.approx(24 / 36))
    with pytest.raises(EvidenceError, match="4 classes in the bundle"):
        evaluate(photos.bundle, photos.manifest, quantised=toys.save_bundle(tmp_path / "x.onnx", toys.toy_colors(4)))
