"""What a data set that was prepared before fixes for the next: indices, splits of pictures and sittings, the seed.

Knows what an earlier run leaves behind, and when it must not be gone on from; decides nothing about new pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pillsnap.core.catalog import CLASS_MAPPING_FILE, Catalog
from pillsnap.core.errors import ConfigError, DataError, ManifestError
from pillsnap.core.files import read_json
from pillsnap.core.manifest import MANIFEST_VERSION, ROWS_FILE, SPLITS, SPLITS_FILE, SUMMARY_FILE, Split
from pillsnap.data.class_mapping import load_class_mapping
from pillsnap.data.compare import compare_catalogs
from pillsnap.data.ledger import (
    LEDGER_FILE,
    SEED_KEY,
    contradictions,
    digest_prefixes,
    read_batches,
    split_numbers,
    told_sittings,
)

_REMEMBERED = ["path", "kcode", "domain", "sha256", "split", "group"]


@dataclass(frozen=True)
class EarlierSplits:
    """Which split each picture had, by the first 64 bits of its sha256 (10 bytes a picture in memory)."""

    digests_N: NDArray[np.uint64]
    """Ascending."""
    splits_N: NDArray[np.int8]
    placed_N: NDArray[np.bool_]
    """Whether it was in a group then, not left out."""
    sittings: Mapping[str, Split] = field(default_factory=dict)
    """Group id → split, of the sittings that names tell, whatever became of their pictures."""

    @classmethod
    def load(cls, ledgers: Sequence[Path]) -> Self:
        """Read the splits of ledgers.

        Raises:
            ManifestError: one cannot be read, so the split could not be kept; or they contradict each other.
        """
        digests, splits, placed = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)], [np.zeros(0, np.bool_)]
        sittings: tuple[dict[str, Split], ...] = ({}, {}, {})
        for path in ledgers:
            try:
                for batch in read_batches(path, _REMEMBERED):
                    known = batch.filter(batch.column("split").is_valid())
                    rows = known.to_pylist()
                    digests.append(digest_prefixes([row["sha256"] for row in rows]))
                    splits.append(split_numbers([row["split"] for row in rows]))
                    placed.append(np.asarray([row["group"] is not None for row in rows], np.bool_))
                    for row in rows:
                        for told, sitting in told_sittings(row):
                            sittings[told].setdefault(sitting, row["split"])
            except (OSError, pa.ArrowException, KeyError, ValueError) as error:
                raise ManifestError(f"{path}: cannot be read ({error}), {_NEEDED}") from error
        together, placed_N = np.concatenate(digests), np.concatenate(placed)
        order = np.lexsort((~placed_N, together))  # of the same file in two places the one that had a place comes first
        digests_N, splits_N, placed_N = together[order], np.concatenate(splits)[order], placed_N[order]
        twice_N = contradictions(digests_N, splits_N)
        if len(twice_N):
            raise ManifestError(
                f"{' and '.join(map(str, ledgers))}: {len(twice_N)} pictures are in two splits, so they cannot be "
                "gone on from together; give another --out, or leave out --previous"
            )
        return cls(digests_N, splits_N, placed_N, {**sittings[0], **sittings[1], **sittings[2]})

    def of(self, sha256: Iterable[str]) -> dict[str, Split]:
        """sha256 → split, of those that had one."""
        return {digest: SPLITS[self.splits_N[place]] for digest, place in self._places(sha256)}

    def placed(self, sha256: Iterable[str]) -> frozenset[str]:
        """Those that had a split and were in a group, not left out."""
        return frozenset(digest for digest, place in self._places(sha256) if self.placed_N[place])

    def _places(self, sha256: Iterable[str]) -> list[tuple[str, int]]:
        wanted = [digest for digest in sha256 if digest]
        if not wanted or not len(self.digests_N):
            return []
        prefixes = digest_prefixes(wanted)
        places = np.searchsorted(self.digests_N, prefixes).clip(max=len(self.digests_N) - 1)
        hits = self.digests_N[places] == prefixes
        return [(digest, int(place)) for digest, place, hit in zip(wanted, places, hits, strict=True) if hit]


@dataclass(frozen=True)
class Earlier:
    """What is fixed already."""

    mapping: Catalog | None
    splits: EarlierSplits
    ledgers: tuple[Path, ...]

    def catalog(self, drugs: Catalog) -> Catalog:
        """The new drug list with the indices that are promised."""
        return drugs if self.mapping is None else self.mapping.updated(drugs)


_NEEDED = (
    "so pictures could change their split; bring it back from a backup, or split anew with --fresh (scores on the old "
    "test split then mean nothing for the new one)"
)


def load_earlier(folders: Sequence[Path], seed: int) -> Earlier:
    """What the data sets in these folders fix together; folders without one fix nothing.

    Args:
        folders: those that come first have the say about indices, the others must not contradict them.
        seed: of the split that is asked for.

    Raises:
        ConfigError: one was split with another seed.
        DataError: one cannot be gone on from: something of it is lost or damaged, or they contradict each other.
    """
    ledgers = tuple(folder / LEDGER_FILE for folder in folders if _has_ledger(folder))
    splits = EarlierSplits.load(ledgers)
    for path in ledgers:
        _check_seed(path, seed)
    mappings = [found for folder in folders if (found := _mapping(folder)) is not None]
    for other in mappings[1:]:
        moved = compare_catalogs(other, mappings[0]).moved
        if moved:
            raise DataError(
                f"{' and '.join(map(str, folders))}: {moved[0].kcode} has index {moved[0].old_index} in one and not in "
                "the other; give another --out, or leave out --previous"
            )
    return Earlier(mappings[0] if mappings else None, splits, ledgers)


def check_previous(folder: Path) -> None:
    """Raise DataError where a folder that is named as the earlier data set holds none."""
    if not (folder / LEDGER_FILE).is_file():
        raise DataError(f"{folder}: holds no {LEDGER_FILE}; give the folder of a prepared data set")


def _has_ledger(folder: Path) -> bool:
    path = folder / LEDGER_FILE
    summary = folder / SUMMARY_FILE
    rest_of_one = not summary.is_file() and any((folder / name).is_file() for name in (ROWS_FILE, SPLITS_FILE))
    if not path.is_file() and (rest_of_one or _is_of_this_version(summary)):
        raise ManifestError(f"{path}: is lost, {_NEEDED}")
    return path.is_file()


def _is_of_this_version(summary: Path) -> bool:
    """Older manifests had no ledger and another idea of a sitting: nothing of their split can be kept."""
    if not summary.is_file():
        return False
    try:
        document = read_json(summary)
    except DataError:
        return True  # half-written, or damaged: it may be one
    return not isinstance(document, dict) or document.get("manifest_version", MANIFEST_VERSION) == MANIFEST_VERSION


def _mapping(folder: Path) -> Catalog | None:
    path = folder / CLASS_MAPPING_FILE
    if path.is_file():
        return load_class_mapping(path)
    if (folder / SUMMARY_FILE).is_file():
        raise ManifestError(f"{path}: is lost, so indices could change; bring it back from a backup, or give --fresh")
    return None


def _check_seed(ledger: Path, seed: int) -> None:
    stored = (pq.read_schema(ledger).metadata or {}).get(SEED_KEY, str(seed).encode()).decode()
    if stored != str(seed):
        raise ConfigError(
            f"{ledger.parent}: was split with seed {stored}, not {seed}; keep --seed {stored}, or split anew with "
            "--fresh (scores on the old test split then mean nothing for the new one)"
        )
