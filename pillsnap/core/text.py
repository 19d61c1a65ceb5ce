"""Texts that come from outside and are shown to people: names of drugs and of files."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_TURNS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks of the direction of writing: with them a name can be shown as another one."""


def one_line(text: str) -> str:
    """A name as one line: a line break or tab is a blank, marks that turn the direction are dropped; else as it is.

    So a line break (Alt+Enter in a spreadsheet) makes no second row of an answer. A name of blanks alone is empty.

    Raises:
        ValueError: a control character, such as a terminal's escape; the message says which.
    """
    kept = []
    visible = False
    for place, character in enumerate(text, start=1):
        category = unicodedata.category(character)
        visible = visible or not (character.isspace() or category == "Cf")
        if category in ("Zl", "Zp") or (category == "Cc" and character.isspace()):
            kept.append(" ")
        elif category == "Cc":
            raise ValueError(f"holds the control character U+{ord(character):04X} (character {place}); take it out")
        elif character not in _TURNS:
            kept.append(character)
    return "".join(kept) if visible else ""


Line = Annotated[str, AfterValidator(one_line)]
"""A field of a document that holds such a name."""


def is_utf8(path: Path | str) -> bool:
    """Whether a path, or a part of one, can be stored as text as it is."""
    return as_text(path) == str(path)


def as_text(path: Path | str) -> str:
    r"""A path that can be stored as text: bytes that are no UTF-8 as ``\xb4``. Another path than before, then."""
    return os.fsencode(path).decode(errors="backslashreplace")


def shown(path: Path | str) -> str:
    r"""A path for a message or a terminal: as `as_text`, and control characters as ``\n``."""
    text = as_text(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
