"""Where pictures come from: one small reader for each layout, behind one interface (`Source`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pillsnap.core.errors import ConfigError
from pillsnap.data.names import Domain
from pillsnap.data.sources.aihub import AiHubSource
from pillsnap.data.sources.base import DrugFolder, Picture, Source
from pillsnap.data.sources.capture import CaptureSource
from pillsnap.data.sources.class_folders import ClassFolderSource
from pillsnap.data.sources.overlooked import OVERLOOKED, find_overlooked

Layout = Literal["auto", "aihub", "capture", "folders"]
__all__ = [
    "OVERLOOKED",
    "AiHubSource",
    "CaptureSource",
    "ClassFolderSource",
    "DrugFolder",
    "Layout",
    "Picture",
    "Source",
    "find_overlooked",
    "open_source",
    "raw_layout",
]


def open_source(root: Path, domain: Domain, layout: Layout = "auto", *, combinations: bool = False) -> Source:
    """The reader of a tree.

    Args:
        root: the tree.
        domain: what its pictures are.
        layout: ``auto`` reads studio trees as AI Hub's and real photos as the capture protocol's; both take plain
            names as well. ``folders`` believes no file name, where names only look like those of a protocol.
        combinations: also take pictures that show several pills (studio trees).

    Raises:
        ConfigError: a layout that is not one of this domain.
    """
    if layout == "folders":
        return ClassFolderSource(root, domain)
    if domain == "studio" and layout in ("auto", "aihub"):
        return AiHubSource(root, combinations=combinations)
    if domain == "real" and layout in ("auto", "capture"):
        return CaptureSource(root)
    raise ConfigError(f"layout {layout!r} is not one of {domain} pictures; give auto or folders")


def raw_layout(raw: Path) -> tuple[Path, Path | None, Path | None]:
    """Drug list, studio tree and tree of real photos of a raw folder; None for a tree that is not there."""
    studio, real = raw / "studio", raw / "real_photos"
    return raw / "drugs.json", studio if studio.is_dir() else None, real if real.is_dir() else None
