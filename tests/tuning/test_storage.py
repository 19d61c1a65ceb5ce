"""Optuna's own tests of a storage, on ours: it waits for a database that is away, and is else what it is made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from pillsnap.tuning.storage import open_storage


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With Optuna's tables."""
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    open_storage(f"sqlite:///{path}").engine.dispose()
    return path


class TestStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, empty_database: Path, tmp_path: Path) -> Iterator[Any]:
        shutil.copy(empty_database, tmp_path / "optuna.db")
        opened = open_storage(f"sqlite:///{tmp_path}/optuna.db")
        yield opened
        opened.engine.dispose()
