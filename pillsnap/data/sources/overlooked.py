"""What lies in a tree and is taken by nobody: misspelt folders, loose files, endings that are not read.

A source gives the pictures of the wanted drugs; this says what it passed over, so that ``K-99O048/`` or an
``IMG_0001`` without an ending does not vanish without a word. Looks at names only. The folders of other drugs are
passed over on purpose: they are named and not searched.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from pillsnap.core.text import shown
from pillsnap.data.names import combination_kcodes
from pillsnap.data.sources.tree import (
    PICTURE_SUFFIXES,
    folder_identity,
    is_folder,
    kcode_of_folder,
    labelled_code,
    list_entries,
    may_be_a_plain_number,
    never_ends,
)

OVERLOOKED: dict[str, str] = {
    "in_no_drug_folder": "a picture outside of the folders of drugs: is the name of its folder misspelt?",
    "unknown_ending": "a file in the folder of a drug whose ending is not that of a picture",
    "not_a_file": "a pipe or a socket in the folder of a drug",
    "other_drug": "the folder of a drug that is not on the list",
    "combination": "a folder of several pills; those of a studio tree are taken with --combinations",
}
"""Codes with their meaning."""
_MAY_BE_PICTURES = PICTURE_SUFFIXES | {".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".jxl"}
_LABEL_SUFFIX = ".json"
_LISTED = 1000


@dataclass
class Overlooked:
    """Of one code: how many there are, and the first of them by their paths below the root."""

    count: int = 0
    first: list[str] = field(default_factory=list)


def find_overlooked(
    root: Path, kcodes: Collection[str], skip: Path | None = None, *, combinations: bool = False
) -> dict[str, Overlooked]:
    """Code → what was passed over below ``root``; codes with nothing are absent.

    Args:
        root: the tree of a source.
        kcodes: the wanted drugs.
        skip: a folder that is left out (the output, where it lies inside the tree).
        combinations: pictures of several pills are taken.

    Raises:
        DataError: a folder cannot be listed.
    """
    wanted = frozenset(kcodes)
    found: dict[str, list[str]] = {}
    seen = {folder_identity(skip)} if skip is not None and skip.is_dir() else set()
    waiting = [(root, False)]
    while waiting:
        folder, of_drug = waiting.pop()
        identity = folder_identity(folder)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in list_entries(folder):
            path = Path(entry.path)
            if not is_folder(entry):
                code = _code_of_file(entry, of_drug)
            elif of_drug or labelled_code(entry.name) is not None:
                code = None
                if labelled_code(entry.name) is None:
                    waiting.append((path, True))
            else:
                code, taken = _code_of_folder(entry.name, wanted, combinations)
                if code is None:
                    waiting.append((path, taken))
            if code is not None:
                found.setdefault(code, []).append(shown(path.relative_to(root)))
    return {code: Overlooked(len(found[code]), sorted(found[code])[:_LISTED]) for code in OVERLOOKED if code in found}


def _code_of_file(entry: os.DirEntry[str], of_drug: bool) -> str | None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if not of_drug:
        return "in_no_drug_folder" if suffix in _MAY_BE_PICTURES else None
    if never_ends(entry):
        return "not_a_file"
    return None if suffix in PICTURE_SUFFIXES or suffix == _LABEL_SUFFIX else "unknown_ending"


def _code_of_folder(name: str, wanted: Collection[str], combinations: bool) -> tuple[str | None, bool]:
    """Why a folder is passed over, or else whether its pictures are a drug's."""
    if combination_kcodes(name):
        return (None, True) if combinations else ("combination", False)
    kcode = kcode_of_folder(name)
    if kcode in wanted:
        return None, True
    return (None, False) if kcode is None or may_be_a_plain_number(name) else ("other_drug", False)
