"""The files that are no Python belong to the wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pillsnap.clients.phone import FOLDER


def test_every_file_of_the_clients_is_installed():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = pyproject["tool"]["setuptools"]["package-data"]["pillsnap.clients"]
    installed = {path for pattern in patterns for path in FOLDER.glob(pattern) if path.is_file()}
    there = {path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert installed == there
    assert {"contract.json", "pillsnap_client.js", "pillsnap_client.dart", "README.md"} <= {p.name for p in installed}
