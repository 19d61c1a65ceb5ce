from __future__ import annotations

import json
from pathlib import Path

import pytest

from pillsnap.core.errors import EvidenceError
from pillsnap.core.evidence import ClassResult, Evidence, Latency, Metric

EVIDENCE = Evidence(
    bundle_sha256="b",
    manifest_hash="m",
    run_id="",
    created="2026-11-01T00:00:00+00:00",
    metrics={"top1": Metric(value=0.1 + 0.2, low=0.1, high=0.5, images=10)},
    slices={"background": {"0": Metric(value=1.0)}},
    classes=(
        ClassResult(kcode="K-000001", drug_name="가상정", images=0, top1=None, real_top1=None, confused_with=None),
    ),
    failures=("K-000002",),
    confusions=(("K-000002", "K-000001", 3),),
    latency=Latency(p50_ms=1, p95_ms=2, runs=3, image="i", threads=2, provider="CPU", hardware="h"),
    environment={"python": "3.11"},
    notes=("few images",),
)


def test_saved_and_read_it_is_the_same(tmp_path: Path) -> None:
    EVIDENCE.save(tmp_path / "evidence.json")
    assert Evidence.load(tmp_path / "evidence.json") == EVIDENCE
    assert "가상정" in (tmp_path / "evidence.json").read_text(encoding="utf-8")


def test_nan_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    EVIDENCE.save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"JSON compliant|not allowed|Out of range"):
        EVIDENCE.model_copy(update={"metrics": {"top1": Metric(value=float("nan"))}}).save(path)
    assert path.read_bytes() == before


def test_what_is_not_evidence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    with pytest.raises(EvidenceError, match="no such file"):
        Evidence.load(path)
    path.write_text("{")
    with pytest.raises(EvidenceError, match="not readable JSON"):
        Evidence.load(path)
    path.write_text("[]")
    with pytest.raises(EvidenceError, match="is not evidence"):
        Evidence.load(path)
    EVIDENCE.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, "surprise": 1}))
    with pytest.raises(EvidenceError, match=r"evidence\.json: .*surprise.*evaluate again"):
        Evidence.load(path)
    del document["latency"]
    path.write_text(json.dumps(document))
    with pytest.raises(EvidenceError, match="latency"):
        Evidence.load(path)
