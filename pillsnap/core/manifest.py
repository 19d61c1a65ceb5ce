"""The first waist: the manifest is the only thing that data preparation hands on.

A manifest is a folder: ``manifest.json`` (the summary of the specification, and the hash of the whole),
``rows.parquet`` (one row an image), ``class_mapping.json``, and ``splits.json`` (the paths of each split, for readers
without Parquet; nothing here reads it back). Paths in it are relative to that folder, with forward slashes. Knows how
it is stored and checked; knows nothing of how it was made.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pillsnap.core.catalog import CLASS_MAPPING_FILE, Catalog
from pillsnap.core.errors import CatalogError, DataError, ManifestError, TamperedError
from pillsnap.core.files import canonical_json, read_json, sha256_bytes, write_json, writing_beside
from pillsnap.core.images import read_image_bytes

MANIFEST_VERSION = "1.1"
SUMMARY_FILE = "manifest.json"
ROWS_FILE = "rows.parquet"
SPLITS_FILE = "splits.json"
_HASHED_ROWS = 10_000
"""Rows that are turned into text at once."""
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

ROW_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("kcode", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("background", pa.int16()),
        pa.field("light", pa.int16()),
        pa.field("side", pa.int16()),
        pa.field("elevation", pa.int16()),
        pa.field("rotation", pa.int16()),
        pa.field("box_x", pa.int32()),
        pa.field("box_y", pa.int32()),
        pa.field("box_width", pa.int32()),
        pa.field("box_height", pa.int32()),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
"""Columns of the rows. ``domain`` is studio or real; ``side`` 0 front, 1 back; the condition fields are null
where the file's name does not tell them; ``elevation`` and ``rotation`` are degrees. The box (pixels of the
upright picture) is set where only a part of the picture shows the drug: it is cut out before the preprocessing."""


@dataclass(frozen=True)
class Manifest:
    """A data set that can be trained on: its summary, its rows (sorted by path) and its catalog."""

    root: Path
    summary: dict[str, Any]
    rows: pa.Table
    catalog: Catalog

    @property
    def hash(self) -> str:
        """sha256 over summary, rows and class mapping: another image, label or split gives another hash."""
        return str(self.summary["hash"])

    @classmethod
    def build(cls, root: Path, summary: dict[str, Any], rows: pa.Table, catalog: Catalog) -> Self:
        """Sort the rows and compute the hash. ``summary`` must not hold a hash yet."""
        ordered = rows.select(ROW_SCHEMA.names).cast(ROW_SCHEMA).sort_by("path")
        body = {"manifest_version": MANIFEST_VERSION, **summary}
        return cls(root, {**body, "hash": _content_hash(body, ordered, catalog)}, ordered, catalog)

    def save(self) -> None:
        """Write all files beside the former ones, then put them in their place, ``manifest.json`` last.

        What goes wrong in writing leaves the former manifest as it was; a process that is killed while the files are
        put in place leaves one whose hash does not fit.
        """
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(writing_beside(self.root / name))
                for name in (SUMMARY_FILE, SPLITS_FILE, ROWS_FILE, CLASS_MAPPING_FILE)
            }  # put in place in the opposite order
            self.catalog.write_class_mapping(files[CLASS_MAPPING_FILE])
            pq.write_table(self.rows, files[ROWS_FILE], compression="zstd", store_schema=False)
            write_json(files[SPLITS_FILE], self._splits())
            write_json(files[SUMMARY_FILE], self.summary)

    @classmethod
    def load(cls, root: Path | str) -> Self:
        """Read a manifest and check its hash.

        Args:
            root: the folder, or its ``manifest.json``.

        Raises:
            ManifestError: missing, unreadable, or of another version.
            TamperedError: the hash does not belong to what is there.
        """
        root = Path(root)
        root = root.parent if root.name == SUMMARY_FILE else root
        if not (root / SUMMARY_FILE).is_file():
            raise ManifestError(f"{root}: holds no {SUMMARY_FILE}; make one with: pillsnap data prepare")
        summary = read_json(root / SUMMARY_FILE)
        if not isinstance(summary, dict) or summary.get("manifest_version") != MANIFEST_VERSION:
            raise ManifestError(f"{root / SUMMARY_FILE}: not a manifest of version {MANIFEST_VERSION}; prepare again")
        try:
            rows = pq.read_table(root / ROWS_FILE).cast(ROW_SCHEMA)
            catalog = Catalog.from_class_mapping(root / CLASS_MAPPING_FILE)
        except (OSError, pa.ArrowInvalid, ValueError) as error:
            raise ManifestError(f"{root / ROWS_FILE}: cannot be read ({error}); prepare again") from error
        except (CatalogError, DataError) as error:
            raise ManifestError(f"{error}; prepare again") from error
        body = {key: value for key, value in summary.items() if key != "hash"}
        if _content_hash(body, rows, catalog) != summary.get("hash"):
            raise TamperedError(f"{root}: the manifest's files were changed after it was made; prepare again")
        return cls(root, summary, rows, catalog)

    def _splits(self) -> dict[str, Any]:
        """The split as the specification names it: train, val and test, each a list of paths."""
        counts = {split: self.split(split).num_rows for split in SPLITS}
        paths = {split: self.split(split)["path"].to_pylist() for split in SPLITS}
        return {"manifest_hash": self.hash, "counts": counts, "splits": paths}

    def split(self, split: Split) -> pa.Table:
        """The rows of one split, in the order of their paths."""
        return self.rows.filter(pa.compute.equal(self.rows["split"], split))

    def labels(self, rows: pa.Table) -> NDArray[np.int64]:
        """``labels_N`` of some rows."""
        return np.asarray(rows["label"].to_numpy(), np.int64)

    def read_image(self, path: str, sha256: str) -> bytes:
        """The bytes of one image, checked.

        Raises:
            ImageError: the file is gone.
            TamperedError: its bytes are not those that were recorded.
        """
        data = read_image_bytes(self.root / path)
        if sha256_bytes(data) != sha256:
            raise TamperedError(
                f"{self.root / path}: was changed after the manifest was made (sha256 differs); "
                "put the file back, or prepare the data again"
            )
        return data


def _content_hash(body: dict[str, Any], rows: pa.Table, catalog: Catalog) -> str:
    digest = hashlib.sha256()
    digest.update(canonical_json({"summary": body, "classes": catalog.class_mapping()}).encode())
    for batch in rows.to_batches(max_chunksize=_HASHED_ROWS):
        columns = [batch.column(name).to_pylist() for name in ROW_SCHEMA.names]
        for row in zip(*columns, strict=True):
            digest.update(canonical_json(row).encode())
            digest.update(b"\n")
    return digest.hexdigest()
