"""Read every picture once: its digest, whether it decodes, and the hashes that tell near-duplicates.

Remembers what it read in ``scan.parquet`` (by path, size and time of change), so that a second run reads
only what is new. Knows single pictures; knows nothing of groups, mixtures or splits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pillsnap.core.errors import ImageError
from pillsnap.core.files import sha256_bytes, writing_beside
from pillsnap.core.images import decode_rgb, read_image_bytes
from pillsnap.data.names import Condition, Domain, kcode_of_name, parse_condition
from pillsnap.data.parallel import Progress, map_in_order

SCAN_FILE = "scan.parquet"
_HASH_SIDE = 256
"""Pixels per side of the grey picture that the perceptual hashes see."""


@dataclass(frozen=True)
class Picture:
    """One picture file of a drug, before anything is read of it."""

    path: str
    """Relative to the data set, through the links, with forward slashes."""
    source: Path
    kcode: str
    domain: Domain

    @property
    def condition(self) -> Condition | None:
        """What the file's name tells."""
        return parse_condition(os.path.basename(self.path), self.domain)


@dataclass(frozen=True)
class Reading:
    """What was read of a picture file. ``fault`` is empty where it can be used."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    dhash: str
    """Gradient hash, 16 hexadecimal digits; empty where the name tells the conditions."""
    phash: str
    """Frequency hash, likewise."""
    fault: str


def scan(pictures: Sequence[Picture], cache_file: Path, workers: int, progress: Progress) -> dict[str, Reading]:
    """Read what is new or changed since ``cache_file`` was written, and write it again.

    An interrupted scan keeps what it has read.

    Returns:
        path → reading, for exactly these pictures.
    """
    remembered = _load(cache_file)
    readings: dict[str, Reading] = {}
    new: list[Picture] = []
    for picture in pictures:
        known = remembered.get(picture.path)
        if known is not None and (known.size, known.mtime_ns) == _stamp(picture.source):
            readings[picture.path] = known
        else:
            new.append(picture)
    if not new:
        return readings
    try:
        for reading in map_in_order(_read, new, workers, "reading pictures", progress):
            readings[reading.path] = reading
    finally:
        _save(cache_file, {**remembered, **readings})
    return readings


def known_paths(cache_file: Path) -> frozenset[str]:
    """Paths of all pictures that were ever read for this data set."""
    return frozenset(_load(cache_file))


def perceptual_hashes(image_rgb_HWC_u8: NDArray[np.uint8]) -> tuple[str, str]:
    """dHash and pHash (64 bits each, as hexadecimal digits) of the whole picture, by the library imagehash."""
    grey = cv2.cvtColor(image_rgb_HWC_u8, cv2.COLOR_RGB2GRAY)
    small = Image.fromarray(cv2.resize(grey, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA))
    return str(imagehash.dhash(small)), str(imagehash.phash(small))


def _read(picture: Picture) -> Reading:
    size, mtime_ns = _stamp(picture.source)
    sha256 = dhash = phash = fault = ""
    try:
        _check_name(picture)
        data = read_image_bytes(picture.source)
        sha256 = sha256_bytes(data)
        image = decode_rgb(data, picture.path)
        if picture.condition is None:
            dhash, phash = perceptual_hashes(image)
    except ImageError as error:
        fault = str(error).removeprefix(f"{picture.path}: ")
    return Reading(picture.path, size, mtime_ns, sha256, dhash, phash, fault)


def _check_name(picture: Picture) -> None:
    named = kcode_of_name(os.path.basename(picture.path))
    if named is not None and named != picture.kcode:
        raise ImageError(f"is named after {named} but lies in the folder of {picture.kcode}; put it where it belongs")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _load(cache_file: Path) -> dict[str, Reading]:
    """The readings of an earlier run; nothing where the file is missing, damaged or of another form."""
    try:
        rows = pq.read_table(cache_file).to_pylist()
        return {row["path"]: Reading(**row) for row in rows}
    except (OSError, pa.ArrowException, TypeError, KeyError):
        return {}


def _save(cache_file: Path, readings: Mapping[str, Reading]) -> None:
    ordered = [readings[path] for path in sorted(readings)]
    columns = {field.name: [getattr(reading, field.name) for reading in ordered] for field in fields(Reading)}
    with writing_beside(cache_file) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
