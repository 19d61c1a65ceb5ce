"""The prepared cache: the deterministic part of the preprocessing, done once for every row of a manifest.

``<folder>/<manifest hash>-<preprocessing fingerprint>/`` holds ``images.u8`` (raw N,H,W,C, uint8, in the order of the
rows), ``rows.sha256`` (of what each row was made) and ``cache.json``. It is made beside and renamed, so what is there
is whole; another manifest or another preprocessing has another name, so a stale cache is never met. A build that was
killed goes on where it stopped, one process builds and the others wait, and a row that another cache of the same
preprocessing holds is copied from there. Any cache may be deleted: the next build makes it again.

Why raw pixels: ``docs/decisions/0003-prepared-cache.md``. Legend: N images (rows of the manifest), H, W target size,
C channel.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.core.boxes import BOX_COLUMNS, MARGIN, box_of_row
from pillsnap.core.errors import DataError
from pillsnap.core.file_lock import only_one
from pillsnap.core.files import read_json, write_json
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.data.parallel import Progress, map_in_order, no_progress
from pillsnap.data.row_file import DATA_FILE, ORIGIN_BYTES, ORIGIN_FILE, Indices, Origins, RowFile, find_rows

KEY_FILE = "cache.json"
CACHE_VERSION = 2
RECORD_SECONDS = 2.0
"""So often what is written is recorded as done: a killed build loses the work of about so long."""
_SPARE_BYTES = 256 * 2**20
"""Disk space that is left free."""
_LISTED = 3


@dataclass(frozen=True)
class PreparedCache:
    """Every image of a manifest as the model takes it, before augmentation and normalisation."""

    folder: Path
    images_NHWC_u8: NDArray[np.uint8]
    """A read-only memory map; row i is row i of the manifest."""

    @classmethod
    def build(
        cls,
        manifest: Manifest,
        spec: PreprocessingSpec,
        folder: Path,
        workers: int = 0,
        progress: Progress = no_progress,
    ) -> Self:
        """Open the cache, or make it where there is none (or none that is whole).

        Where the build ends early (killed, interrupted, a picture that cannot be read), what is done stays, and the
        next build goes on from there. Pictures of rows that are done, or that another cache holds, are not read.

        Args:
            manifest: what to prepare.
            spec: how.
            folder: where caches lie; a subfolder is made.
            workers: images that are prepared at once; 0: one for each core.
            progress: called after every image; the stage says whether it is prepared or copied.

        Raises:
            TamperedError: an image was changed after the manifest was made.
            ImageError: an image is gone, or its box is not within it.
            DataError: not enough room on the disk, or no image at all.
        """
        target = cache_folder(manifest, spec, folder)
        if not _is_whole(target, manifest, spec):
            _make_folder(folder)
            waiting = "waiting for the process that builds this cache"
            with only_one(folder / f".{target.name}.lock", lambda: progress(waiting, 0, 1)):
                if not _is_whole(target, manifest, spec):  # another process may have made it meanwhile
                    _Build(manifest, spec, target, workers or os.cpu_count() or 1, progress).run()
        return cls.open(manifest, spec, folder)

    @classmethod
    def open(cls, manifest: Manifest, spec: PreprocessingSpec, folder: Path) -> Self:
        """Open a cache that is there. Raises DataError where there is none, or none that is whole."""
        target = cache_folder(manifest, spec, folder)
        if not _is_whole(target, manifest, spec):
            raise DataError(f"{target}: holds no whole prepared cache of this manifest; build it again")
        shape = _shape(manifest, spec)
        return cls(target, np.memmap(target / DATA_FILE, np.uint8, "r", shape=shape))


def cache_folder(manifest: Manifest, spec: PreprocessingSpec, folder: Path) -> Path:
    """Where the cache of this manifest and this preprocessing lies."""
    return folder / f"{manifest.hash[:16]}-{spec.fingerprint}"


def _shape(manifest: Manifest, spec: PreprocessingSpec) -> tuple[int, int, int, int]:
    return manifest.rows.num_rows, spec.target_size, spec.target_size, 3


def _key(manifest: Manifest, spec: PreprocessingSpec) -> dict[str, Any]:
    """Everything that the pixels depend on, beside the rows themselves."""
    return {
        "cache_version": CACHE_VERSION,
        "manifest_hash": manifest.hash,
        "preprocessing_fingerprint": spec.fingerprint,
        "shape_NHWC": list(_shape(manifest, spec)),
        "box_margin": MARGIN,
        "opencv": cv2.__version__,  # its decoders and its resizing: another version may give other pixels
    }


def _read_key(folder: Path) -> Any:
    try:
        return read_json(folder / KEY_FILE)
    except DataError:
        return None


def _is_whole(target: Path, manifest: Manifest, spec: PreprocessingSpec) -> bool:
    rows, *image = _shape(manifest, spec)
    sizes = {DATA_FILE: rows * int(np.prod(image)), ORIGIN_FILE: rows * ORIGIN_BYTES}
    try:
        fits = all((target / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False
    return fits and _read_key(target) == _key(manifest, spec)


class _Build:
    """One build, by the only process that may do it now."""

    def __init__(
        self, manifest: Manifest, spec: PreprocessingSpec, target: Path, workers: int, progress: Progress
    ) -> None:
        self._manifest = manifest
        self._spec = spec
        self._target = target
        self._part = target.with_name(f".{target.name}.part")
        self._workers = workers
        self._progress = progress
        self._key = _key(manifest, spec)
        self._rows, *image = _shape(manifest, spec)
        self._row_bytes = int(np.prod(image))
        self._preprocessor = InferencePreprocessor(spec)

    def run(self) -> None:
        """Leave a whole cache at the target."""
        if not self._rows:
            raise DataError(f"{self._manifest.root}: the manifest holds no images; prepare the data again")
        self._start()
        with RowFile.create(self._part, self._rows, self._row_bytes) as store:
            origin_N32 = _origins(self._manifest)
            missing = np.flatnonzero((store.origin_N32 != origin_N32).any(axis=1))
            if kept := self._rows - len(missing):
                self._progress("kept from the interrupted build", kept, kept)
            for donor in self._other_caches():
                missing = self._copy(store, donor, missing, origin_N32)
            self._fill(store, missing, origin_N32, self._prepare, "preparing images")
        self._put_in_place()

    def _put_in_place(self) -> None:
        """Rename; where a process was faster in spite of the lock (its file was deleted), its cache is the same."""
        try:
            os.rename(self._part, self._target)
        except OSError as error:
            if not _is_whole(self._target, self._manifest, self._spec):
                raise DataError(
                    f"{self._target}: is in the way ({error.strerror}); delete it and start again: what is done is kept"
                ) from error
            shutil.rmtree(self._part, ignore_errors=True)

    def _start(self) -> None:
        """A folder to go on in: what an interrupted build has left, or an empty one."""
        if self._target.exists():
            shutil.rmtree(self._target)
        if self._part.exists() and _read_key(self._part) != self._key:
            shutil.rmtree(self._part)
        taken = _bytes_on_disk(self._part / DATA_FILE)
        _check_space(self._target.parent, self._rows * (self._row_bytes + ORIGIN_BYTES) - taken)
        self._part.mkdir(exist_ok=True)
        write_json(self._part / KEY_FILE, self._key)

    def _other_caches(self) -> list[Path]:
        """Caches of other manifests, whole or interrupted, whose rows were made in the same way."""
        folders = sorted(self._target.parent.glob(f"*{self._spec.fingerprint}*"))
        return [path for path in folders if path != self._part and self._is_same_way(_read_key(path))]

    def _is_same_way(self, key: Any) -> bool:
        own = {name: self._key[name] for name in ("manifest_hash", "shape_NHWC")}
        return isinstance(key, dict) and {**key, **own} == self._key

    def _copy(self, store: RowFile, donor: Path, missing: Indices, origin_N32: Origins) -> Indices:
        """Copy the missing rows that another cache holds; those that are still missing."""
        try:
            source = RowFile.open(donor, self._row_bytes)
        except DataError:  # damaged: its rows are prepared instead
            return missing
        with source:
            found = find_rows(origin_N32[missing], source.origin_N32)
            source_row_N = np.full(self._rows, -1, np.int64)
            source_row_N[missing] = found
            stage = f"copying images from {donor.name}"
            self._fill(store, missing[found >= 0], origin_N32, lambda row: source.read(int(source_row_N[row])), stage)
        return missing[found < 0]

    def _fill(self, store: RowFile, rows: Indices, origin_N32: Origins, make: Callable[[int], Any], stage: str) -> None:
        """Write rows with all workers, and record them as they come."""
        if not len(rows):
            return

        def write(row: int) -> int:
            store.write(row, make(row))
            return row

        pending: list[int] = []

        def record() -> None:
            done = np.asarray(pending, np.int64)
            pending.clear()  # first: what cannot be flushed is never recorded
            store.record(done, origin_N32[done])

        recorded = time.monotonic()
        items = cast(Sequence[int], rows)  # as an array: a list of millions of rows would be far larger
        written = map_in_order(write, items, self._workers, stage, self._progress)
        try:
            # closed, so that no worker writes after the end
            with closing(cast(Generator[int, None, None], written)) as rows_written:
                for row in rows_written:
                    pending.append(row)
                    if time.monotonic() - recorded >= RECORD_SECONDS:
                        record()
                        recorded = time.monotonic()
        finally:  # also after an error or Ctrl-C
            if pending:
                record()

    def _prepare(self, row: int) -> memoryview:
        """One row as training and serving see it: cut out where the manifest has a box, else as serving does."""
        values = {name: self._manifest.rows[name][row].as_py() for name in ("path", "sha256", *BOX_COLUMNS)}
        data = self._manifest.read_image(values["path"], values["sha256"])
        name = str(self._manifest.root / values["path"])
        return np.ascontiguousarray(self._preprocessor.prepare_for_model(data, name, box_of_row(values))[0]).data


def _origins(manifest: Manifest) -> Origins:
    """``origin_N32``: of each row, the sha256 of its picture's sha256 and its box."""
    parts = [np.empty((0, ORIGIN_BYTES), np.uint8)]
    for batch in manifest.rows.select(["sha256", *BOX_COLUMNS]).to_batches(max_chunksize=2**16):
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        digests = b"".join(hashlib.sha256(repr(row).encode()).digest() for row in rows)
        parts.append(np.frombuffer(digests, np.uint8).reshape(-1, ORIGIN_BYTES))
    return np.concatenate(parts)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); choose another folder for the cache") from error


def _bytes_on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES <= free:
        return
    caches = sorted(((_bytes_on_disk(path), path.parent.name) for path in folder.glob(f"*/{DATA_FILE}")), reverse=True)
    largest = ", ".join(f"{name} ({size / 2**20:.0f} MiB)" for size, name in caches[:_LISTED])
    raise DataError(
        f"{folder}: the prepared cache needs {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; "
        "free some, choose another folder, or a smaller preprocessing.target_size"
        + (f"; caches of other data or preprocessing that may be deleted: {largest}" if largest else "")
    )
