"""The ledger: every picture that was found, with what became of it, in ``pictures.parquet``.

Nothing is dropped silently: a picture is used, or was not needed, or stands here with its reason. It also remembers
the split of every picture, so that a data set that grows keeps its test pictures. Written class by class; the
manifest does not depend on it being kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pillsnap.core.errors import ManifestError
from pillsnap.core.files import writing_beside
from pillsnap.core.manifest import SPLITS, Split

LEDGER_FILE = "pictures.parquet"
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("kcode", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("used", pa.bool_(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        pa.field("code", pa.string()),
        pa.field("reason", pa.string()),
    ]
)
"""``split`` and ``group`` are null where the picture was left out, for ``code`` and ``reason``."""
_BATCH = 65_536


@contextmanager
def writing_ledger(path: Path) -> Iterator[LedgerWriter]:
    """Write a ledger as a whole or not at all; one that says the same is left alone."""
    with (
        writing_beside(path, keep_same=True) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
    ):
        yield LedgerWriter(writer)


class LedgerWriter:
    """Takes the pictures class by class."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the pictures of one class."""
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA))


def ledger_paths(path: Path) -> frozenset[str]:
    """The path of every picture that was found; none where there is no ledger."""
    if not path.is_file():
        return frozenset()
    try:
        return frozenset(pq.read_table(path, columns=["path"])["path"].to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); prepare the data again") from error


@dataclass(frozen=True)
class EarlierSplits:
    """Which split each picture had, by the first 64 bits of its sha256 (9 bytes a picture in memory)."""

    digests_N: NDArray[np.uint64]
    """Ascending."""
    splits_N: NDArray[np.int8]

    @classmethod
    def none(cls) -> Self:
        """Nothing was split before."""
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.int8))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the splits of a ledger. Raises ManifestError: it cannot be read, so the split could not be kept."""
        digests, splits = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)]
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH, columns=["sha256", "split"]):
                    known = batch.filter(batch.column("split").is_valid())
                    digests.append(_prefixes(known.column("sha256").to_pylist()))
                    names = known.column("split").to_pylist()
                    splits.append(np.asarray([SPLITS.index(name) for name in names], np.int8))
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise ManifestError(
                f"{path}: cannot be read ({error}), so pictures could change their split; bring it back from a backup, "
                "or split anew with --fresh"
            ) from error
        together = np.concatenate(digests)
        order = np.argsort(together, kind="stable")
        return cls(together[order], np.concatenate(splits)[order])

    def of(self, sha256: Iterable[str]) -> dict[str, Split]:
        """sha256 → split, of those that had one."""
        wanted = list(sha256)
        if not wanted or not len(self.digests_N):
            return {}
        prefixes = _prefixes(wanted)
        places = np.searchsorted(self.digests_N, prefixes).clip(max=len(self.digests_N) - 1)
        hits = self.digests_N[places] == prefixes
        return {
            digest: SPLITS[self.splits_N[place]] for digest, place, hit in zip(wanted, places, hits, strict=True) if hit
        }


def _prefixes(sha256: list[str]) -> NDArray[np.uint64]:
    return np.asarray([int(digest[:16], 16) for digest in sha256], np.uint64)
