"""Optuna's own tests of a storage, on ours: it waits for a database that is away, and is else what it is made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
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


def _broken(kind: type[sqlalchemy.exc.DBAPIError], *, lost: bool) -> Exception:
    return kind("SELECT 1", {}, Exception("lost synchronization with server"), connection_invalidated=lost)


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (_broken(sqlalchemy.exc.OperationalError, lost=False), True),
        (_broken(sqlalchemy.exc.DatabaseError, lost=True), True),
        (sqlalchemy.exc.PendingRollbackError("can't reconnect until the transaction is rolled back"), True),
        (_broken(sqlalchemy.exc.DatabaseError, lost=False), False),
        (_broken(sqlalchemy.exc.IntegrityError, lost=False), False),
    ],
)
def test_a_connection_that_broke_is_asked_again(
    empty_database: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_away: bool
) -> None:
    """Optuna wraps what SQLAlchemy says, which has more than one name for a server that stops in the middle."""
    wrapped = StorageInternalError("an exception is raised during the commit")
    wrapped.__cause__ = error
    answers = iter([wrapped, error, ["there"]])

    def ask(self: RDBStorage) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    storage = open_storage(f"sqlite:///{empty_database}")
    monkeypatch.setattr("pillsnap.tuning.storage.time.sleep", lambda seconds: None)
    try:
        if is_away:
            assert storage._patiently(ask) == ["there"]
        else:
            with pytest.raises(StorageInternalError):
                storage._patiently(ask)
    finally:
        storage.engine.dispose()
