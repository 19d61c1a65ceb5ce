"""The record of everything that the registry's gate was asked for: append-only, each row chained to the one before.

Own tables beside MLflow's, in the same database, so that a row and the change that it tells of are one transaction.
Editing or deleting a row breaks the chain; triggers refuse both to everybody who does not first take the triggers away.
A chain that was cut off at its end shows where an alias stands that no row explains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy.orm import Session

from pillsnap.core.files import sha256_json

METADATA = sa.MetaData()
VERSION_TABLE = "pillsnap_alembic_version"
FIRST = "0" * 64
DONE, REFUSED = "done", "refused"
AUDIT = sa.Table(
    "pillsnap_audit",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("actor", sa.String(256), nullable=False),
    sa.Column("role", sa.String(40), nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("version", sa.String(40), nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("alias", sa.String(256), nullable=False),
    sa.Column("before", sa.String(40), nullable=False),
    sa.Column("verdict", sa.String(20), nullable=False),
    sa.Column("decision_id", sa.String(64), nullable=False),
    sa.Column("bundle_sha256", sa.String(64), nullable=False),
    sa.Column("manifest_hash", sa.String(64), nullable=False),
    sa.Column("policy_sha256", sa.String(64), nullable=False),
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
HEAD = sa.Table(
    "pillsnap_audit_head",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
"""One row: the end of the chain. Whoever appends holds it, so that the chain has no forks."""
_MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Entry:
    """What happened, or was refused."""

    actor: str
    role: str
    action: str
    """``judged``, ``set``, ``deleted``, ``stage``, ``renamed`` …"""
    model: str
    version: str = ""
    created_at_ms: int = 0
    """When the registry made the version: the number alone can be used twice."""
    alias: str = ""
    before: str = ""
    """The version that carried the alias."""
    verdict: str = ""
    decision_id: str = ""
    bundle_sha256: str = ""
    manifest_hash: str = ""
    policy_sha256: str = ""
    outcome: str = DONE
    reason: str = ""


def prepare_tables(engine: sa.Engine) -> None:
    """Make the tables, or bring them to this version. MLflow's own migrations are left alone."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA busy_timeout = 20000")
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # of two that start at once, one makes the tables
        else:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7281992)"))
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def lock(session: Session) -> None:
    """Let nobody else append until this transaction ends. To be called first in it."""
    if session.get_bind().dialect.name == "sqlite":
        session.connection().exec_driver_sql("BEGIN IMMEDIATE")
    else:
        session.execute(sa.select(HEAD.c.id).where(HEAD.c.id == 1).with_for_update())


def append(session: Session, entry: Entry) -> None:
    """Add a row at the end of the chain, in the transaction of ``session``, which holds the `lock`."""
    head = session.execute(sa.select(HEAD.c.number, HEAD.c.hash).where(HEAD.c.id == 1)).one()
    row: dict[str, Any] = {
        key: _storable(value[:5000]) if isinstance(value, str) else value for key, value in asdict(entry).items()
    }
    for column in AUDIT.c:
        if isinstance(column.type, sa.String) and column.type.length and column.name in row:
            row[column.name] = row[column.name][: column.type.length]
    row |= {"number": head.number + 1, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    row["previous_hash"] = head.hash
    row["hash"] = _hash(row)
    session.execute(sa.insert(AUDIT).values(**row))
    session.execute(sa.update(HEAD).where(HEAD.c.id == 1).values(number=row["number"], hash=row["hash"]))


def was_champion(session: Session, model: str, version: str, created_at_ms: int, bundle_sha256: str) -> bool:
    """Whether this very version, with these bytes, has been champion."""
    found = (
        sa.select(AUDIT.c.number)
        .where(
            AUDIT.c.model == model,
            AUDIT.c.version == version,
            AUDIT.c.created_at_ms == created_at_ms,
            AUDIT.c.bundle_sha256 == bundle_sha256,
            AUDIT.c.action == "set",
            AUDIT.c.alias == "champion",
            AUDIT.c.outcome == DONE,
        )
        .limit(1)
    )
    return session.execute(found).first() is not None


@contextmanager
def standing_still(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection while nobody appends: rows, aliases and the end of the chain are of one moment."""
    with Session(engine) as session:
        lock(session)
        yield session.connection()


def entries(engine: sa.Engine, model: str | None = None) -> Iterator[Mapping[str, Any]]:
    """All rows, the oldest first."""
    with engine.connect() as connection:
        yield from _rows(connection, model)


def _rows(connection: sa.Connection, model: str | None = None) -> Iterator[Mapping[str, Any]]:
    query = sa.select(AUDIT).order_by(AUDIT.c.number)
    for row in connection.execute(query if model is None else query.where(AUDIT.c.model == model)):
        yield dict(row._mapping)


def problems(
    connection: sa.Connection,
    aliases: Mapping[tuple[str, str], str],
    stages: Mapping[tuple[str, str], str] | None = None,
) -> list[str]:
    """What is wrong with the record; empty: nothing.

    Args:
        connection: to the database, in which nobody appends meanwhile (`standing_still`).
        aliases: (model, alias) → version, as they stand now, of the guarded aliases.
        stages: (model, version) → stage, of the versions that are in a guarded one.
    """
    found = []
    moved: dict[tuple[str, str], str] = {}
    previous, number = FIRST, 0
    explained: dict[tuple[str, str], str] = {}
    for row in _rows(connection):
        number += 1
        if row["number"] != number:
            found.append(f"row {number} is missing: the next one is {row['number']}")
            number = row["number"]
        if row["previous_hash"] != previous:
            found.append(f"row {row['number']} does not follow the row before it: one was changed, removed or put in")
        if row["hash"] != _hash({key: value for key, value in row.items() if key != "hash"}):
            found.append(f"row {row['number']} was changed: its hash is not that of what it says")
        previous = row["hash"]
        if row["outcome"] == DONE and row["alias"]:
            key = (row["model"], row["alias"])
            if row["action"] == "set":
                explained[key] = row["version"]
            elif row["action"] == "deleted":
                explained.pop(key, None)
            elif row["action"] == "stage":
                moved[row["model"], row["version"]] = row["alias"]
    head = connection.execute(sa.select(HEAD.c.number, HEAD.c.hash).where(HEAD.c.id == 1)).one()
    if (head.number, head.hash) != (number, previous):
        found.append(f"the record ends at row {number}, but {head.number} were written: the last ones were removed")
    for key in sorted({*aliases, *explained}):
        stands, said = aliases.get(key), explained.get(key)
        if stands != said:
            model, alias = key
            found.append(
                f"{alias} of {model} is version {stands or '-'}, the record says {said or '-'}: set past the registry"
            )
    for (model, version), stage in sorted((stages or {}).items()):
        said = moved.get((model, version))
        if stage != said:
            found.append(f"{model} version {version} is {stage}, the record says {said or '-'}: set past the registry")
    return found


def _storable(text: str) -> str:
    """What every database takes: a refused name may hold NUL (not in PostgreSQL) or half a surrogate pair."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _hash(row: Mapping[str, Any]) -> str:
    return sha256_json(dict(row))
