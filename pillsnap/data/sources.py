"""Where the pictures of the drugs lie: finds the drug folders of a tree, and the pictures of a folder.

Takes plain trees (``<root>/<K-CODE>/…``), nested ones (AI Hub: ``…/TS_1_단일/K-000059/*.png``), and any
spelling of a K-CODE that `normalize_kcode` takes. Looks at names only; knows nothing of what is in a file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from pillsnap.core.catalog import normalize_kcode
from pillsnap.core.errors import CatalogError, DataError
from pillsnap.core.images import IMAGE_SUFFIXES

LABEL_SUFFIX = "_json"
"""Folders of AI Hub's labels end so."""


def find_drug_folders(root: Path, kcodes: Collection[str], skip: Path | None = None) -> dict[str, tuple[Path, ...]]:
    """Find the folders of some drugs anywhere below ``root``.

    A folder that is named after a drug is not searched further, so a tree of 5,000 drugs is listed once.

    Args:
        root: the tree.
        kcodes: the drugs that are wanted; folders of others are ignored.
        skip: a folder that is left out (the output, where it lies inside the tree).

    Returns:
        K-CODE → its folders, sorted by their path below ``root``; drugs without a folder are absent.

    Raises:
        DataError: ``root`` is not a folder, or holds no folder of any of the drugs.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the one that holds the drugs' folders (K-030864/ …)")
    if skip is not None and skip.resolve() == root.resolve():
        raise DataError(f"{root}: is a source and the output at once; give another folder for the output")
    seen = {_identity(skip)} if skip is not None and skip.is_dir() else set()
    found: dict[str, list[Path]] = {}
    for kcode, folder in _drug_folders(root, frozenset(kcodes), seen):
        found.setdefault(kcode, []).append(folder)
    if not found:
        raise DataError(f"{root}: holds no folder of any of the {len(kcodes)} drugs; expected {root}/<K-CODE>/*.jpg")
    return {kcode: tuple(sorted(found[kcode], key=Path.as_posix)) for kcode in sorted(found)}


def raw_layout(raw: Path) -> tuple[Path, Path | None, Path | None]:
    """Drug list, studio tree and tree of real photos of a raw folder; None for a tree that is not there."""
    studio, real = raw / "studio", raw / "real_photos"
    return raw / "drugs.json", studio if studio.is_dir() else None, real if real.is_dir() else None


def list_pictures(folder: Path) -> list[str]:
    """Paths of the pictures below ``folder``, relative to it, with forward slashes, sorted.

    Raises:
        DataError: a folder cannot be listed, or a name is not text (UTF-8).
    """
    found: list[str] = []
    waiting, seen = [""], {_identity(folder)}
    while waiting:
        prefix = waiting.pop()
        for entry in _entries(folder / prefix):
            relative = f"{prefix}{entry.name}"
            if not _is_folder(entry):
                if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not _never_ends(entry):
                    found.append(_checked_text(folder, relative))
            elif _is_another_drug(entry.name, folder.name):
                raise DataError(
                    f"{entry.path}: the folder of one drug lies in the folder of another; its pictures would get the "
                    "wrong label. Move it out"
                )
            elif not entry.name.endswith(LABEL_SUFFIX) and (identity := _identity(Path(entry.path))) not in seen:
                seen.add(identity)
                waiting.append(f"{relative}/")
    return sorted(found)


def _drug_folders(root: Path, wanted: frozenset[str], seen: set[tuple[int, int]]) -> Iterator[tuple[str, Path]]:
    waiting = [root]
    while waiting:
        for entry in sorted(_entries(waiting.pop()), key=lambda entry: entry.name):
            kcode = _kcode_of_folder(entry.name)
            other_drug = kcode is not None and kcode not in wanted and not _may_be_a_plain_number(entry.name)
            if other_drug or entry.name.endswith(LABEL_SUFFIX) or not _is_folder(entry):
                continue
            folder = Path(entry.path)
            identity = _identity(folder)
            if identity in seen:
                continue
            seen.add(identity)
            if kcode in wanted:
                yield kcode, folder
            else:
                waiting.append(folder)


def _checked_text(folder: Path, relative: str) -> str:
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{folder}: the file name {relative!r} is not UTF-8; rename it") from error
    return relative


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error}); check its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _never_ends(entry: os.DirEntry[str]) -> bool:
    """A pipe or a socket: reading it would wait for ever. A file that is gone is not one; it is reported later."""
    try:
        mode = os.stat(entry.path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode)


def _is_another_drug(name: str, drug_folder: str) -> bool:
    inner, outer = _kcode_of_folder(name), _kcode_of_folder(drug_folder)
    return inner is not None and outer is not None and inner != outer and not _may_be_a_plain_number(name)


def _kcode_of_folder(name: str) -> str | None:
    try:
        return normalize_kcode(name)
    except CatalogError:
        return None


def _may_be_a_plain_number(name: str) -> bool:
    """``2024`` may be a year that holds drug folders; ``K-2024`` and ``002024`` are drugs."""
    return name.strip().isdigit() and len(name.strip()) < 6


def _identity(folder: Path) -> tuple[int, int]:
    """Tells a folder that was seen before, so that links in a circle end."""
    status = folder.stat()
    return status.st_dev, status.st_ino
