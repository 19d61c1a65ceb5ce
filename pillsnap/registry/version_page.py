"""The words on a version's page in MLflow: who did what with it and when, and its description until it is judged. Pure.

MLflow's list of versions shows the first 32 characters of a description, as plain text: each begins with what counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pillsnap.gate.admission import CANDIDATE

REGISTERED, ASKED, JUDGED = "registered", "asked", "judged"
"""Events of a version beside its guarded aliases."""
WORKING = "The gate is measuring this version. It answers the test images now; the verdict appears here.\n"
LONGEST = 5000
"""Characters of a description that MLflow's databases take."""
SERVICE_LOOKS = timedelta(minutes=10)
"""How often the gate service says that it is there."""
_TIME = "%Y-%m-%d %H:%M:%S UTC"
_EVENT = re.compile(r"(\w+) (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC) by ([^ ;]+)")
_NOT_IN_NAMES = re.compile(r"[^\w.@:+-]")
_WAITS = "Waits for the gate since "
_NOT_JUDGED = "Not judged yet. "
_RUNS = "It measures what is marked as candidate while this runs: `pillsnap registry gate-service`."


class Event(NamedTuple):
    """Something was done with a version."""

    at: datetime
    actor: str


def time_text(at: datetime) -> str:
    """A time as tags hold it."""
    return at.astimezone(UTC).strftime(_TIME)


def time_in(text: str) -> datetime | None:
    """The time that a tag holds; None: something else."""
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def history_in(text: str) -> dict[str, Event]:
    """The last event of each kind, by the tag that `with_event` made."""
    found = ((what, time_in(at), actor) for what, at, actor in _EVENT.findall(text))
    return {what: Event(at, actor) for what, at, actor in found if at is not None}


def with_event(text: str, what: str, at: datetime, actor: str) -> str:
    """The tag with one more event, which takes the place of an earlier one of its kind."""
    events = {**history_in(text), what: Event(at, _NOT_IN_NAMES.sub("_", actor) or "_")}
    ordered = sorted(events.items(), key=lambda item: item[1].at)
    return "; ".join(f"{kind} {time_text(event.at)} by {event.actor}" for kind, event in ordered)


def not_judged(run_id: str, claims: str) -> str:
    """The description of a new version. ``claims``: what its run says of itself."""
    text = (
        f"{_NOT_JUDGED}To ask the gate for it, give this version the alias or the tag `{CANDIDATE}`.\n\n"
        f"What the training run itself says (run `{run_id}`), which counts for nothing here:\n\n{claims}\n"
    )
    return text[:LONGEST]


def waits(before: str, asked: Event, seen: datetime | None) -> str:
    """The description of a version that was marked as candidate.

    Args:
        before: its description until now; what the run says of itself stays.
        asked: by whom, and when.
        seen: when a gate service looked last; None: never.
    """
    first, _, rest = before.partition("\n\n")
    if not first.startswith((_WAITS, _NOT_JUDGED)):
        rest = before
    head = f"{_WAITS}{time_text(asked.at)} (asked by {asked.actor}). {_service(asked.at, seen)}"
    return f"{head}\n\n{rest}"[: LONGEST - 1].rstrip() + "\n"


def became(before: str, alias: str, event: Event) -> str:
    """The description of a version that was given an alias, with that at its end."""
    head = f"Became {alias} "
    kept = "\n\n".join(part for part in before.rstrip().split("\n\n") if not part.startswith(head))
    line = f"{head}{time_text(event.at)}, set by {event.actor}.\n"
    return f"{kept[: LONGEST - len(line) - 2]}\n\n{line}"


def cannot_be_judged(reason: str) -> str:
    """The description where the gate could not measure. ``reason``: escaped already."""
    return f"The gate cannot judge this version.\n\n{reason[:2000]}\n"


def waiting_line(waiting: Mapping[str, Event], seen: datetime | None, now: datetime) -> str:
    """What is to be said of candidates where no gate service is there; empty: nothing.

    Args:
        waiting: version → when it was asked for, of those that are not judged.
        seen: when a gate service looked last; None: never.
        now: this moment. A service that is there looks within its poll: under a minute nothing is said.
    """
    old = [
        f"version {version} waits since {time_text(event.at)}"
        for version, event in waiting.items()
        if now - event.at > timedelta(minutes=1)
    ]
    if not old or _is_there(now, seen):
        return ""
    since = "has been seen" if seen is None else f"seen since {time_text(seen)}"
    return f"no gate service {since} ({', '.join(old)}); start one: pillsnap registry gate-service"


def _service(now: datetime, seen: datetime | None) -> str:
    if seen is not None and _is_there(now, seen):
        return f"The gate service was seen {time_text(seen)}: the verdict appears here."
    return f"No gate service has been seen {'here yet' if seen is None else f'since {time_text(seen)}'}. {_RUNS}"


def _is_there(now: datetime, seen: datetime | None) -> bool:
    """Whether a gate service is: it says so every `SERVICE_LOOKS`, also while it measures."""
    return seen is not None and now - seen <= 2 * SERVICE_LOOKS
