"""What all tests share: the toy builders."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The builders of ``tests/toy.py``: a tiny ONNX bundle made without torch, and tiny manifests."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "toy.py")))
