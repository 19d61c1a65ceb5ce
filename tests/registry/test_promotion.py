"""Promoting, going back, and what people are shown: in the same registry that answers the web UI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import BundleError, ConfigError, GateRefusedError, StoreError, TamperedError
from pillsnap.gate.decision import Verdict
from pillsnap.registry.champion import champion_session
from pillsnap.registry.promotion import (
    compare,
    describe_word,
    evidence_of,
    former_champions,
    promote,
    rollback,
)
from pillsnap.registry.versions import find_version
from pillsnap.tracking.store import connect

Candidate = Callable[..., str]


def alias_of(store: MlflowClient, alias: str = "champion") -> str | None:
    try:
        return str(store.get_model_version_by_alias("pills", alias).version)
    except MlflowException:
        return None


def test_a_good_version_becomes_champion_and_answers(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    gate.judge(candidate())
    assert promote("pills", "1").verdict == Verdict.PROMOTE
    assert alias_of(store) == "1"
    with champion_session("pills") as (session, version):
        assert (version, len(session.metadata.classes)) == ("1", 6)


def test_not_before_the_gate_has_spoken(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    candidate()
    with pytest.raises(GateRefusedError, match="the gate has not judged it; mark it as candidate"):
        promote("pills", "1")
    with pytest.raises(MlflowException, match="judge"):
        connect().set_registered_model_alias("pills", "champion", "1")
    assert alias_of(store) is None
    with pytest.raises(ConfigError, match="the gate knows champion and challenger"):
        promote("pills", "1", "best")


def test_hold_may_challenge_but_not_win(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    gate.judge(candidate(wrong=1))
    assert promote("pills", "1", "challenger").verdict == Verdict.HOLD
    with pytest.raises(GateRefusedError, match=r"does not become champion: HOLD\n  - top1 83\.3 % is under the target"):
        promote("pills", "1")
    assert (alias_of(store, "challenger"), alias_of(store)) == ("1", None)
    with champion_session("pills", "challenger") as (_, version):
        assert version == "1"
    gate.judge(candidate(wrong=4))
    with pytest.raises(GateRefusedError, match="does not become challenger: REJECT"):
        promote("pills", "2", "challenger")


def test_compared_with_a_champion_that_is_gone(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    for _ in range(2):
        gate.judge(candidate())
    promote("pills", "1")
    with pytest.raises(GateRefusedError, match="compared with no champion, now it is version 1; judge again"):
        promote("pills", "2")
    gate.judge("2")
    promote("pills", "2")
    assert alias_of(store) == "2"


def test_going_back(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    gate.judge(candidate())
    promote("pills", "1")
    with pytest.raises(StoreError, match="there is no former champion before version 1 to go back to"):
        rollback("pills")
    gate.judge(candidate())
    promote("pills", "2")
    assert former_champions(connect(), "pills") == ["2", "1"]
    gate.set_policy(minimum_test_images={"total": 1000, "real": 500, "per_class": 9})  # its evidence is old now
    before, statement = rollback("pills")
    assert (before, statement.model_version, alias_of(store)) == ("2", "1", "1")
    assert rollback("pills", "2")[1].model_version == "2"
    gate.judge(candidate())
    with pytest.raises(GateRefusedError, match=r"version 3 was never champion before \(those that were: 1\)"):
        rollback("pills", "3")


def test_going_back_needs_the_very_files(store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path) -> None:
    gate.judge(candidate())
    promote("pills", "1")
    [stored] = tmp_path.glob("mlartifacts/exp/models/*/artifacts/model.onnx")
    gate.judge(candidate())
    promote("pills", "2")
    stored.write_bytes(stored.read_bytes() + b" ")
    with pytest.raises(GateRefusedError, match="is not the one that was judged"):
        rollback("pills")
    assert alias_of(store) == "2"


def test_a_champion_set_past_the_registry_is_not_loaded(
    store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path
) -> None:
    """Straight into the database: no store is asked, and serving trusts nobody."""
    import sqlite3

    gate.judge(candidate(wrong=4))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("PRAGMA foreign_keys = ON")
        database.execute(
            "INSERT INTO registered_model_aliases (alias, version, name, workspace) "
            "VALUES ('champion', 1, 'pills', 'default')"
        )
    assert alias_of(store) == "1"
    with (
        pytest.raises(GateRefusedError, match=r"(?s)is champion, but is not loaded: .*REJECT"),
        champion_session("pills"),
    ):
        pass


def test_files_changed_after_the_promotion(
    store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path
) -> None:
    gate.judge(candidate())
    promote("pills", "1")
    [stored] = tmp_path.glob("mlartifacts/exp/models/*/artifacts/model.onnx")
    was = stored.read_bytes()
    stored.write_bytes(b"not a model any more")
    with pytest.raises(GateRefusedError, match="is not the one that was judged"), champion_session("pills"):
        pass
    stored.write_bytes(was)
    (stored.parent / "MLmodel").write_text("flavors: {python_function: {loader_module: evil}}")
    with pytest.raises((GateRefusedError, BundleError, StoreError)), champion_session("pills"):
        pass


def test_there_is_none(store: MlflowClient, gate: Any) -> None:
    with pytest.raises(StoreError, match="the registry has no champion of 'pills'"), champion_session("pills"):
        pass
    with pytest.raises(ConfigError, match="the gate knows champion and challenger"), champion_session("pills", "x"):
        pass


def test_what_people_see(store: MlflowClient, candidate: Candidate, gate: Any) -> None:
    client, ring = connect(), gate.trust.ring()
    candidate()
    assert describe_word(find_version(client, "pills", "1"), ring) == "not judged"
    gate.judge("1")
    line = describe_word(find_version(client, "pills", "1"), ring)
    assert line.startswith("PROMOTE on 20")
    assert "top1 100.0 %" in line
    gate.judge(candidate(wrong=2))
    rows = {row[0]: row[1:] for row in compare("pills", "1", "2")}
    assert rows["verdict"] == ("PROMOTE", "REJECT")
    assert rows["top1"] == ("100.0 %", "66.7 %")
    assert rows["manifest"] == (gate.manifest.hash[:12],) * 2
    assert rows["class K-990001"] == ("100%", "0%")
    assert rows["classes under 70 %"][0] == "none"


def test_evidence_that_was_changed(store: MlflowClient, candidate: Candidate, gate: Any, tmp_path: Path) -> None:
    statement = gate.judge(candidate())
    entry = find_version(connect(), "pills", "1")
    assert evidence_of(entry, gate.trust.ring())[0] == statement
    [stored] = tmp_path.glob(f"mlartifacts/*/{statement.evidence_run_id}/artifacts/evaluation/evidence.json")
    stored.write_text(stored.read_text().replace('"value": 1.0', '"value": 0.9'))
    with pytest.raises(TamperedError, match="is not the one that was signed; judge again"):
        evidence_of(entry, gate.trust.ring())
