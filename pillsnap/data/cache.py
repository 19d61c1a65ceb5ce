"""The prepared cache: the deterministic part of the preprocessing, done once for every row of a manifest.

``<folder>/<manifest hash>-<preprocessing fingerprint>/`` holds ``images.u8`` (raw N,H,W,C, uint8, in the
order of the rows) and ``cache.json``. It is made beside and renamed, so what is there is whole; another
manifest or another preprocessing has another name, so a stale cache is never met.

Legend: N images (rows of the manifest), H, W target size, C channel.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.errors import DataError
from pillsnap.core.files import read_json, write_json
from pillsnap.core.images import decode_rgb
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing import PreprocessingSpec, UnifiedPreprocessor
from pillsnap.data.parallel import Progress, map_in_order, no_progress

IMAGES_FILE = "images.u8"
KEY_FILE = "cache.json"
_PART = ".part-"
_SPARE_BYTES = 256 * 2**20
"""Disk space that is left free."""


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

        Args:
            manifest: what to prepare.
            spec: how.
            folder: where caches lie; a subfolder is made.
            workers: images that are prepared at once; 0: one for each core.
            progress: called after every image.

        Raises:
            TamperedError: an image was changed after the manifest was made.
            ImageError: an image is gone.
            DataError: not enough room on the disk.
        """
        target = cache_folder(manifest, spec, folder)
        if _is_whole(target, manifest, spec):
            return cls.open(manifest, spec, folder)
        _remove_leftovers(target)
        _check_space(folder, _size_bytes(manifest, spec))
        part = target.with_name(f".{target.name}{_PART}{os.getpid()}")
        part.mkdir(parents=True)
        try:
            _write_images(part / IMAGES_FILE, manifest, spec, workers or os.cpu_count() or 1, progress)
            write_json(part / KEY_FILE, _key(manifest, spec))
            _put_in_place(part, target, manifest, spec)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return cls.open(manifest, spec, folder)

    @classmethod
    def open(cls, manifest: Manifest, spec: PreprocessingSpec, folder: Path) -> Self:
        """Open a cache that is there. Raises DataError where there is none, or none that is whole."""
        target = cache_folder(manifest, spec, folder)
        if not _is_whole(target, manifest, spec):
            raise DataError(f"{target}: holds no whole prepared cache of this manifest; build it again")
        shape = _shape(manifest, spec)
        return cls(target, np.memmap(target / IMAGES_FILE, np.uint8, "r", shape=shape))


def cache_folder(manifest: Manifest, spec: PreprocessingSpec, folder: Path) -> Path:
    """Where the cache of this manifest and this preprocessing lies."""
    return folder / f"{manifest.hash[:16]}-{spec.fingerprint}"


def _shape(manifest: Manifest, spec: PreprocessingSpec) -> tuple[int, int, int, int]:
    return manifest.rows.num_rows, spec.target_size, spec.target_size, 3


def _size_bytes(manifest: Manifest, spec: PreprocessingSpec) -> int:
    return int(np.prod(_shape(manifest, spec), dtype=np.int64))


def _key(manifest: Manifest, spec: PreprocessingSpec) -> dict[str, Any]:
    return {
        "manifest_hash": manifest.hash,
        "preprocessing_fingerprint": spec.fingerprint,
        "shape_NHWC": list(_shape(manifest, spec)),
    }


def _is_whole(target: Path, manifest: Manifest, spec: PreprocessingSpec) -> bool:
    try:
        size = (target / IMAGES_FILE).stat().st_size
        return size == _size_bytes(manifest, spec) and read_json(target / KEY_FILE) == _key(manifest, spec)
    except (OSError, DataError):
        return False


def _write_images(path: Path, manifest: Manifest, spec: PreprocessingSpec, workers: int, progress: Progress) -> None:
    paths: Sequence[str] = manifest.rows["path"].to_pylist()
    digests: Sequence[str] = manifest.rows["sha256"].to_pylist()
    preprocessor = UnifiedPreprocessor(spec)
    _reserve(path, _size_bytes(manifest, spec))
    images_NHWC_u8 = np.memmap(path, np.uint8, "r+", shape=_shape(manifest, spec))

    def fill(row: int) -> None:
        data = manifest.read_image(paths[row], digests[row])
        images_NHWC_u8[row] = preprocessor.to_model_input(decode_rgb(data, paths[row]))

    for _ in map_in_order(fill, range(len(paths)), workers, "preparing images", progress):
        pass
    images_NHWC_u8.flush()


def _reserve(path: Path, size: int) -> None:
    """Take the room on the disk now: a memory map on a full disk would kill the process."""
    with path.open("wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            raise DataError(f"{path}: {size / 2**20:.0f} MiB cannot be reserved ({error.strerror})") from error


def _put_in_place(part: Path, target: Path, manifest: Manifest, spec: PreprocessingSpec) -> None:
    """Rename; where another process was faster, its cache is the same and ours goes."""
    if target.exists() and not _is_whole(target, manifest, spec):
        shutil.rmtree(target)
    try:
        os.rename(part, target)
    except OSError:
        if not _is_whole(target, manifest, spec):
            raise


def _check_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise DataError(
            f"{folder}: the prepared cache needs {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; "
            "free some, choose another folder, or a smaller preprocessing.target_size"
        )


def _remove_leftovers(target: Path) -> None:
    """Remove what processes that are gone have left half-made."""
    for part in target.parent.glob(f".{target.name}{_PART}*"):
        if not _is_alive(part.name.rpartition("-")[2]):
            shutil.rmtree(part, ignore_errors=True)


def _is_alive(process: str) -> bool:
    if not process.isdigit() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
