"""The examples of the repository answer as their README says."""

from __future__ import annotations

import re
from pathlib import Path

from pillsnap.core.evidence import Evidence
from pillsnap.core.files import sha256_file
from pillsnap.inference.session import PillSession

FOLDER = Path(__file__).parents[2] / "examples"


def test_the_examples_are_answered_as_said() -> None:
    session = PillSession.load(FOLDER / "drawn-pills.onnx")
    rows = re.findall(r"^\| (\d) \| (K-\d{6}) \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 6
    for number, kcode in rows:
        assert session.identify((FOLDER / f"{number}.jpg").read_bytes(), 1)[0].kcode == kcode
    evidence = Evidence.load(str(FOLDER / "evidence.json"))
    assert evidence.bundle_sha256 == sha256_file(FOLDER / "drawn-pills.onnx")
    assert f"{evidence.metrics['top1'].value:.1%}".replace("%", " %") in (FOLDER / "README.md").read_text("utf-8")
