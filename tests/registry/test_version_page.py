"""The words on a version's page: what was done with it, and what it waits for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pillsnap.registry.version_page import (
    ASKED,
    LONGEST,
    REGISTERED,
    Event,
    became,
    cannot_be_judged,
    history_in,
    not_judged,
    time_in,
    time_text,
    waiting_line,
    waits,
    with_event,
)

NOON = datetime(2026, 12, 1, 12, 0, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_history_is_read_as_it_was_written() -> None:
    text = with_event("", REGISTERED, NOON, "local:kim")
    text = with_event(text, "champion", NOON + 2 * HOUR, "rita")
    text = with_event(text, ASKED, NOON + HOUR, "erik@example.org")
    assert text == (
        "registered 2026-12-01 12:00:05 UTC by local:kim; asked 2026-12-01 13:00:05 UTC by erik@example.org; "
        "champion 2026-12-01 14:00:05 UTC by rita"
    )
    again = with_event(text, "champion", NOON + 3 * HOUR, "rita")
    assert again.count("champion") == 1
    assert history_in(again)["champion"] == Event(NOON + 3 * HOUR, "rita")
    assert history_in(again)[REGISTERED] == Event(NOON, "local:kim")


def test_attack_a_name_that_writes_history() -> None:
    text = with_event("", ASKED, NOON, "x; champion 2026-12-01 12:00:05 UTC by rita")
    assert set(history_in(text)) == {ASKED}
    assert set(history_in("nonsense; champion yesterday by rita; asked 2026-99-01 12:00:05 UTC by x")) == set()
    assert with_event("", ASKED, NOON, "").endswith("by _")


def test_times() -> None:
    assert time_in(time_text(NOON)) == NOON
    assert time_in("yesterday") is None


def test_a_version_that_waits_says_since_when_and_whether_anybody_is_there() -> None:
    asked = Event(NOON, "erik")
    new = not_judged("run-1", "top1 **99 %**\n\nmore")
    assert new.startswith("Not judged yet. To ask the gate")
    text = waits(new, asked, None)
    assert text.startswith("Waits for the gate since 2026-12-01 12:00:05 UTC (asked by erik). No gate service has been")
    assert "`pillsnap registry gate-service`" in text
    assert "Not judged yet" not in text
    assert text.endswith("top1 **99 %**\n\nmore\n"), "what the run says stays"
    assert "seen since 2026-12-01 11:00:05 UTC" in waits(new, asked, NOON - HOUR)
    there = waits(text, asked, NOON - timedelta(minutes=5))
    assert "The gate service was seen 2026-12-01 11:55:05 UTC: the verdict appears here." in there
    assert there.count("Waits for the gate") == 1
    assert waits("my own words", asked, None).endswith("\n\nmy own words\n")
    assert waits("", asked, None).endswith("gate-service`.\n")


def test_who_promoted_stands_at_the_end_and_once() -> None:
    card = "PROMOTE · top-1\n\ntable\n"
    text = became(card, "champion", Event(NOON, "rita"))
    assert text == card + "\nBecame champion 2026-12-01 12:00:05 UTC, set by rita.\n"
    again = became(text, "champion", Event(NOON + HOUR, "kim"))
    assert again == card + "\nBecame champion 2026-12-01 13:00:05 UTC, set by kim.\n"


def test_no_description_is_longer_than_a_database_takes() -> None:
    asked = Event(NOON, "erik")
    for text in (
        not_judged("r", "x" * 9000),
        waits("x" * 9000, asked, None),
        became("x" * 5000, "champion", asked),
        cannot_be_judged("x" * 9000),
    ):
        assert len(text) <= LONGEST


def test_candidates_that_nobody_looks_at() -> None:
    waiting = {"3": Event(NOON, "erik")}
    later = NOON + HOUR
    assert waiting_line(waiting, None, later) == (
        "no gate service has been seen (version 3 waits since 2026-12-01 12:00:05 UTC); start one: pillsnap registry "
        "gate-service"
    )
    seen = NOON - HOUR
    assert "no gate service seen since 2026-12-01 11:00:05 UTC (version 3 waits" in waiting_line(waiting, seen, later)
    for minutes in (1, 20):
        assert waiting_line(waiting, later - timedelta(minutes=minutes), later) == "", "it looks, or measures another"
    measuring = {"3": Event(NOON + timedelta(minutes=5), "erik")}
    assert waiting_line(measuring, NOON, NOON + timedelta(minutes=15)) == "", "asked for while it measured another"
    assert "seen since" in waiting_line(measuring, NOON, NOON + timedelta(minutes=21))
    assert waiting_line(waiting, seen, NOON + timedelta(seconds=30)) == "", "it looks within its poll"
    assert waiting_line({}, None, later) == ""
