"""The ledger: every picture that was found, with what became of it, in ``pictures.parquet``.

Nothing is dropped silently: a picture is used, or was not needed, or stands here with its reason. It is also the
memory of the splits: a picture that was in a split once stays in it, even when its file is gone (code ``gone``) and
comes back later, or its drug is retired. Written class by class, as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pillsnap.core.errors import DataError, ManifestError
from pillsnap.core.files import writing_beside
from pillsnap.core.manifest import SPLITS, Split
from pillsnap.data.groups import sitting_id
from pillsnap.data.names import combination_kcodes, parse_condition

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
"""``code`` and ``reason`` say why a picture was left out. ``split`` is the one that it is in, or was in before it was
left out; null where it never had one."""
SEED_KEY = b"pillsnap.seed"
"""The seed of the split, in the metadata of the file."""
GONE = "gone"
"""Code of pictures that were not found any more: only their split is remembered."""
_GONE_REASON = "is not there any more, or its drug is retired; it has the same split when it comes back"
_BATCH = 65_536


@contextmanager
def writing_ledger(path: Path, seed: int) -> Iterator[LedgerWriter]:
    """Write a ledger as a whole or not at all; one that says the same is left alone."""
    schema = SCHEMA.with_metadata({SEED_KEY: str(seed).encode()})
    with (
        writing_beside(path, keep_same=True) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        ledger = LedgerWriter(writer)
        yield ledger
        ledger.check()


class LedgerWriter:
    """Takes the pictures class by class, and at the end what earlier ledgers remember beyond them."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._remembered = [np.zeros(0, np.uint64)]
        self._splits = [np.zeros(0, np.int8)]
        self._sittings: dict[str, int] = {}
        """Told so far, with how far that is to be believed."""

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the pictures of one class."""
        self._write(pa.Table.from_pylist(list(rows), schema=SCHEMA))

    def carry_over(self, ledgers: Sequence[Path]) -> None:
        """Add the pictures that had a split in an earlier ledger and were not added yet.

        Also those that are there under another name by now, where nothing tells as surely of the sitting that the old
        name told: a sitting keeps its split however its pictures are called.
        """
        for path in ledgers:
            known_N = np.unique(np.concatenate(self._remembered))
            sittings = dict(self._sittings)
            for batch in read_batches(path, SCHEMA.names):
                rows = batch.filter(batch.column("split").is_valid())
                prefixes_N = digest_prefixes(rows.column("sha256").to_pylist())
                first_N = np.zeros(len(prefixes_N), np.bool_)
                first_N[np.unique(prefixes_N, return_index=True)[1]] = True
                untold_N = np.asarray([_tells_another(row, sittings) for row in rows.to_pylist()], np.bool_)
                lost = rows.filter(pa.array(first_N & ~np.isin(prefixes_N, known_N) | untold_N))
                if lost.num_rows:
                    self.add({**row, "used": False, "code": GONE, "reason": _GONE_REASON} for row in lost.to_pylist())
                    known_N = np.unique(np.concatenate(self._remembered))

    def check(self) -> None:
        """Raise DataError where the same file is in two splits: as a combination in one class, alone in another."""
        twice_N = contradictions(np.concatenate(self._remembered), np.concatenate(self._splits))
        if len(twice_N):
            raise DataError(
                f"{len(twice_N)} files lie in a combination's folder and alone in another drug's, so they would train "
                f"and test; remove the one that is wrong: the sha256 of the first starts with {twice_N[0]:016x}"
            )

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table)
        split = table.filter(table["split"].is_valid())
        for row in split.select(["path", "kcode", "domain", "group"]).to_pylist():
            for told, sitting in told_sittings(row):
                self._sittings[sitting] = max(told, self._sittings.get(sitting, -1))
        self._remembered.append(digest_prefixes(split["sha256"].to_pylist()))
        self._splits.append(split_numbers(split["split"].to_pylist()))


def ledger_paths(path: Path) -> frozenset[str]:
    """The path of every picture that was found; none where there is no ledger."""
    if not path.is_file():
        return frozenset()
    try:
        table = pq.read_table(path, columns=["path", "code"])
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read ({error}); bring it back from a backup") from error
    gone = pa.compute.fill_null(pa.compute.equal(table["code"], GONE), False)
    return frozenset(table.filter(pa.compute.invert(gone))["path"].to_pylist())


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a ledger, piece by piece."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(_BATCH, columns=list(columns))


def contradictions(digests_N: NDArray[np.uint64], splits_N: NDArray[np.int8]) -> NDArray[np.uint64]:
    """The digests that are in several splits."""
    order = np.lexsort((splits_N, digests_N))
    digests_N, splits_N = digests_N[order], splits_N[order]
    differs = (digests_N[1:] == digests_N[:-1]) & (splits_N[1:] != splits_N[:-1])
    return np.unique(digests_N[1:][differs])


def split_numbers(names: Sequence[Split]) -> NDArray[np.int8]:
    """Splits as their places in `SPLITS`."""
    return np.asarray([SPLITS.index(name) for name in names], np.int8)


def digest_prefixes(sha256: Sequence[str]) -> NDArray[np.uint64]:
    """The first 64 bits of digests."""
    return np.asarray([int(digest[:16], 16) for digest in sha256], np.uint64)


def _tells_another(row: Mapping[str, Any], sittings: Mapping[str, int]) -> bool:
    """Whether a row tells of a sitting that is not told yet, or not as surely."""
    return any(told > sittings.get(sitting, -1) for told, sitting in told_sittings(row))


def told_sittings(row: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """The sittings that a picture of a ledger tells, with how far it is to be believed (2 most).

    That of its group is sure (2). Its own differs where a copy tied two sittings into one group (1). A picture that was
    left out has no group; its name may be the very fault for which it was left out (0).
    """
    group, name = row["group"], PurePosixPath(row["path"]).name
    if group is not None and "/b" in group:
        yield 2, group
    condition = parse_condition(name, row["domain"])
    if condition is not None and not combination_kcodes(name.split("_")[0]):
        yield 0 if group is None else 1, sitting_id(row["kcode"], row["domain"], condition)
