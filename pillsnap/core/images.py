"""From the bytes of a picture file to RGB pixels: the only decoder of the platform.

EXIF orientation is applied here, once. The result is always RGB, uint8, H,W,C (legend: H height, W width,
C channel).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.core.errors import ImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Endings (lower case) of files that are taken for pictures."""
MAX_BYTES = 64 * 2**20
"""Largest picture file that is decoded; a 12-megapixel PNG stays under it."""


def decode_rgb(data: bytes, name: str = "image") -> NDArray[np.uint8]:
    """Decode JPEG, PNG or WebP to ``image_rgb_HWC_u8`` with the EXIF orientation applied.

    Raises:
        ImageError: empty, over 64 MiB, truncated, or not an image; the message starts with ``name``.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: {len(data) / 2**20:.0f} MiB, over the limit of {MAX_BYTES // 2**20} MiB")
    if _is_truncated(data):
        raise ImageError(f"{name}: the picture is cut off (its end is missing); copy or take it again")
    try:
        image_bgr_HWC_u8 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded ({error.err or 'damaged'})") from error
    if image_bgr_HWC_u8 is None:
        raise ImageError(f"{name}: is not a picture that can be decoded (JPEG, PNG and WebP can)")
    return np.asarray(cv2.cvtColor(image_bgr_HWC_u8, cv2.COLOR_BGR2RGB), np.uint8)


def read_image_bytes(path: Path) -> bytes:
    """Read a picture file. Raises ImageError that names the path."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _is_truncated(data: bytes) -> bool:
    """OpenCV fills the missing part of a cut JPEG or PNG with grey and says nothing; the end marker tells."""
    if data[:2] == b"\xff\xd8":
        return data.find(b"\xff\xd9", _start_of_scan(data)) < 0
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data[-4096:]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return False


def _start_of_scan(data: bytes) -> int:
    """Where a JPEG's pixels begin: past the header, whose thumbnail has an end marker of its own.

    What follows the end marker is free: phones append the film of a motion photo there.
    """
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] not in (b"\xda", b""):
        if data[position + 1 : position + 2] == b"\xff":  # a fill byte
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position
