"""Attacks on the record by somebody who can write to the database: all hashes are computed anew, the triggers gone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.entities.model_registry import RegisteredModelTag

from pillsnap.cli.registry_audit import verify
from pillsnap.core.files import sha256_json
from pillsnap.gate.envelope import ENVELOPE_TAG, RecordHead, open_envelope, seal
from pillsnap.gate.keys import revoke
from pillsnap.registry import audit
from pillsnap.registry.rules import RECORD_TAG

Rows = list[dict[str, Any]]
PROMOTED_FIRST, JUDGED_SECOND, JUDGED_THIRD, REFUSED = 1, 2, 4, 5
"""Places in the rows of `recorded`."""


@pytest.fixture
def forge(shelf: Any) -> Callable[[Callable[[Rows], object]], None]:
    """``forge(change)``: write the record anew as ``change`` leaves its rows, with numbers, hashes and head."""

    def rewrite(change: Callable[[Rows], object]) -> None:
        rows = [dict(row) for row in audit.entries(shelf.store.engine)]
        change(rows)
        shelf.without_triggers()
        previous = audit.FIRST
        with shelf.store.engine.begin() as connection:
            connection.execute(sa.delete(audit.AUDIT))
            for number, row in enumerate(rows, start=1):
                row |= {"number": number, "previous_hash": previous}
                previous = row["hash"] = audit.row_hash(row)
                connection.execute(sa.insert(audit.AUDIT).values(**row))
            connection.execute(sa.update(audit.HEAD).values(number=len(rows), hash=previous))

    return rewrite


def other_actor(rows: Rows) -> None:
    rows[PROMOTED_FIRST]["actor"] = "somebody else"


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (other_actor, "the gate signed row 2 on "),
        (lambda rows: rows.pop(PROMOTED_FIRST), "the gate signed row 2 on "),
        (lambda rows: rows.insert(PROMOTED_FIRST, dict(rows[REFUSED])), "the gate signed row 2 on "),
        (lambda rows: rows.reverse(), "and it is another one now: the history before it was written anew"),
        (lambda rows: rows[JUDGED_SECOND].update(envelope=""), "row 3 tells of a judgement without its envelope"),
        (lambda rows: rows[JUDGED_SECOND].update(verdict="HOLD"), "row 3 does not say what its envelope says"),
        (lambda rows: rows.pop(JUDGED_SECOND), "pills version 2 carries an envelope that no row tells of"),
        (
            lambda rows: rows[JUDGED_SECOND].update(envelope=rows[JUDGED_THIRD]["envelope"]),
            "row 3 does not say what its envelope says",
        ),
        (lambda rows: rows.clear(), "history was lost (a restored backup?) or cut off"),
    ],
    ids=["actor", "removed", "put in", "order", "envelope away", "verdict", "judgement away", "other envelope", "all"],
)
def test_attack_history_written_anew(
    recorded: Any, forge: Callable[..., None], change: Callable[[Rows], object], found: str
) -> None:
    """Every hash is right afterwards: what the gate has signed tells."""
    forge(change)
    said = "\n".join(recorded.problems())
    assert found in said
    assert "its hash" not in said
    assert "does not follow" not in said


def test_attack_signed_anew_by_another_key(recorded: Any, forge: Callable[..., None]) -> None:
    mine, ring = Ed25519PrivateKey.generate(), recorded.trust.ring()

    def sign(rows: Rows) -> None:
        other_actor(rows)
        for row in rows:
            if row["envelope"]:
                row["envelope"] = seal(open_envelope(row["envelope"], ring), mine)

    forge(sign)
    assert "the envelope in row 3 signed by key" in "\n".join(recorded.problems())


def test_attack_the_end_cut_off_before_a_signed_head(recorded: Any, forge: Callable[..., None]) -> None:
    """The champion is set back as well, so that aliases and rows agree: the words on the versions tell."""

    def cut(rows: Rows) -> None:
        del rows[JUDGED_SECOND:]

    forge(cut)
    recorded.sql("UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'")
    said = recorded.problems()
    assert "pills version 2 carries an envelope that no row tells of: set past the registry" in said
    assert any("the gate signed row 4" in text and "the record ends at row 2" in text for text in said)


def test_attack_an_old_word_put_back(shelf: Any, forge: Callable[..., None]) -> None:
    """By SQL, where the store would refuse it; and with the record set back to that state too."""
    version = shelf.judged()
    old = shelf.tags(version)[ENVELOPE_TAG]
    shelf.hand_in(shelf.statement(version, "REJECT"), version)
    newest = RecordHead(number=2, hash=shelf.rows()[-1]["hash"])
    shelf.sql("UPDATE model_version_tags SET value = :old WHERE key = :key", old=old, key=ENVELOPE_TAG)
    [said] = shelf.problems()
    assert "the envelope of pills version 1 is not that of row 2" in said

    forge(lambda rows: rows.pop())
    assert shelf.problems() == [], "an earlier state as a whole: this database alone cannot tell"
    [said] = shelf.problems(newest)
    assert said.startswith("kept 1 holds row 2, and the record ends at row 1: history was lost")


def test_attack_an_earlier_state_as_a_whole(recorded: Any, forge: Callable[..., None]) -> None:
    """As a restored backup: found by what the gate has signed and somebody has kept elsewhere."""
    kept = recorded.tags("3")[ENVELOPE_TAG]
    assert recorded.problems(kept) == []
    forge(lambda rows: rows.__delitem__(slice(JUDGED_SECOND, None)))
    recorded.sql("UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'")
    recorded.sql("DELETE FROM model_version_tags WHERE version > 1")
    recorded.sql("DELETE FROM model_versions WHERE version > 1")
    assert recorded.problems() == []
    [said] = recorded.problems(kept)
    assert said.startswith("the gate signed row 4 on ")
    assert said.endswith("(kept 1), and the record ends at row 2: history was lost (a restored backup?) or cut off")


def test_attack_after_the_last_signed_head_is_open_and_counted(recorded: Any, forge: Callable[..., None]) -> None:
    """What can be changed unseen is said in figures, and is shut by the next word of the gate."""
    findings = recorded.findings()
    assert (findings.rows, findings.signed_rows) == (6, 4)
    forge(lambda rows: rows[REFUSED].update(actor="somebody else"))
    assert recorded.problems() == []
    recorded.judged()
    assert (recorded.findings().rows, recorded.findings().signed_rows) == (7, 6)


def test_attack_a_judged_version_deleted_by_sql(recorded: Any) -> None:
    recorded.sql("DELETE FROM model_version_tags WHERE version = 3")
    assert recorded.problems() == ["the envelope of pills version 3 was taken away: row 5 tells of it"]
    recorded.sql("DELETE FROM model_versions WHERE version = 3")
    assert recorded.problems() == ["pills version 3, judged in row 5, is gone: deleted past the registry"]


def test_what_is_deleted_and_renamed_by_the_registry_is_explained(shelf: Any) -> None:
    shelf.judged("HOLD")
    shelf.store.delete_model_version("pills", "1")
    other = shelf.judged("HOLD", "tablets")
    shelf.store.rename_registered_model("tablets", "capsules")
    assert shelf.problems() == []
    shelf.store.delete_registered_model("capsules")
    assert (other, shelf.problems(), shelf.findings().signed_rows) == ("1", [], 2)


def test_attack_a_stage_put_back_by_sql(shelf: Any) -> None:
    """Who archives others moves these too, and each has a row."""
    first, second = shelf.judged(), shelf.judged()
    shelf.store.transition_model_version_stage("pills", first, "Production", False)
    shelf.store.transition_model_version_stage("pills", second, "Production", True)
    moved = [(row["version"], row["alias"], row["reason"]) for row in shelf.rows(action="stage")]
    assert moved == [
        ("1", "Production", ""),
        ("1", "Archived", "by version 2, which became Production"),
        ("2", "Production", ""),
    ]
    assert shelf.problems() == []
    shelf.sql("UPDATE model_versions SET current_stage = 'Production' WHERE version = 1")
    assert shelf.problems() == ["pills version 1 is Production, the record says Archived: set past the registry"]
    shelf.sql("UPDATE model_versions SET current_stage = 'Archived'")
    [said] = shelf.problems()
    assert said == "pills version 2 is in no guarded stage, the record says Production: set past the registry"


def test_attack_a_word_signed_over_another_history(shelf: Any) -> None:
    """The registry takes it only where its own record has ended so."""
    shelf.judged()
    version = shelf.version()
    for record in (None, RecordHead(number=1, hash="f" * 64), RecordHead(number=9, hash=audit.FIRST)):
        with shelf.refused("signed for another history"):
            shelf.hand_in(shelf.statement(version, record=record), version)
    shelf.hand_in(shelf.statement(version), version)
    assert shelf.problems() == []


def test_attack_nobody_else_says_where_the_record_ends(shelf: Any) -> None:
    shelf.judged()
    with shelf.refused("written by the gate alone"):
        shelf.store.set_registered_model_tag("pills", RegisteredModelTag(RECORD_TAG, "0 0"))
    shelf.sql("INSERT INTO registered_model_tags (name, key, value) VALUES ('pills', :key, '0 0')", key=RECORD_TAG)
    [*_, last] = shelf.rows()
    assert shelf.store.get_registered_model("pills").tags[RECORD_TAG] == f"{last['number']} {last['hash']}"


def test_a_revoked_key_holds_nothing_in_place(recorded: Any) -> None:
    [key_id] = recorded.trust.ring().keys
    revoke(recorded.trust.keys_folder, key_id, now=datetime.now(UTC))
    findings = recorded.findings()
    assert (findings.problems, findings.signed_rows, findings.revoked) == ([], 0, 3)


def test_a_record_of_an_earlier_version_gets_its_column(trust: Any, tmp_path: Path) -> None:
    import alembic.command
    import alembic.config

    engine = sa.create_engine(f"sqlite:///{tmp_path}/old.db")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(audit.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")
        row: dict[str, Any] = {
            column.name: "" for column in audit.AUDIT.c if column.name not in ("number", "created_at_ms", "envelope")
        }
        row |= {"number": 1, "created_at_ms": 0, "action": "judged", "outcome": "done", "previous_hash": audit.FIRST}
        row["hash"] = sha256_json({name: value for name, value in row.items() if name != "hash"})
        names = ", ".join(f'"{name}"' for name in row)
        connection.execute(
            sa.text(f"INSERT INTO pillsnap_audit ({names}) VALUES ({', '.join(f':{name}' for name in row)})"),
            row,
        )
        connection.execute(sa.update(audit.HEAD).values(number=1, hash=row["hash"]))
    audit.prepare_tables(engine)
    from pillsnap.registry.verification import Standing, examine

    with audit.standing_still(engine) as connection:
        found = examine(connection, Standing({}, {}, {("", "", 0): ""}), trust.ring())
    engine.dispose()
    assert found.problems == [
        "row 1 tells of a judgement without its envelope: made by an earlier version, or taken away; the gate's next "
        "word signs over it as it stands"
    ]


def test_rows_from_before_envelopes_are_signed_over(
    shelf: Any, forge: Callable[..., None], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update: the record holds again with the gate's next word, and the rows are counted."""
    shelf.judged()
    shelf.judged("HOLD")
    forge(lambda rows: [row.update(envelope="") for row in rows])
    shelf.sql("DELETE FROM model_version_tags WHERE key = :key", key=ENVELOPE_TAG)
    assert [text.split(" tells")[0] for text in shelf.problems()] == ["row 1", "row 2"]
    shelf.promote(shelf.judged())
    findings = shelf.findings()
    assert (findings.problems, findings.signed_rows, findings.bare) == ([], 2, 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    said = CliRunner().invoke(verify, [], catch_exceptions=False).output
    assert "2 of the signed rows tell of a judgement without its envelope" in said


def test_attack_an_envelope_taken_from_a_signed_row(recorded: Any, forge: Callable[..., None]) -> None:
    """It is not taken for a row of an earlier version: what was signed over it names another hash."""
    forge(lambda rows: rows[0].update(envelope=""))
    assert "the gate signed row 2 on " in recorded.problems()[0]
