"""What a picture's file name tells: background, light, side, elevation, rotation.

Knows the two naming schemes, which have eight fields each and differ in their order, so the domain must be
told. Knows nothing of files: pure functions over text.

- studio: ``K-000573_0_2_0_1_90_300_200.png`` = code, intact, background, side, light, elevation, rotation, size
- real:   ``K-030864_0_1_0_0_90_045_200.jpg`` = code, background, light, side, shape, elevation, rotation, size;
  the side may also be written ``front`` or ``back``
- studio, several pills in one picture: the code is that of the combination, ``K-001900-010224-016551-031705``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pillsnap.core.catalog import normalize_kcode
from pillsnap.core.errors import CatalogError

Domain = Literal["studio", "real"]
DOMAINS: tuple[Domain, ...] = ("studio", "real")

_FIELDS: dict[Domain, tuple[str, ...]] = {
    "studio": ("code", "intact", "background", "side", "light", "elevation", "rotation", "size"),
    "real": ("code", "background", "light", "side", "shape", "elevation", "rotation", "size"),
}
_SIDES = {"0": 0, "1": 1, "front": 0, "back": 1}
_LARGEST = {"background": 99, "light": 99, "elevation": 90, "rotation": 359}
_COMBINATION = re.compile(r"K-?[0-9]{6}(?:-[0-9]{6})+", re.IGNORECASE)


@dataclass(frozen=True)
class Condition:
    """How a picture was taken. ``side`` is 0 front, 1 back; elevation and rotation are degrees."""

    background: int
    light: int
    side: int
    elevation: int
    rotation: int


def parse_condition(name: str, domain: Domain) -> Condition | None:
    """Read the fields of a file name; None where it carries none or one of them makes no sense."""
    parts = PurePosixPath(name).stem.split("_")
    if len(parts) != len(_FIELDS[domain]):
        return None
    if kcode_of_name(name) is None and not (domain == "studio" and combination_kcodes(parts[0])):
        return None
    fields = dict(zip(_FIELDS[domain], parts, strict=True))
    side = _SIDES.get(fields["side"].lower())
    numbers = {key: _number(fields[key], largest) for key, largest in _LARGEST.items()}
    if side is None or None in numbers.values():
        return None
    return Condition(side=side, **{key: value for key, value in numbers.items() if value is not None})


def kcode_of_name(name: str) -> str | None:
    """The K-CODE that a file name starts with (``K-000573_…``), or None. A bare number is not taken for one."""
    first = PurePosixPath(name).stem.split("_")[0]
    if not first.upper().startswith("K"):
        return None
    try:
        return normalize_kcode(first)
    except CatalogError:
        return None


def combination_kcodes(text: str) -> tuple[str, ...]:
    """The K-CODEs of a combination (``K-001900-010224-…``), or none where ``text`` is not one."""
    if _COMBINATION.fullmatch(text) is None:
        return ()
    return tuple(normalize_kcode(digits) for digits in text[1:].lstrip("-").split("-"))


def _number(text: str, largest: int) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 3:
        return None
    return int(text) if int(text) <= largest else None
