from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import GateRefusedError
from pillsnap.gate.admission import (
    CHALLENGER,
    CHAMPION,
    CLOCK_TOLERANCE,
    NEEDED,
    Terms,
    VersionFacts,
    check_bound,
    check_fresh,
    check_verdict,
)
from pillsnap.gate.decision import Verdict
from pillsnap.gate.envelope import ChampionRef, RecordHead, Statement

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000
BEFORE = ChampionRef(version="2", bundle_sha256="9" * 64)
STATEMENT = Statement(
    decision_id="d-1",
    replaces=None,
    issued_at_ms=NOW_MS - DAY_MS,
    model_name="pills",
    model_version="3",
    created_at_ms=1_700_000_000_000,
    bundle_sha256="b" * 64,
    artifact_sha256="a" * 64,
    manifest_hash="c" * 64,
    policy_sha256="e" * 64,
    evidence_sha256="f" * 64,
    champion=BEFORE,
    record=RecordHead(number=4, hash="d" * 64),
    verdict=Verdict.PROMOTE,
    reasons=(),
    figures={},
    evidence_run_id="r",
    code="1",
)
FACTS = VersionFacts("pills", "3", 1_700_000_000_000, "b" * 64, "a" * 64)
TERMS = Terms(policy_sha256="e" * 64, now_ms=NOW_MS, max_age=timedelta(days=30), champion=BEFORE)


def test_what_is_as_it_was_judged_is_admitted() -> None:
    check_bound(STATEMENT, FACTS)
    check_verdict(STATEMENT, CHAMPION)
    check_fresh(STATEMENT, TERMS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "others"}, "others version 3: its envelope was signed for pills version 3"),
        ({"name": "Pills"}, "was signed for pills"),
        ({"name": "ｐills"}, "was signed for pills"),
        ({"name": "pills "}, "was signed for pills"),
        ({"name": "рills"}, "was signed for pills"),  # a Cyrillic р
        ({"version": "4"}, "pills version 4: its envelope was signed for pills version 3"),
        ({"version": "03"}, "was signed for pills version 3"),
        ({"version": "３"}, "was signed for pills version 3"),
        ({"created_at_ms": 1_700_000_000_001}, "deleted and made again"),
        ({"bundle_sha256": "c" * 64}, "is not the one that was judged .*register the run again"),
        ({"bundle_sha256": ""}, "is not the one that was judged"),
        ({"bundle_sha256": "B" * 64}, "is not the one that was judged"),
        ({"artifact_sha256": "c" * 64}, "MLmodel, requirements .*register the run again"),
    ],
)
def test_attack_with_the_envelope_of_another_version_or_file(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GateRefusedError, match=sentence):
        check_bound(STATEMENT, replace(FACTS, **changes))


@pytest.mark.parametrize("alias", [CHAMPION, CHALLENGER])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_verdict_opens_what_it_may(verdict: Verdict, alias: str) -> None:
    statement = STATEMENT.model_copy(update={"verdict": verdict, "reasons": ("top1 is low", "size_mb is high")})
    allowed = verdict == Verdict.PROMOTE or (verdict == Verdict.HOLD and alias == CHALLENGER)
    assert (verdict in NEEDED[alias]) == allowed
    if allowed:
        check_verdict(statement, alias)
        return
    with pytest.raises(GateRefusedError) as caught:
        check_verdict(statement, alias)
    told = f"pills version 3 does not become {alias}: {verdict}\n  - top1 is low\n  - size_mb is high"
    assert str(caught.value) == told


def test_attack_with_a_lowered_policy() -> None:
    with pytest.raises(GateRefusedError, match=r"judged by another policy \(e{12}…, now d{12}…\); judge again"):
        check_fresh(STATEMENT, replace(TERMS, policy_sha256="d" * 64))


def test_attack_with_the_clock_set_back() -> None:
    """A server whose clock is behind does not take a statement of tomorrow for a fresh one."""
    now = STATEMENT.issued_at_ms - CLOCK_TOLERANCE // timedelta(milliseconds=1)
    check_fresh(STATEMENT, replace(TERMS, now_ms=now))
    with pytest.raises(GateRefusedError, match="from now; set the clocks"):
        check_fresh(STATEMENT, replace(TERMS, now_ms=now - 1))


def test_attack_with_an_old_decision() -> None:
    limit = STATEMENT.issued_at_ms + 30 * DAY_MS
    check_fresh(STATEMENT, replace(TERMS, now_ms=limit))
    with pytest.raises(GateRefusedError, match="judged 30 days ago, more than 30; judge again"):
        check_fresh(STATEMENT, replace(TERMS, now_ms=limit + 1))
    check_fresh(STATEMENT, replace(TERMS, now_ms=limit + 1, max_age=None))


@pytest.mark.parametrize(
    ("champion", "sentence"),
    [
        (None, "compared with champion version 2, now there is none"),
        (ChampionRef(version="5", bundle_sha256="9" * 64), "compared with champion version 2, now it is version 5"),
        (ChampionRef(version="2", bundle_sha256="8" * 64), "judge again"),
    ],
)
def test_attack_by_racing_another_promotion(champion: ChampionRef | None, sentence: str) -> None:
    with pytest.raises(GateRefusedError, match=sentence):
        check_fresh(STATEMENT, replace(TERMS, champion=champion))


def test_the_first_champion_needs_none_before() -> None:
    first = STATEMENT.model_copy(update={"champion": None})
    check_fresh(first, replace(TERMS, champion=None))
    with pytest.raises(GateRefusedError, match="compared with no champion, now it is version 2"):
        check_fresh(first, TERMS)


@given(st.integers(-400 * DAY_MS, 400 * DAY_MS), st.integers(1, 400))
def test_a_statement_opens_doors_from_its_date_to_its_end(shift_ms: int, days: int) -> None:
    terms = replace(TERMS, now_ms=STATEMENT.issued_at_ms + shift_ms, max_age=timedelta(days=days))
    admitted = -300_000 <= shift_ms <= days * DAY_MS
    try:
        check_fresh(STATEMENT, terms)
        assert admitted
    except GateRefusedError:
        assert not admitted
