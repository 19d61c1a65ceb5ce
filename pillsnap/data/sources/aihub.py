"""The studio data set's tree (AI Hub 576), or a plain one of its files.

Pictures lie in ``…/TS_1_단일/K-000059/*.png``, labels in ``…/TL_1_단일/K-000059_json/*.json``. Combinations lie in
``…/TS_1_조합/K-001900-010224-…/*.png`` and have one label a pill, in ``…/TL_1_조합/K-001900-010224-…_json/K-001900/``
or beside each other under names that end in the pill's K-CODE. Folders and labels find each other by name alone, so
the zips may be unpacked anywhere below the root.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from pillsnap.core.errors import DataError
from pillsnap.data.names import Domain, combination_kcodes, parse_condition
from pillsnap.data.sources.base import DrugFolder, Picture
from pillsnap.data.sources.tree import (
    check_root,
    folder_code,
    kcode_of_folder,
    labelled_code,
    list_files,
    list_pictures,
    no_folder_found,
    walk_folders,
)


class AiHubSource:
    """Studio pictures with their labels."""

    domain: Domain = "studio"

    def __init__(self, root: Path, *, combinations: bool = False) -> None:
        self.root = root
        self.combinations = combinations

    def folders(self, kcodes: Collection[str], skip: Path | None = None) -> dict[str, tuple[DrugFolder, ...]]:
        """See `Source.folders`. A combination's folder is one of each wanted drug that it shows."""
        check_root(self.root, skip)
        wanted = frozenset(kcodes)
        pictures: dict[str, list[tuple[Path, bool]]] = defaultdict(list)
        labels: dict[str | None, list[Path]] = defaultdict(list)
        for folder in walk_folders(self.root, wanted, skip):
            name = folder.name
            if (labelled := labelled_code(name)) is not None:
                labels[labelled].append(folder)
            elif shown := combination_kcodes(name):
                for kcode in sorted(wanted.intersection(shown) if self.combinations else ()):
                    pictures[kcode].append((folder, True))
            elif (single := kcode_of_folder(name)) in wanted and single is not None:
                pictures[single].append((folder, False))
        if not pictures:
            raise no_folder_found(self.root, kcodes)
        return {kcode: _with_labels(pictures[kcode], labels) for kcode in sorted(pictures)}

    def pictures(self, folder: DrugFolder, kcode: str, link: str) -> Iterator[Picture]:
        """See `Source.pictures`."""
        labels = _label_files(folder, kcode)
        for name in list_pictures(folder.path):
            base = os.path.basename(name)
            yield Picture(
                f"{link}/{name}",
                folder.path / name,
                kcode,
                self.domain,
                parse_condition(base, self.domain),
                folder.combination,
                labels.get(os.path.splitext(base)[0]),
            )


def _with_labels(found: list[tuple[Path, bool]], labels: dict[str | None, list[Path]]) -> tuple[DrugFolder, ...]:
    ordered = sorted(found, key=lambda one: one[0].as_posix())
    return tuple(
        DrugFolder(path, combination, tuple(sorted(labels[folder_code(path.name)], key=Path.as_posix)))
        for path, combination in ordered
    )


def _label_files(folder: DrugFolder, kcode: str) -> dict[str, Path]:
    """Name of the picture without its ending → label file of this drug."""
    found: dict[str, Path] = {}
    for root in folder.labels:
        for relative in list_files(root, ".json"):
            parent, _, name = relative.rpartition("/")
            stem = os.path.splitext(name)[0]
            if folder.combination and parent:
                if kcode_of_folder(parent.rpartition("/")[2]) != kcode:
                    continue
            elif folder.combination:
                stem, _, last = stem.rpartition("_")
                if kcode_of_folder(last) != kcode:
                    continue
            if found.setdefault(stem, root / relative) != root / relative:
                raise DataError(
                    f"{root / relative}: labels the same picture as {found[stem]}; keep one of the two label folders"
                )
    return found
