"""What all tests share: the toy builders."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from pillsnap.core.process_environment import prepare_environment

prepare_environment()  # here, because some tests import torch before anything of PillSnap's that does it


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The builders of ``tests/toy.py``: a tiny ONNX bundle made without torch, and tiny manifests."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "toy.py")))
