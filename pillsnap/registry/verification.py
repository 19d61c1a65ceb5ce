"""Whether the record is whole, and what stands in the registry is what it says. Pure, but for the rows that it reads.

Three things hold each other: the rows, chained by their hashes; the envelopes, each of which the gate has signed over
the row that the record ended at, and which lie in rows themselves; and what stands now. Whoever can write to the
database can compute all hashes anew, but not a signature. So no row up to the last signed one can be changed, put in
or taken out unseen, unless that signature goes too: then all after it has to go, and what stands by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pillsnap.core.errors import TamperedError
from pillsnap.gate.envelope import RecordHead, Statement, open_envelope
from pillsnap.gate.keys import KeyRing
from pillsnap.registry import audit
from pillsnap.registry.rules import STAGES

Kept = tuple[str, str | RecordHead]
"""Where something was kept outside this database: an envelope, or number and hash of a row."""
Version = tuple[str, str, int]
"""Model, number, and when the registry made it, in milliseconds."""
_PAST = "past the registry"


@dataclass(frozen=True)
class Standing:
    """What stands in the registry now."""

    aliases: Mapping[tuple[str, str], str]
    """(model, alias) → version, of the guarded aliases."""
    stages: Mapping[tuple[str, str], str]
    """(model, version) → stage, of the versions that are in a guarded one."""
    envelopes: Mapping[Version, str]
    """Of every version; empty: it has none."""


@dataclass
class Findings:
    """What a look at the record has shown."""

    problems: list[str] = field(default_factory=list)
    """Empty: it holds."""
    rows: int = 0
    signed_rows: int = 0
    """The rows from the first to this one stand as a trusted key has signed them."""
    signed_at: datetime | None = None
    revoked: int = 0
    """Envelopes in it whose key was revoked since: they hold nothing in place."""
    bare: int = 0
    """Judgements without an envelope (an earlier version kept none) in the rows up to the last signed one."""


def examine(connection: sa.Connection, standing: Standing, ring: KeyRing, kept: Iterable[Kept] = ()) -> Findings:
    """Go through the whole record.

    Args:
        connection: to the database, in which nobody appends meanwhile (`audit.standing_still`).
        standing: as it is now.
        ring: the keys that are trusted.
        kept: what must be found in it.
    """
    return _Reading(ring).of(connection, standing, kept)


class _Reading:
    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._found = Findings()
        self._hashes = {0: audit.FIRST}
        """By the number of the row."""
        self._last = 0
        """Number of the last row."""
        self._aliases: dict[tuple[str, str], str] = {}
        self._stages: dict[tuple[str, str], str] = {}
        self._judged: dict[Version, tuple[int, str]] = {}
        """Row and envelope of the last word on each version that is there."""
        self._bare: list[int] = []
        """Rows that tell of a judgement without its envelope."""
        self._rewritten = False

    def of(self, connection: sa.Connection, standing: Standing, kept: Iterable[Kept]) -> Findings:
        try:
            for row in audit.rows(connection):
                if self._is_readable(row):
                    self._check_chain(row)
                    if row["outcome"] == audit.DONE:
                        self._follow(row)
        except sa.exc.OperationalError as error:  # bytes that are no text, in SQLite
            self._say(f"the rows after row {self._last} cannot be read: {error.orig}")
        self._found.rows = self._last
        self._check_end(connection)
        self._judge_bare()
        self._compare(standing)
        for where, envelope in kept:
            self._check_kept(where, envelope)
        return self._found

    def _say(self, text: str) -> None:
        self._found.problems.append(text)

    # ---- the rows

    def _is_readable(self, row: Mapping[str, Any]) -> bool:
        """Whether each value is of its column's kind: SQLite takes any, past the registry."""
        number = row["number"]
        if not isinstance(number, int) or number < 1:
            self._say(f"row {number!r:.40} was put in: the first one is row 1")
            return False
        for column in audit.AUDIT.c:
            if not isinstance(row[column.name], column.type.python_type):
                shown = f"{column.name} is {row[column.name]!r:.40}"
                self._say(f"row {number} was changed: {shown}, not what the registry writes there")
                self._last, self._hashes[number] = number, row["hash"]
                return False
        return True

    def _check_chain(self, row: Mapping[str, Any]) -> None:
        number = self._last + 1
        if row["number"] != number:
            self._say(f"row {number} is missing: the next one is {row['number']}")
        elif row["previous_hash"] != self._hashes[self._last]:
            self._say(f"row {row['number']} does not follow the row before it: one was changed, removed or put in")
        if row["hash"] != audit.row_hash(row):
            self._say(f"row {row['number']} was changed: its hash is not that of what it says")
        self._last = row["number"]
        self._hashes[self._last] = row["hash"]

    def _check_end(self, connection: sa.Connection) -> None:
        try:
            end = audit.head(connection)
        except (ValueError, sa.exc.NoResultFound):
            self._say("what says where the record ends was changed or taken away (table pillsnap_audit_head)")
            return
        if (end.number, end.hash) != (self._last, self._hashes[self._last]):
            self._say(f"the record ends at row {self._last}, but {end.number} were written: the last ones were removed")

    def _follow(self, row: Mapping[str, Any]) -> None:
        model, version, alias = row["model"], row["version"], row["alias"]
        match row["action"]:
            case "judged":
                self._judged[model, version, row["created_at_ms"]] = (row["number"], row["envelope"])
                self._check_signed(row)
            case "set":
                self._aliases[model, alias] = version
            case "stage":
                self._stages[model, version] = alias
            case "deleted" if alias:
                self._aliases.pop((model, alias), None)
            case "deleted":
                self._judged = {
                    key: value
                    for key, value in self._judged.items()
                    if key[0] != model or (version and key[1] != version)
                }
            case "renamed":
                new = row["reason"].removeprefix("to ")
                self._judged = {
                    (new if key[0] == model else key[0], *key[1:]): value for key, value in self._judged.items()
                }

    def _check_signed(self, row: Mapping[str, Any]) -> None:
        """That the row says what the gate has signed, and the rows before it are those that it was signed over."""
        what = f"row {row['number']}"
        if not row["envelope"]:
            self._bare.append(row["number"])
            return
        statement, is_trusted = self._open(row["envelope"], what)
        if statement is None:
            return
        said = ("decision_id", "created_at_ms", "bundle_sha256", "manifest_hash", "policy_sha256")
        same = all(row[key] == getattr(statement, key) for key in said)
        named = (row["model"], row["version"], row["verdict"])
        if not same or named != (statement.model_name, statement.model_version, str(statement.verdict)):
            self._say(f"{what} does not say what its envelope says")
        if not self._is_passed(statement.record, _claim(statement, what), before=row["number"]):
            return
        assert statement.record is not None
        if is_trusted:
            self._found.signed_rows = max(self._found.signed_rows, statement.record.number)
            self._found.signed_at = statement.issued_at
        else:
            self._found.revoked += 1

    def _judge_bare(self) -> None:
        """A row that the gate has signed over stood so then: one of an earlier version does not fail for ever."""
        for number in self._bare:
            if number > self._found.signed_rows:
                self._say(
                    f"row {number} tells of a judgement without its envelope: made by an earlier version, or taken away"
                    "; the gate's next word signs over it as it stands"
                )
            else:
                self._found.bare += 1

    def _open(self, text: str, what: str) -> tuple[Statement | None, bool]:
        """What the gate has signed there, and whether its key is still trusted."""
        try:
            return open_envelope(text, self._ring), True
        except TamperedError as error:
            try:
                return open_envelope(text, self._ring.with_revoked()), False
            except TamperedError:
                self._say(f"the envelope in {what} {error}")
                return None, False

    def _is_passed(self, at: RecordHead | None, claim: str, before: int) -> bool:
        """Whether the record passes through there; said once where it was written anew."""
        if at is not None and at.number < before and self._hashes.get(at.number) == at.hash:
            return True
        if at is not None and at.number > self._last:
            self._say(
                f"{claim}, and the record ends at row {self._last}: history was lost (a restored backup?) or cut off"
            )
        elif not self._rewritten:
            self._rewritten = True
            self._say(f"{claim}, and it is another one now: the history before it was written anew")
        return False

    # ---- what stands

    def _compare(self, standing: Standing) -> None:
        for model, alias in sorted({*standing.aliases, *self._aliases}):
            stands, said = standing.aliases.get((model, alias)), self._aliases.get((model, alias))
            if stands != said:
                self._say(f"{alias} of {model} is version {stands or '-'}, the record says {said or '-'}: set {_PAST}")
        guarded = {key for key, stage in self._stages.items() if stage in STAGES}
        for model, version in sorted({*standing.stages, *guarded}):
            stands, said = standing.stages.get((model, version)), self._stages.get((model, version))
            if stands != said:
                shown = stands or "in no guarded stage"
                self._say(f"{model} version {version} is {shown}, the record says {said or '-'}: set {_PAST}")
        for key in sorted({*standing.envelopes, *self._judged}):
            self._compare_envelope(key, standing.envelopes.get(key))

    def _compare_envelope(self, key: Version, stands: str | None) -> None:
        what = f"{key[0]} version {key[1]}"
        row, said = self._judged.get(key, (0, ""))
        if stands is None:
            self._say(f"{what}, judged in row {row}, is gone: deleted {_PAST}")
        elif stands and not row:
            self._say(f"{what} carries an envelope that no row tells of: set {_PAST}")
            self._check_kept(what, stands)
        elif stands != said and said:
            self._say(
                f"the envelope of {what} was taken away: row {row} tells of it"
                if not stands
                else f"the envelope of {what} is not that of row {row}: set {_PAST}, or an old one put back"
            )

    def _check_kept(self, where: str, kept: str | RecordHead) -> None:
        if isinstance(kept, RecordHead):
            self._is_passed(kept, f"{where} holds row {kept.number}", before=self._last + 1)
            return
        statement, _ = self._open(kept, where)
        if statement is not None and statement.record is not None:
            self._is_passed(statement.record, _claim(statement, where), before=self._last + 1)


def _claim(statement: Statement, where: str) -> str:
    signed = f"row {statement.record.number}" if statement.record is not None else "no row"
    return f"the gate signed {signed} on {statement.issued_at:%Y-%m-%d %H:%M} UTC ({where})"
