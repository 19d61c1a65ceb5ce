"""From the bytes of a picture file to RGB pixels: the only decoder of the platform.

The result is always RGB, uint8, H,W,C (legend: H height, W width, C channel). What happens to

| content | outcome |
|---|---|
| EXIF orientation 1-8 (JPEG, PNG eXIf, WebP) | applied here, once; damaged or missing: upright; XMP is not read |
| grey, 1 to 16 bits | the grey value in all three channels |
| alpha (grey+alpha, RGBA, tRNS) | ignored: the stored colour counts, as PIL's and OpenCV's RGB do; see below |
| palette, with or without tRNS | looked up; transparency is ignored |
| 16-bit PNG | the upper 8 bits |
| CMYK, YCCK JPEG | Adobe's inverted inks, with or without Adobe's marker; no colour profile; PIL differs by ≤ 1 level |
| interlaced PNG, progressive JPEG | as any other; a JPEG of more than 32 scans is refused (`too_many_scans`) |
| animated WebP | its first frame, on its canvas |
| APNG | its default image (what a decoder shows that knows no APNG) |
| bytes after the end (motion photo) | ignored |
| GIF, BMP, TIFF, PDF, text … | `unsupported_format`; told by content, never by name |
| no bytes; over 64 MiB | `empty`, `too_many_bytes` |
| a side of 0; over 64 million pixels | `no_pixels`, `too_many_pixels`, before anything is decoded |
| HEIC, AVIF | `heic`: what to set on the phone |
| JPEG of 12 bits, JPEG-LS, hierarchical, lossless in grey, its height behind the pixels | `rare_jpeg`: what it is |
| the end is missing | `truncated` (the decoder would fill the rest with grey) |
| a JPEG's header with next to nothing behind it | `no_pixel_data` |
| a JPEG that has its end, but not all of its pixels | decoded, the rest grey or torn; `Decoded.whole` says so |
| … of a progressive one, within its last pass | decoded, often not noticed: it holds the finest bits (median change 1 to 2 levels) |
| damaged | `undecodable`, where the decoder notices: JPEG has no checksum, so a flipped bit can pass |

Alpha is not composited because that would invent a background that no photo has; a picture with transparency is
remarked on by the validator. All codes stand in `core.image_codes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.core.errors import ImageError
from pillsnap.core.image_codes import Refusal
from pillsnap.core.image_header import ImageHeader, bare_png, read_header

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Usual endings (lower case) of the formats that are decoded; what a source lists is wider (`data.sources.tree`)."""
MAX_BYTES = 64 * 2**20
"""Largest picture file that is decoded; a 12-megapixel PNG stays under it."""
MAX_PIXELS = 64_000_000
"""Most pixels of a picture that is decoded: the full 50 megapixels of a phone's sensor and some room.

192 MB as RGB; a progressive JPEG takes up to three times as much while it is decoded.
"""
MAX_SCANS = 32
"""Most passes of a JPEG: each costs a walk over all pixels and only some bytes of file. Encoders write about 10."""

_IN_PLACE_OF_THE_END = bytes(16)
"""The decoder reads 8 bytes ahead."""
_MANY_ZEROS = 64

_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# The REDUCED_GRAYSCALE flags hold the bit of the scale alone: together with COLOR_RGB the result has colours.
_READ_FLAGS = {
    1: _AS_STORED,
    2: _AS_STORED | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: _AS_STORED | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: _AS_STORED | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_GREY_FLAGS = {
    1: cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_IGNORE_ORIENTATION,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_IGNORE_ORIENTATION,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION,
}
_UPRIGHT: dict[int, Callable[[Any], Any]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.flip(cv2.transpose(image), -1),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


class Decoded(NamedTuple):
    """Pixels, and whether they are all of the picture."""

    pixels: NDArray[np.uint8]
    """``image_rgb_HWC_u8`` or ``grey_HW_u8``, upright."""
    whole: bool
    """False: a part of a JPEG's pixel data is missing or damaged, and the decoder filled it with something."""


def inspect(data: bytes, name: str = "image") -> ImageHeader:
    """Everything that can be refused before a single pixel is decoded.

    Raises:
        ImageError: as the table above says; the message starts with ``name``.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(
            f"{name}: {len(data) / 2**20:.0f} MiB, over the limit of {MAX_BYTES // 2**20} MiB", Refusal.TOO_MANY_BYTES
        )
    header = read_header(data, name)
    refuse_header(header, name)
    return header


def refuse_header(header: ImageHeader, name: str = "image") -> None:
    """Raise ImageError for a header that the decoder must not be given (kind, size, end, scans)."""
    if header.undecoded:
        raise ImageError(
            f"{name}: is a JPEG {header.undecoded}, which is not decoded; save it as a usual JPEG (8 bits, baseline)",
            Refusal.RARE_JPEG,
        )
    pixels = header.width * header.height
    if pixels == 0:
        raise ImageError(f"{name}: is {header.width}×{header.height} px: no pixels", Refusal.NO_PIXELS)
    if pixels > MAX_PIXELS:
        raise ImageError(
            f"{name}: {header.width}×{header.height} px, over the limit of {MAX_PIXELS // 10**6} million pixels; "
            "send a smaller one",
            Refusal.TOO_MANY_PIXELS,
        )
    if not header.whole:
        raise ImageError(
            f"{name}: the picture is cut off (its end is missing); copy or take it again", Refusal.TRUNCATED
        )
    if not header.has_pixel_data:
        raise ImageError(
            f"{name}: is the header of a JPEG without its pixels ({header.width}×{header.height} px, next to nothing "
            "behind it); copy or take it again",
            Refusal.NO_PIXEL_DATA,
        )
    if header.scans > MAX_SCANS:
        raise ImageError(
            f"{name}: a JPEG of {header.scans} scans, over the limit of {MAX_SCANS}; save it as a usual JPEG",
            Refusal.TOO_MANY_SCANS,
        )


def decode_rgb(data: bytes, name: str = "image", keep_side: int | None = None) -> NDArray[np.uint8]:
    """Decode JPEG, PNG or WebP to ``image_rgb_HWC_u8``, upright.

    Args:
        data: the file.
        name: how messages call it.
        keep_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size, as long as its short side keeps this many pixels
            (see `reduction`); None decodes all pixels.

    Raises:
        ImageError: as the table above says; the message starts with ``name``.
    """
    header = inspect(data, name)
    return decode_inspected(data, header, 1 if keep_side is None else reduction(header, keep_side), name).pixels


def decode_inspected(data: bytes, header: ImageHeader, scale: int, name: str = "image") -> Decoded:
    """Decode what `inspect` has let through, at 1/``scale`` (1, 2, 4, 8). Raises ImageError (``undecodable``)."""
    height, width = -(-header.height // scale), -(-header.width // scale)
    return _decode(data, header, _READ_FLAGS[scale], (height, width, 3), name)


def decode_grey(data: bytes, header: ImageHeader, scale: int, name: str = "image") -> Decoded:
    """As `decode_inspected`, but ``grey_HW_u8``: half the time for a JPEG, whose colour is never made."""
    if header.mode in ("cmyk", "ycck") or header.lossless:  # libjpeg makes no grey of these
        image, whole = decode_inspected(data, header, scale, name)
        return Decoded(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8), whole)
    height, width = -(-header.height // scale), -(-header.width // scale)
    return _decode(data, header, _GREY_FLAGS[scale], (height, width), name)


def _decode(data: bytes, header: ImageHeader, flags: int, shape: tuple[int, ...], name: str) -> Decoded:
    image: Any = None
    whole = header.every_scan
    try:
        if header.pixels_end is not None:
            # Without its end marker a JPEG is decoded as long as no pixel is missing, to the same pixels; where the
            # decoder runs out of bytes it gives nothing. With the marker it would fill the rest and be silent.
            image = _decoded(data[: header.pixels_end] + _IN_PLACE_OF_THE_END, flags)
            whole = image is not None and not _ends_in_idle_zeros(data, header.pixels_end, flags)
        if image is None:
            image = _decoded(bare_png(data) if header.format == "png" else data, flags)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded ({error.err or 'damaged'})", Refusal.UNDECODABLE) from error
    if image is None or image.shape != shape or image.dtype != np.uint8:
        raise ImageError(f"{name}: cannot be decoded (damaged); copy or take it again", Refusal.UNDECODABLE)
    turn = _UPRIGHT.get(header.orientation)
    return Decoded(np.asarray(image if turn is None else turn(image), np.uint8), whole)


def _ends_in_idle_zeros(data: bytes, end: int, flags: int) -> bool:
    """Whether a JPEG's pixels end in zeros that no pixel needs, as a copy that broke off leaves them.

    Zeros alone are no damage: in tables made for the picture they may stand for an even surface.
    """
    if any(data[end - _MANY_ZEROS : end]):
        return False
    return _decoded(data[: end - _MANY_ZEROS // 2] + _IN_PLACE_OF_THE_END, flags) is not None


def _decoded(data: bytes, flags: int) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def reduction(header: ImageHeader, keep_side: int) -> int:
    """By how much a JPEG can be decoded smaller (1, 2, 4, 8) and still have ``keep_side`` pixels on its short side.

    Only where the centre square falls on whole pixels of the smaller picture too: otherwise the crop would be off by
    part of a pixel, and turned pictures by another part than upright ones. Every common sensor size allows it.
    """
    if header.format != "jpeg" or header.lossless:
        return 1  # the others are decoded whole and shrunk afterwards: nothing is won
    short, long = sorted((header.width, header.height))
    fits = (s for s in (8, 4, 2) if short // s >= keep_side and short % s == 0 and (long - short) % (2 * s) == 0)
    return next(fits, 1)


def read_image_bytes(path: Path) -> bytes:
    """Read a picture file. Raises ImageError that names the path; a file over the limit is not read at all."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(
                f"{path}: {size / 2**20:.0f} MiB, over the limit of {MAX_BYTES // 2**20} MiB", Refusal.TOO_MANY_BYTES
            )
        return path.read_bytes()
    except OSError as error:
        behind = f"; it is a link to {os.readlink(path)}" if path.is_symlink() else ""
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}{behind})", Refusal.UNREADABLE) from error
