"""The record of everything that the registry's gate was asked for: append-only, each row chained to the one before.

Own tables beside MLflow's, in the same database, so that a row and the change that it tells of are one transaction.
Editing or deleting a row breaks the chain; triggers refuse both to everybody who does not first take the triggers away.
Hashes alone could all be computed anew: what holds the chain in place is that each statement which the gate signs names
the row that it ended at, and lies in a row itself (`pillsnap.registry.verification`).
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
from pillsnap.gate.envelope import LONGEST_ENVELOPE, RecordHead

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
    sa.Column("envelope", sa.Text, nullable=False),
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
    envelope: str = ""
    """What the gate has signed, whole: of ``judged``."""


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
    end = head(session)
    row: dict[str, Any] = {
        key: _storable(value[: LONGEST_ENVELOPE if key == "envelope" else 5000]) if isinstance(value, str) else value
        for key, value in asdict(entry).items()
    }
    for column in AUDIT.c:
        if isinstance(column.type, sa.String) and column.type.length and column.name in row:
            row[column.name] = row[column.name][: column.type.length]
    row |= {"number": end.number + 1, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    row["previous_hash"] = end.hash
    row["hash"] = row_hash(row)
    session.execute(sa.insert(AUDIT).values(**row))
    session.execute(sa.update(HEAD).where(HEAD.c.id == 1).values(number=row["number"], hash=row["hash"]))


def head(session: Session | sa.Connection) -> RecordHead:
    """Where the record ends now."""
    number, digest = session.execute(sa.select(HEAD.c.number, HEAD.c.hash).where(HEAD.c.id == 1)).one()
    return RecordHead(number=number, hash=digest)


def passes_through(session: Session, at: RecordHead) -> bool:
    """Whether the record once ended there."""
    if at.number == 0:
        return at.hash == FIRST
    return session.execute(sa.select(AUDIT.c.hash).where(AUDIT.c.number == at.number)).scalar() == at.hash


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
        yield from rows(connection, model)


def rows(connection: sa.Connection, model: str | None = None) -> Iterator[Mapping[str, Any]]:
    """All rows, the oldest first."""
    query = sa.select(AUDIT).order_by(AUDIT.c.number)
    for row in connection.execute(query if model is None else query.where(AUDIT.c.model == model)):
        yield dict(row._mapping)


def _storable(text: str) -> str:
    """What every database takes: a refused name may hold NUL (not in PostgreSQL) or half a surrogate pair."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def row_hash(row: Mapping[str, Any]) -> str:
    """Of what a row says. A row without an envelope has the hash of before there were any."""
    return sha256_json({key: value for key, value in row.items() if key != "hash" and (key, value) != ("envelope", "")})
