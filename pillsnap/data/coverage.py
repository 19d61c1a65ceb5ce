"""What a class is short of, and what to photograph next. Pure: knows conditions and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pillsnap.core.manifest import SPLITS, Split
from pillsnap.data.groups import Usable
from pillsnap.data.mixing import ClassMix, missing_photos
from pillsnap.data.names import DOMAINS, Condition, Domain

SIDES = ("front", "back")
BACKGROUNDS: dict[Domain, tuple[str, ...]] = {
    "real": ("palm", "wood", "white", "black", "checked pattern"),
    "studio": ("background 0", "background 1", "background 2"),
}
"""By the number in the file's name; the real ones are those of the capture protocol."""
LIGHTS = ("dark", "normal", "bright")
ROTATIONS = 8
"""Photos of one cell (background, light, side) that the capture protocol asks for."""
_CELLS_LISTED = 6


def class_coverage(
    usable: Sequence[Usable],
    used: Iterable[str],
    splits: Mapping[str, Split],
    mix: ClassMix,
    ratio: float,
    minimum: int,
) -> dict[str, Any]:
    """What is missing of one class: images by domain, whole conditions, splits; and the photos to take next."""
    chosen = frozenset(used)
    by_domain = {domain: [one for one in usable if one.domain == domain] for domain in DOMAINS}
    real_missing, studio_missing = missing_photos(mix, ratio, minimum)
    conditions = [one.condition for one in by_domain["real"] if one.condition is not None]
    tally = Counter((one.domain, splits[one.path]) for one in usable if one.path in chosen)
    return {
        "missing_real": real_missing,
        "missing_studio": studio_missing,
        "problems": [*_problems(by_domain), *_short(mix, ratio, real_missing, studio_missing)],
        "empty_splits": [
            f"{split}/{domain}"
            for domain in DOMAINS
            for split in SPLITS
            if by_domain[domain] and not tally[domain, split]
        ],
        "photograph_next": photograph_next(conditions, max(real_missing, _for_absent_sittings(conditions))),
    }


def photograph_next(conditions: Sequence[Condition], photos: int) -> list[dict[str, Any]]:
    """Cells of the capture protocol to photograph, the emptiest first: sittings that do not exist yet before others.

    The plan goes over all sittings, each with another light than the one before it, before it comes back to the first:
    more sittings make a better split than more photos of one.

    Args:
        conditions: of the real photos that are there.
        photos: how many are missing.

    Returns:
        background, light, side and number of photos of each cell, until ``photos`` are reached or the protocol is full.
    """
    cells = Counter((c.background, c.light, c.side) for c in conditions)
    sittings = Counter((c.background, c.side) for c in conditions)
    grid = [(b, light, s) for b in range(len(BACKGROUNDS["real"])) for light in range(len(LIGHTS)) for s in (0, 1)]
    grid.sort(key=lambda cell: (sittings[cell[0], cell[2]], cells[cell], _turn(*cell), cell))
    plan: list[dict[str, Any]] = []
    for background, light, side in grid:
        number = min(ROTATIONS - cells[background, light, side], photos)
        if number <= 0:
            continue
        plan.append(
            {
                "background": BACKGROUNDS["real"][background],
                "light": LIGHTS[light],
                "side": SIDES[side],
                "photos": number,
            }
        )
        photos -= number
    return plan


def _turn(background: int, light: int, side: int) -> int:
    """When a cell's light has its turn in its sitting; normal light comes first in the first sitting."""
    return (light - 1 - background - side) % len(LIGHTS)


def _for_absent_sittings(conditions: Sequence[Condition]) -> int:
    """Photos of one light for every sitting on a side or a background that has none at all."""
    if not conditions:
        return 0
    sides, backgrounds = {c.side for c in conditions}, {c.background for c in conditions}
    grid = [(background, side) for background in range(len(BACKGROUNDS["real"])) for side in range(len(SIDES))]
    return ROTATIONS * sum(background not in backgrounds or side not in sides for background, side in grid)


def in_words(plan: Sequence[Mapping[str, Any]]) -> str:
    """A plan of `photograph_next` as one line."""
    shown = [f"{cell['photos']}× {cell['side']} on {cell['background']}, {cell['light']}" for cell in plan]
    more = f"; and {len(shown) - _CELLS_LISTED} more" if len(shown) > _CELLS_LISTED else ""
    return "; ".join(shown[:_CELLS_LISTED]) + more


def _short(mix: ClassMix, ratio: float, real_missing: int, studio_missing: int) -> list[str]:
    """How far a class is from the rule, and what it takes to get there."""
    problems = []
    if mix.shortfall:
        problems.append(f"{mix.images} of {mix.wanted} images")
    if not mix.reaches_ratio:
        problems.append(f"real share {mix.real_share:.0%} ({ratio:.0%} wanted)")
    needed = {"real photos": real_missing, "studio pictures": studio_missing}
    missing = " and ".join(f"{count} more {what}" for what, count in needed.items() if count)
    return [f"{', '.join(problems)}: {missing} needed" if missing else ", ".join(problems)] if problems else []


def _problems(by_domain: Mapping[Domain, Sequence[Usable]]) -> list[str]:
    """No pictures of a domain; and, where names tell conditions, a side or a background without any."""
    problems = []
    for domain, pictures in by_domain.items():
        name = "real photos" if domain == "real" else "studio pictures"
        if not pictures:
            problems.append(f"no {name}")
            continue
        known = [one.condition for one in pictures if one.condition is not None]
        if not known:
            continue
        sides = {condition.side for condition in known}
        backgrounds = {condition.background for condition in known}
        problems += [f"{name}: no {SIDES[side]} side" for side in (0, 1) if side not in sides]
        problems += [
            f"{name}: none on {label}" for index, label in enumerate(BACKGROUNDS[domain]) if index not in backgrounds
        ]
    return problems
