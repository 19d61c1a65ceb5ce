"""The record: complete, chained, append-only in the database itself, and beside MLflow's own migrations."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow.exceptions import MlflowException

from pillsnap.registry import audit


def test_who_did_what(recorded: Any) -> None:
    rows = [(row["action"], row["version"], row["alias"], row["before"], row["outcome"]) for row in recorded.rows()]
    assert rows == [
        ("judged", "1", "", "", "done"),
        ("set", "1", "champion", "", "done"),
        ("judged", "2", "", "", "done"),
        ("set", "2", "champion", "1", "done"),
        ("judged", "3", "", "", "done"),
        ("set", "3", "champion", "", "refused"),
    ]
    done, refused = recorded.rows(action="set", version="2")[0], recorded.rows(outcome="refused")[0]
    assert done["actor"].startswith("local:")
    assert (done["verdict"], done["manifest_hash"], len(done["bundle_sha256"])) == ("PROMOTE", "a" * 64, 64)
    assert done["decision_id"] in recorded.tags("2")["gate.digests"]
    assert "HOLD" in refused["reason"]
    assert [row["number"] for row in audit.entries(recorded.store.engine, "other")] == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("statement", ["UPDATE pillsnap_audit SET actor = 'x'", "DELETE FROM pillsnap_audit"])
def test_attack_the_database_itself_refuses_to_change_rows(recorded: Any, statement: str) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="the audit is append-only"):
        recorded.sql(statement)
    assert len(recorded.rows()) == 6


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["UPDATE pillsnap_audit SET actor = 'somebody else' WHERE number = 4"], "row 4 was changed"),
        (["DELETE FROM pillsnap_audit WHERE number = 2"], "row 2 is missing"),
        (["DELETE FROM pillsnap_audit WHERE number = 6"], "ends at row 5, but 6 were written"),
        (
            [
                "UPDATE pillsnap_audit SET number = 99 WHERE number = 3",
                "UPDATE pillsnap_audit SET number = 3 WHERE number = 5",
                "UPDATE pillsnap_audit SET number = 5 WHERE number = 99",
            ],
            "row 3 does not follow the row before it",
        ),
        (
            [
                "DELETE FROM pillsnap_audit WHERE number > 3",
                "UPDATE pillsnap_audit_head SET number = 3, hash = (SELECT hash FROM pillsnap_audit WHERE number = 3)",
            ],
            "champion of pills is version 2, the record says 1: set past the registry",
        ),
        (["DELETE FROM pillsnap_audit"], "ends at row 0, but 6 were written"),
    ],
)
def test_attack_a_doctored_record_shows(recorded: Any, statements: list[str], found: str) -> None:
    """Even where the triggers were taken away, and where the end of the chain was cut off and its head set back."""
    recorded.without_triggers()
    for statement in statements:
        recorded.sql(statement)
    assert found in "\n".join(recorded.problems())


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (
            "UPDATE pillsnap_audit SET number = 2000000000 WHERE number = 6",
            "row 6 is missing: the next one is 20000000",
        ),
        ("UPDATE pillsnap_audit SET number = 0 WHERE number = 6", "row 0 was put in"),
        ("UPDATE pillsnap_audit SET created_at_ms = 'x' WHERE number = 3", "row 3 was changed: created_at_ms is 'x'"),
        ("UPDATE pillsnap_audit SET reason = X'ff' WHERE number = 3", r"row 3 was changed: reason is b'\xff'"),
        (
            "UPDATE pillsnap_audit SET actor = CAST(X'ff' AS TEXT) WHERE number = 3",
            "the rows after row 2 cannot be read",
        ),
        ("UPDATE pillsnap_audit_head SET number = 'x'", "what says where the record ends was changed"),
        ("DELETE FROM pillsnap_audit_head", "what says where the record ends was changed or taken away"),
        (
            "UPDATE model_versions SET creation_time = 'x' WHERE version = 3",
            "pills version 3, judged in row 5, is gone",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite"])
def test_attack_a_record_that_breaks_its_reader(recorded: Any, statement: str, found: str) -> None:
    """Values that only SQLite takes, and a number that would take all memory: a line for each, no traceback."""
    recorded.without_triggers()
    recorded.sql(statement)
    assert found in "\n".join(recorded.problems())


def test_attack_a_champion_by_direct_sql_shows(recorded: Any) -> None:
    recorded.sql("UPDATE registered_model_aliases SET version = 3 WHERE alias = 'champion'")
    assert recorded.problems() == ["champion of pills is version 3, the record says 2: set past the registry"]


def test_attack_a_stage_by_direct_sql_shows(recorded: Any) -> None:
    recorded.sql("UPDATE model_versions SET current_stage = 'Production' WHERE version = 3")
    assert recorded.problems() == ["pills version 3 is Production, the record says -: set past the registry"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_attack_text_that_no_database_takes_is_written_down_all_the_same(shelf: Any) -> None:
    version = shelf.version()
    for key in ("gate.\0verdict", "gate.\ud800", "gate." + "x" * 10_000):
        with shelf.refused("written by the gate alone"):
            shelf.store.delete_model_version_tag("pills", version, key)
    with pytest.raises(MlflowException):
        shelf.promote(version, "champ\0ion")
    assert len(shelf.rows(outcome="refused")) == 4


def test_a_failing_write_of_mlflow_leaves_no_row(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    version = shelf.judged()

    def fail(*_: Any) -> None:
        raise MlflowException("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "set_registered_model_tag", fail)
        with pytest.raises(MlflowException, match="the disk is full"):
            shelf.promote(version)
    assert (shelf.champion(), shelf.rows(action="set")) == (None, [])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_attack_a_record_that_cannot_be_written_means_no_champion(shelf: Any) -> None:
    version = shelf.judged()
    shelf.sql("ALTER TABLE pillsnap_audit RENAME TO away")
    with pytest.raises(MlflowException):
        shelf.promote(version)
    assert shelf.champion() is None
    shelf.sql("ALTER TABLE away RENAME TO pillsnap_audit")
    shelf.promote(version)
    assert (shelf.champion(), shelf.problems()) == ("1", [])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_tables_are_made_once_and_mlflows_migrations_are_left_alone(recorded: Any, database: str) -> None:
    def revisions(table: str) -> list[str]:
        with recorded.store.engine.connect() as connection:
            return [row[0] for row in connection.execute(sa.text(f"SELECT version_num FROM {table}"))]

    before = revisions("alembic_version")
    assert revisions(audit.VERSION_TABLE) == ["0002"]
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "db", "upgrade", database]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert revisions("alembic_version") == before
    from pillsnap.registry.store import gated_store

    again = gated_store(database)
    again.engine.dispose()
    assert recorded.problems() == []
    assert len(recorded.rows()) == 6
