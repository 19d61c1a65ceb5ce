"""Plain class folders, ``<root>/<K-CODE>/<any name>``: file names tell nothing, near-duplicates form the groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from pillsnap.data.names import Domain
from pillsnap.data.sources.base import DrugFolder, Picture
from pillsnap.data.sources.tree import list_pictures, single_folders


class ClassFolderSource:
    """Pictures of either domain whose names are not believed."""

    def __init__(self, root: Path, domain: Domain) -> None:
        self.root = root
        self.domain = domain

    def folders(self, kcodes: Collection[str], skip: Path | None = None) -> dict[str, tuple[DrugFolder, ...]]:
        """See `Source.folders`."""
        return single_folders(self.root, kcodes, skip)

    def pictures(self, folder: DrugFolder, kcode: str, link: str) -> Iterator[Picture]:
        """See `Source.pictures`."""
        for name in list_pictures(folder.path):
            yield Picture(f"{link}/{name}", folder.path / name, kcode, self.domain, named=False)
