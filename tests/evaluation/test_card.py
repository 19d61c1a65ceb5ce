from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pillsnap.core.bundle import FirstWeights
from pillsnap.core.evidence import Evidence
from pillsnap.evaluation.card import model_card, plain
from pillsnap.evaluation.evidence import evaluate
from pillsnap.gate.decision import decide
from pillsnap.gate.trust import TrustRoot
from pillsnap.inference.session import PillSession

LONGEST = 5000
NASTY = "<img src=x onerror=alert(1)> [click](javascript:alert(1)) **bold** `code` | a\nb"


@pytest.fixture
def judged(toys: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    images = [(k, k, "test", "real" if n % 2 else "studio") for n in range(6) for k in range(6)]
    manifest = toys.save_manifest(tmp_path / "data", toys.toy_colors(6), images)
    bundle = toys.save_bundle(tmp_path / "b.onnx", toys.toy_colors(6), manifest.hash)
    evidence = evaluate(bundle, manifest, champion=bundle).evidence
    metadata = PillSession.load(bundle).metadata
    decision = decide(
        evidence, TrustRoot.find().policy(), bundle_sha256=evidence.bundle_sha256, manifest_hash=manifest.hash
    )
    return SimpleNamespace(evidence=evidence, metadata=metadata, decision=decision)


def test_the_card(judged: SimpleNamespace) -> None:
    card = model_card(judged.evidence, judged.metadata, judged.decision, name="pills", version="7", longest=LONGEST)
    first = card.splitlines()[0]
    assert re.fullmatch(
        r"HOLD · top-1 100\.0 % \(≥ 85\) · real 100\.0 % \(≥ 80\) · [\d.]+ ms · [\d.]+ MB · float, ONNX Runtime", first
    ), first
    assert "\n\n**pills version 7** names the drug on a photo" in card
    assert "36 are too few to judge" in card
    assert (
        "out of 6 drugs (toy, 32 px, float, ONNX Runtime). Measured on 36 test images, 18 of them real photos" in card
    )
    assert "| Top-1 | **100.0 %** | ≥ 85 % | ≥ 80 % | " in card
    assert re.search(r"\| Latency, p95 \| \*\*[\d.]+ ms\*\* \| < 50 ms \| < 100 ms \| p50 ", card)
    assert "| Top-1 against the champion | **+0.0 points** |" in card
    assert "| Same answer: client | 100.0% | | |  | 36 |" in card
    assert "Any ONNX Runtime takes uint8 images" in card
    assert "It is no medical device" in card
    for digest in (judged.evidence.bundle_sha256, judged.evidence.manifest_hash, judged.decision.policy_sha256):
        assert digest[:40] in card
    assert len(card) < LONGEST
    almost = judged.evidence.metrics["top1"].model_copy(update={"value": 0.84996})
    short = judged.evidence.model_copy(update={"metrics": {**judged.evidence.metrics, "top1": almost}})
    decision = decide(
        short, TrustRoot.find().policy(), bundle_sha256=short.bundle_sha256, manifest_hash=short.manifest_hash
    )
    assert "| Top-1 | **84.996 %** | ≥ 85 %" in model_card(short, judged.metadata, decision, longest=LONGEST), (
        "no target that looks met"
    )
    bare = model_card(judged.evidence, judged.metadata, None, longest=LONGEST)
    assert bare.startswith("Names the drug"), "no verdict, no headline"


def test_the_headline_says_what_it_is_and_what_it_followed(judged: SimpleNamespace) -> None:
    slow = judged.evidence.metrics["latency_p95_ms"].model_copy(update={"value": 120.0})
    evidence = judged.evidence.model_copy(
        update={
            "metrics": {**judged.evidence.metrics, "latency_p95_ms": slow},
            "failures": ("K-990002",),
            "look_alikes": (("K-990001", "K-990003", 0.5),),
            "notes": ("1 class has few test images: K-990004.",),
        }
    )
    decision = decide(
        evidence, TrustRoot.find().policy(), bundle_sha256=evidence.bundle_sha256, manifest_hash=evidence.manifest_hash
    )
    metadata = judged.metadata.model_copy(update={"engine": "openvino", "precision": "int8"})
    card = model_card(evidence, metadata, decision, champion="2", longest=LONGEST)
    assert card.startswith("REJECT · top-1 100.0 % (≥ 85) · real 100.0 % (≥ 80) · 120.0 ms (< 50 ms) · ")
    assert card.splitlines()[0].endswith(" · 8 bits, OpenVINO · +0.0 against v2")
    assert "| Top-1 against version 2 |" in card
    assert "It is measured and served in OpenVINO, and its figures hold there alone." in card
    assert "Any ONNX Runtime" not in card
    assert "Under 70 %: K-990002 가상정1." in card
    assert "K-990001 가상정0 and K-990003 가상정2 (50%)" in card
    assert "few test images: K-990004 가상정3." in card


def test_attack_names_in_a_card_are_text(judged: SimpleNamespace) -> None:
    evidence: Evidence = judged.evidence.model_copy(
        update={
            "notes": (NASTY,),
            "failures": (NASTY,),
            "look_alikes": ((NASTY, NASTY, 0.5),),
            "latency": judged.evidence.latency.model_copy(update={"hardware": NASTY}),
        }
    )
    link = "x` [the report](https://e.io) `y"
    first = FirstWeights(source=NASTY, license=NASTY, sha256="`[a](b)`")
    provenance = judged.metadata.provenance.model_copy(
        update={"backbone": NASTY, "run_id": link, "git_commit": link, "first_weights": first}
    )
    metadata = judged.metadata.model_copy(update={"provenance": provenance})
    card = model_card(evidence, metadata, None, name=NASTY, longest=LONGEST)
    assert card.count("`x___the_report__https___e.io___y`") == 2
    assert "sha256 `__a__b__`" in card
    for dangerous in ("<img", "[click](", "**bold**", "`code`", "](https"):
        assert dangerous not in card
    assert plain(NASTY) in card
    assert "\n" not in plain(NASTY)


def test_a_card_is_never_longer_than_the_page_takes(judged: SimpleNamespace) -> None:
    evidence = judged.evidence.model_copy(update={"notes": ("x" * 3000,) * 5})
    card = model_card(evidence, judged.metadata, judged.decision, name="pills", version="1", longest=LONGEST)
    assert len(card) <= LONGEST
