"""Tiny data sets in the real layouts, written in milliseconds."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from pillsnap.cli.main import main
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.data.audit import AuditLimits
from pillsnap.data.prepare import PrepareRequest, prepare

KCODES = ("K-000059", "K-030864")


def picture_bytes(key: str, suffix: str = ".jpg", side_px: int = 32) -> bytes:
    """A picture that only this key has."""
    rng = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:8], 16))
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    ok, data = cv2.imencode(suffix, cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC))
    assert ok
    return data.tobytes()


def write_picture(path: Path, key: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(key or path.name, path.suffix.lower()))
    return path


def write_drug_list(path: Path, kcodes: Sequence[str] = KCODES) -> Path:
    drugs = [
        {
            "kcode": kcode,
            "drug_name": f"약 {kcode}",
            "manufacturer": "제약",
            "form": "정제",
            "note": {"kept": [1, "예"]},
        }
        for kcode in kcodes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": "1.2", "created_date": "2026-01-02", "total_drugs": len(drugs), "drugs": drugs}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return path


def real_names(kcode: str, backgrounds: int = 2, lights: int = 2, rotations: int = 2) -> list[str]:
    return [
        f"{kcode}_{background}_{light}_{side}_0_90_{45 * turn:03d}_200.jpg"
        for background in range(backgrounds)
        for light in range(lights)
        for side in range(2)
        for turn in range(rotations)
    ]


def studio_names(kcode: str, backgrounds: int = 2, lights: int = 3) -> list[str]:
    return [
        f"{kcode}_0_{background}_{side}_{light}_90_{20 * turn:03d}_200.png"
        for background in range(backgrounds)
        for side in range(2)
        for light in range(lights)
        for turn in range(2)
    ]


def write_raw(root: Path, kcodes: Sequence[str] = KCODES) -> Path:
    """``drugs.json``, 24 studio images and 16 real photos (4 sittings) a drug."""
    write_drug_list(root / "drugs.json", kcodes)
    for kcode in kcodes:
        for name in studio_names(kcode):
            write_picture(root / "studio" / kcode / name, f"studio {name}")
        for name in real_names(kcode):
            write_picture(root / "real_photos" / kcode / name, f"real {name}")
    return root


@dataclass(frozen=True)
class Tiny:
    """What the tests need to make data sets of their own."""

    kcodes: tuple[str, ...] = KCODES
    picture: Callable[..., Path] = write_picture
    picture_bytes: Callable[..., bytes] = picture_bytes
    drug_list: Callable[..., Path] = write_drug_list
    raw: Callable[..., Path] = write_raw
    real_names: Callable[..., list[str]] = real_names
    studio_names: Callable[..., list[str]] = studio_names

    def request(self, raw: Path, out: Path, **changes: Any) -> PrepareRequest:
        values: dict[str, Any] = {
            "drugs": raw / "drugs.json",
            "studio": raw / "studio",
            "real": raw / "real_photos",
            "out": out,
            "minimum": 10,
            "workers": 2,
            "preprocessing": PreprocessingSpec(target_size=24),
            "limits": AuditLimits(min_side_px=16),
        }
        return PrepareRequest(**{**values, **changes})


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The charts of the report take longer than the rest of a preparation; they are tested where they are drawn."""
    if request.path.name != "test_audit_report.py":
        monkeypatch.setattr("pillsnap.data.audit_report._charts", lambda *_: [])


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A prepared data set of two drugs; read only."""
    root = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pillsnap.data.audit_report._charts", lambda *_: [])
        return prepare(tiny.request(write_raw(root / "raw"), root / "out")).manifest.root


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw data set of two drugs, of one's own to damage."""
    return write_raw(tmp_path / "raw")


@pytest.fixture(scope="session")
def shots() -> SimpleNamespace:
    """The builders of ``readings.py``: pictures that were never drawn."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "readings.py")))


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process: its status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pillsnap", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as exit_info:
            main()
        output = capsys.readouterr()
        return exit_info.value.code, output.out, output.err

    return run
