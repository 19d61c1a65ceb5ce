"""Real photos by the capture protocol: ``<root>/<K-CODE>/K-030864_0_1_0_0_90_045_200.jpg``.

The side is 0 or 1, or ``front`` or ``back``. A photo with another name is taken too; it just tells no conditions.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from pillsnap.data.names import Domain, parse_condition
from pillsnap.data.sources.base import DrugFolder, Picture
from pillsnap.data.sources.tree import list_pictures, single_folders


class CaptureSource:
    """Photos whose names carry background, light, side and rotation."""

    domain: Domain = "real"

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self, kcodes: Collection[str], skip: Path | None = None) -> dict[str, tuple[DrugFolder, ...]]:
        """See `Source.folders`."""
        return single_folders(self.root, kcodes, skip)

    def pictures(self, folder: DrugFolder, kcode: str, link: str) -> Iterator[Picture]:
        """See `Source.pictures`."""
        for name in list_pictures(folder.path):
            condition = parse_condition(os.path.basename(name), self.domain)
            yield Picture(f"{link}/{name}", folder.path / name, kcode, self.domain, condition)
