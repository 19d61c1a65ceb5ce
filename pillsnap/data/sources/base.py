"""What every source of pictures gives: drug folders to link, and the pictures in them.

The contract: a source looks at names (and the names of labels) only and reads no file. `folders` finds each
wanted drug's folders once, sorted by their path below the root; `pictures` yields the pictures of one folder in the
order of their paths. The same tree gives the same answers, in whatever order the system lists it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pillsnap.data.names import Condition, Domain


@dataclass(frozen=True, slots=True)
class DrugFolder:
    """A folder with pictures of one drug (of several drugs, where it is a combination)."""

    path: Path
    combination: bool = False
    labels: tuple[Path, ...] = ()
    """Folders that may hold the labels of its pictures."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture file of a drug, before anything is read of it."""

    path: str
    """Relative to the data set, through the links, with forward slashes."""
    source: Path
    kcode: str
    domain: Domain
    condition: Condition | None = None
    """What the file's name tells; None where it tells nothing."""
    combination: bool = False
    """Shows other drugs too: only the box of this one counts."""
    label: Path | None = None
    """Its label file (JSON), where there is one."""
    named: bool = True
    """Its file name is believed: it may tell the condition, and a drug that it names must be that of the folder."""


class Source(Protocol):
    """A tree of pictures of one domain."""

    root: Path
    domain: Domain

    def folders(self, kcodes: Collection[str], skip: Path | None = None) -> dict[str, tuple[DrugFolder, ...]]:
        """K-CODE → its folders; drugs without a folder are absent.

        Args:
            kcodes: the drugs that are wanted; folders of others are ignored.
            skip: a folder that is left out (the output, where it lies inside the tree).

        Raises:
            DataError: the root is not a folder, or holds no folder of any of the drugs.
        """

    def pictures(self, folder: DrugFolder, kcode: str, link: str) -> Iterator[Picture]:
        """The pictures of a folder; ``link`` is what their paths start with.

        Raises:
            DataError: a folder cannot be listed.
        """
