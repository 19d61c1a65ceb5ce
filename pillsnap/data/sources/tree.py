"""Walks trees of drug folders, and lists the files of a folder. Looks at names only."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from pillsnap.core.catalog import normalize_kcode
from pillsnap.core.errors import CatalogError, DataError
from pillsnap.data.names import combination_kcodes
from pillsnap.data.sources.base import DrugFolder

_LABEL_SUFFIX = "_json"
PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff"}
)
"""Endings (lower case) of files that are taken for pictures. What a file really is shows when it is read: a .heic may
hold a JPEG, and a real HEIC must be reported rather than overlooked."""


def single_folders(root: Path, kcodes: Collection[str], skip: Path | None) -> dict[str, tuple[DrugFolder, ...]]:
    """The folders of single drugs anywhere below ``root`` (see `Source.folders`)."""
    check_root(root, skip)
    wanted = frozenset(kcodes)
    found: dict[str, list[Path]] = {}
    for folder in walk_folders(root, wanted, skip):
        kcode = kcode_of_folder(folder.name)
        if kcode in wanted and kcode is not None:
            found.setdefault(kcode, []).append(folder)
    if not found:
        raise no_folder_found(root, kcodes)
    return {
        kcode: tuple(DrugFolder(path) for path in sorted(found[kcode], key=Path.as_posix)) for kcode in sorted(found)
    }


def check_root(root: Path, skip: Path | None) -> None:
    """Raise DataError where the root is no folder, or is the output itself."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the one that holds the drugs' folders (K-030864/ …)")
    if skip is not None and skip.resolve() == root.resolve():
        raise DataError(f"{root}: is a source and the output at once; give another folder for the output")


def no_folder_found(root: Path, kcodes: Collection[str]) -> DataError:
    """The error of a tree that has nothing of what is wanted."""
    return DataError(f"{root}: holds no folder of any of the {len(kcodes)} drugs; expected {root}/<K-CODE>/*.jpg")


def walk_folders(root: Path, wanted: frozenset[str], skip: Path | None) -> Iterator[Path]:
    """Folders of wanted drugs, of combinations, and of labels, in the order of their names.

    None of them is searched further, nor are folders of other drugs, so a tree of 5,000 drugs is listed once.
    """
    seen = {folder_identity(skip)} if skip is not None and skip.is_dir() else set()
    waiting = [root]
    while waiting:
        for entry in sorted(list_entries(waiting.pop()), key=lambda entry: entry.name):
            kcode = kcode_of_folder(entry.name)
            other_drug = kcode is not None and kcode not in wanted and not may_be_a_plain_number(entry.name)
            if other_drug or not is_folder(entry):
                continue
            folder = Path(entry.path)
            identity = folder_identity(folder)
            if identity in seen:
                continue
            seen.add(identity)
            if kcode in wanted or labelled_code(entry.name) or combination_kcodes(entry.name):
                yield folder
            else:
                waiting.append(folder)


def list_pictures(folder: Path) -> list[str]:
    """Paths of the pictures below ``folder``, relative to it, with forward slashes, sorted.

    Raises:
        DataError: a folder cannot be listed, or another drug's folder lies inside.
    """
    found: list[str] = []
    waiting, seen = [""], {folder_identity(folder)}
    while waiting:
        prefix = waiting.pop()
        for entry in list_entries(folder / prefix):
            relative = f"{prefix}{entry.name}"
            if not is_folder(entry):
                if os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES and not never_ends(entry):
                    found.append(relative)
            elif _is_another_drug(entry.name, folder.name):
                raise DataError(
                    f"{entry.path}: the folder of one drug lies in the folder of another; its pictures would get the "
                    "wrong label. Move it out"
                )
            elif labelled_code(entry.name) is None and (identity := folder_identity(Path(entry.path))) not in seen:
                seen.add(identity)
                waiting.append(f"{relative}/")
    return sorted(found)


def list_files(folder: Path, suffix: str) -> list[str]:
    """Paths of the files below ``folder`` with an ending (lower case), relative to it, sorted. Raises DataError."""
    found = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        for entry in list_entries(folder / prefix):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(suffix):
                found.append(f"{prefix}{entry.name}")
    return sorted(found)


def labelled_code(name: str) -> str | None:
    """The code whose labels a folder of the studio data set holds (``K-000059_json``), as `folder_code` writes it."""
    return folder_code(name.removesuffix(_LABEL_SUFFIX)) if name.endswith(_LABEL_SUFFIX) else None


def folder_code(name: str) -> str | None:
    """The drug or the combination that a folder is named after, in one spelling, or None."""
    return "-".join(combination_kcodes(name)) or kcode_of_folder(name)


def kcode_of_folder(name: str) -> str | None:
    """The drug that a folder is named after, or None."""
    try:
        return normalize_kcode(name)
    except CatalogError:
        return None


def list_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, but for hidden files. Raises DataError where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error}); check its permissions") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def never_ends(entry: os.DirEntry[str]) -> bool:
    """A pipe or a socket: reading it would wait for ever. A file that is gone is not one; it is reported later."""
    try:
        mode = os.stat(entry.path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode)


def _is_another_drug(name: str, drug_folder: str) -> bool:
    inner, outer = kcode_of_folder(name), kcode_of_folder(drug_folder)
    return inner is not None and outer is not None and inner != outer and not may_be_a_plain_number(name)


def may_be_a_plain_number(name: str) -> bool:
    """``2024`` may be a year that holds drug folders; ``K-2024`` and ``002024`` are drugs."""
    return name.strip().isdigit() and len(name.strip()) < 6


def folder_identity(folder: Path) -> tuple[int, int]:
    """Tells a folder that was seen before, so that links in a circle end."""
    status = folder.stat()
    return status.st_dev, status.st_ino
