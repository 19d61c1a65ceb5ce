"""Many at once, and what breaks in the middle: one champion, everything written down, nothing half-done."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from pillsnap.core.errors import GateRefusedError
from pillsnap.gate.admission import check_bound
from pillsnap.gate.envelope import ENVELOPE_TAG, open_envelope, seal
from pillsnap.registry.rules import HISTORY_TAG
from pillsnap.registry.version_page import history_in


def at_once(wishes: list[Callable[[], Any]]) -> list[str]:
    """All at the same moment; ``done``, or the code of the error."""
    start = threading.Barrier(len(wishes))

    def run(wish: Callable[[], Any]) -> str:
        start.wait()
        try:
            wish()
        except MlflowException as error:
            return str(error.error_code)
        return "done"

    with ThreadPoolExecutor(len(wishes)) as pool:
        return list(pool.map(run, wishes))


@pytest.mark.parametrize(
    ("kind", "many"),
    # SQLite has one writer, and whoever has waited too long for it is told so: few
    [("sqlite", 12), ("postgresql", 12), pytest.param("postgresql", 100, marks=pytest.mark.long)],
)
def test_attack_many_promotions_at_once(shelf: Any, many: int) -> None:
    """Many versions, each judged better than no champion: one gets through, the others are to be compared."""
    versions = [shelf.judged() for _ in range(many)]
    outcomes = at_once([lambda version=version: shelf.promote(version) for version in versions])
    assert sorted(outcomes) == ["PERMISSION_DENIED"] * (many - 1) + ["done"]
    rows = shelf.rows(action="set")
    assert {row["version"] for row in rows} == set(versions), "all are in the record"
    assert len(rows) == many
    [winner] = [row for row in rows if row["outcome"] == "done"]
    assert (winner["version"], winner["before"]) == (shelf.champion(), "")
    assert all("compared with no champion, now it is" in row["reason"] for row in rows if row is not winner)
    assert shelf.problems() == []


def test_attack_two_processes_promote_at_once(shelf: Any, database: str) -> None:
    versions = [shelf.judged() for _ in range(6)]
    shelf.store.engine.dispose()
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        outcomes = pool.starmap(_promote_elsewhere, [(database, versions[0::2]), (database, versions[1::2])])
    assert [outcome for of_one in outcomes for outcome in of_one].count("done") == 1
    assert len(shelf.rows(action="set")) == 6
    assert shelf.problems() == []


def _promote_elsewhere(database: str, versions: list[str]) -> list[str]:
    import warnings

    warnings.simplefilter("ignore")
    from pillsnap.registry.store import gated_store

    store, outcomes = gated_store(database), []
    for version in versions:
        try:
            store.set_registered_model_alias("pills", "champion", version)
            outcomes.append("done")
        except MlflowException as error:
            outcomes.append(str(error.error_code))
    return outcomes


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_attack_words_handed_in_at_once(shelf: Any) -> None:
    """Two gates that judged the same version: one word stands, and the other does not replace it."""
    version = shelf.version()
    words = [seal(shelf.statement(version, verdict), shelf.key) for verdict in ("PROMOTE", "REJECT") * 4]
    outcomes = at_once([lambda word=word: shelf.hand_in(word, version) for word in words])
    assert sorted(outcomes) == ["PERMISSION_DENIED"] * 7 + ["done"]
    assert [row["outcome"] for row in shelf.rows(action="judged")].count("done") == 1
    stands = open_envelope(shelf.tags(version)[ENVELOPE_TAG], shelf.trust.ring())
    assert shelf.tags(version)["gate.decision"] == str(stands.verdict)


def test_the_same_word_twice_is_one(shelf: Any) -> None:
    """A gate that died after handing in, and starts again."""
    version = shelf.version()
    word = seal(shelf.statement(version), shelf.key)
    assert at_once([lambda: shelf.hand_in(word, version)] * 8) == ["done"] * 8
    assert len(shelf.rows(action="judged")) == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_attack_promotion_and_deletion_at_once(shelf: Any) -> None:
    """Whoever comes first: never a champion that is deleted."""
    version = shelf.judged()
    outcomes = at_once(
        [
            lambda: shelf.promote(version),
            lambda: shelf.store.delete_model_version("pills", version),
            lambda: shelf.store.delete_registered_model("pills"),
            lambda: shelf.store.rename_registered_model("pills", "other"),
        ]
    )
    names = [model.name for model in shelf.store.search_registered_models()]
    if outcomes[0] == "done":
        assert outcomes[1:] == ["PERMISSION_DENIED"] * 3
        assert (names, shelf.champion()) == (["pills"], version)
    else:
        assert not any(dict(model.aliases) for model in shelf.store.search_registered_models())
    assert shelf.problems() == []


def test_attack_files_changed_in_the_moment_of_promotion(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the store has looked: no lock can stop it, so whoever loads the champion looks again."""
    from pillsnap.registry import artifacts as module

    version, honest = shelf.judged(), module.digests

    def digests_and_then_a_change(location: str) -> tuple[str, str]:
        found = honest(location)
        (shelf.files(version) / "model.onnx").write_bytes(b"worse")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, "digests", digests_and_then_a_change)
        shelf.promote(version)
    statement = open_envelope(shelf.tags(version)[ENVELOPE_TAG], shelf.trust.ring())
    with pytest.raises(GateRefusedError, match="is not the one that was judged"):
        check_bound(statement, shelf.store._facts("pills", version))


def test_what_happens_while_the_gates_word_is_checked_stays_in_the_history(
    shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pillsnap.registry import artifacts as module

    version, honest = shelf.version(), module.digests

    def digests_and_then_a_question(location: str) -> tuple[str, str]:
        found = honest(location)
        shelf.promote(version, "candidate")
        return found

    word = shelf.statement(version)
    with monkeypatch.context() as patch:
        patch.setattr(module, "digests", digests_and_then_a_question)
        shelf.hand_in(word, version)
    assert set(history_in(shelf.tags(version)[HISTORY_TAG])) == {"registered", "asked", "judged"}


def test_attack_a_version_deleted_in_the_moment_of_promotion(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pillsnap.registry import artifacts as module

    version, honest = shelf.judged(), module.digests

    def digests_and_then_away(location: str) -> tuple[str, str]:
        found = honest(location)
        shelf.store.delete_registered_model("pills")
        shelf.version()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, "digests", digests_and_then_away)
        with pytest.raises(MlflowException, match="the gate has not judged it"):
            shelf.promote(version)
    assert shelf.champion() is None


@pytest.mark.parametrize("kind", ["postgresql"])
def test_attack_the_database_goes_down_in_the_middle(
    shelf: Any, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between MLflow's write and the record's: nothing of it is there afterwards, and all goes on."""
    from pillsnap.registry import audit

    version, honest = shelf.judged(), audit.append

    def append_to_nothing(session: Any, entry: Any) -> None:
        postgres.stop()
        honest(session, entry)

    with monkeypatch.context() as patch:
        patch.setattr(audit, "append", append_to_nothing)
        with pytest.raises(MlflowException) as caught:
            shelf.promote(version)
    assert caught.value.error_code == "TEMPORARILY_UNAVAILABLE"
    postgres.start()
    shelf.store.engine.dispose()
    assert (shelf.champion(), shelf.rows(action="set"), shelf.problems()) == (None, [], [])
    shelf.promote(version)
    assert (shelf.champion(), shelf.problems()) == (version, [])
