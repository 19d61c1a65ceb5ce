"""The drugs' folders as links under the data set: nothing is copied.

``<out>/studio/<K-CODE>`` and ``<out>/real_photos/<K-CODE>`` are relative links to the folders of the
sources; a drug with several folders has a folder of numbered links. Knows nothing of the pictures.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pillsnap.core.errors import DataError
from pillsnap.data.names import Domain

LINK_FOLDERS: dict[Domain, str] = {"studio": "studio", "real": "real_photos"}
"""Folder of the links below the data set, by domain."""


@dataclass(frozen=True)
class LinkReport:
    """How many links were made, were there already, and were removed."""

    made: int
    kept: int
    removed: int


def link_names(folders: Mapping[str, tuple[Path, ...]]) -> dict[str, Path]:
    """Link (relative to the domain's folder) → source folder: ``K-000059``, or ``K-000059/1`` … for several."""
    names: dict[str, Path] = {}
    for kcode, sources in folders.items():
        if len(sources) == 1:
            names[kcode] = sources[0]
        else:
            names.update({f"{kcode}/{number}": source for number, source in enumerate(sources, start=1)})
    return names


def check_replaceable(base: Path) -> None:
    """Refuse a ``base`` that holds anything but links (and folders of links): it is somebody's data.

    Raises:
        DataError: names the real file or folder.
    """
    if base.is_symlink():
        raise DataError(f"{base}: is a link itself; remove it, or give another --out")
    for entry in _children(base):
        inner = [] if entry.is_symlink() or not entry.is_dir() else _children(entry)
        real = [path for path in inner if not path.is_symlink()]
        if not entry.is_symlink() and (not entry.is_dir() or real):
            raise DataError(
                f"{real[0] if real else entry}: is a real file or folder where links are to be made; "
                "give another --out, one that holds no data of yours"
            )


def link_folders(base: Path, folders: Mapping[str, tuple[Path, ...]]) -> LinkReport:
    """Bring ``base`` to exactly these links; those of retired drugs go.

    Raises:
        DataError: something there is not a link, or the file system cannot make links.
    """
    check_replaceable(base)
    wanted = link_names(folders)
    removed = _remove_stale(base, wanted)
    made = sum(_link(base, name, source) for name, source in wanted.items())
    return LinkReport(made, len(wanted) - made, removed)


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove_stale(base: Path, wanted: Mapping[str, Path]) -> int:
    removed = 0
    for entry in _children(base):
        is_link = entry.is_symlink()
        for link in [entry] if is_link else _children(entry):
            if link.relative_to(base).as_posix() not in wanted:
                link.unlink()
                removed += 1
        if not is_link and not _children(entry):
            entry.rmdir()
    return removed


def _link(base: Path, name: str, source: Path) -> bool:
    """Make one link as a whole or not at all; False where it was right already."""
    link = base / name
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(source.resolve(), link.parent.resolve())
    if link.is_symlink() and os.readlink(link) == target:
        return False
    with tempfile.TemporaryDirectory(prefix=".link-", dir=base) as temporary:
        beside = Path(temporary, "link")
        try:
            beside.symlink_to(target, target_is_directory=True)
        except OSError as error:
            raise DataError(
                f"{link}: cannot be made a link ({error}); use a file system with symbolic links"
            ) from error
        os.replace(beside, link)
    return True
