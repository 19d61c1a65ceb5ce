"""A store of one's own for each test: its tables are made once and copied.

Other folders of tests take these fixtures from here, as ``tests/toy.py`` is taken.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

NOLOAD = r"ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
"""MLflow 3.17 asks SQLAlchemy 2.1 for it in every query."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "fresh_store" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings(NOLOAD))


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store; making the tables takes seconds, copying them none. Shared by all folders of tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("mlflow.pyfunc")  # MLflow warns of its own type hints when it is imported
    path = tmp_path_factory.getbasetemp() / "fresh-mlflow.db"
    if not path.exists():
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """An empty store that MLFLOW_TRACKING_URI points at, and a client to look into it."""
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return MlflowClient(uri, registry_uri=uri)
