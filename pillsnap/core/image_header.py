"""What a picture's bytes say of themselves, read without decoding: format, size, mode, orientation.

Knows the structure of JPEG (ITU-T T.81), PNG (third edition, with APNG) and WebP (RFC 9649) as far as the pixels;
knows no limit and decodes nothing, so a decompression bomb costs nothing here. The format is that of the content;
a name never counts. Own code because PIL allocates a WebP's whole canvas when it opens one; the tests hold it
against PIL.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

from pillsnap.core.errors import ImageError
from pillsnap.core.image_codes import Refusal

ImageFormat = Literal["jpeg", "png", "webp"]
ImageMode = Literal["grey", "grey_alpha", "rgb", "rgba", "palette", "cmyk", "ycck"]

_MAX_PARTS = 100_000
"""Segments or chunks that are walked through: a 64-MiB PNG of usual chunks has 8,192."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Any number of fill bytes 0xFF may precede a marker (B.1.1.2), and its own 0xFF is the last of them. With "\xff+" a run
# that leads to no marker would be searched anew from each of its bytes.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_SCAN_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)  # of those that have a length, or the end
_AFTER_PIXELS = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)  # where the decoder of a scan stops
_AFTER_PIXELS_RESTARTED = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_END = b"\xff\xd9"
_MANY_SCANS = 1000
"""Beyond any limit: counting may end."""
_JPEG_LS = 0xF7
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {_JPEG_LS}
_HUFFMAN = frozenset(range(0xC0, 0xC8))  # the others are of arithmetic coding
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_MODES: dict[int, ImageMode] = {0: "grey", 2: "rgb", 3: "palette", 4: "grey_alpha", 6: "rgba"}
_PHONE = (
    "set the phone to JPEG (iPhone: Settings > Camera > Formats > Most Compatible; Android: turn high efficiency "
    "pictures off in the camera's settings), or convert the picture to JPEG"
)
_CONVERT = "convert it to JPEG"
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), ("HEIC", _PHONE)),
    **dict.fromkeys((b"avif", b"avis"), ("AVIF", _PHONE)),
    b"crx ": ("a Canon raw photo", _CONVERT),
}
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"GIF8", "GIF", _CONVERT),
    (b"II*\0", "TIFF or a camera's raw file", _CONVERT),
    (b"MM\0*", "TIFF or a camera's raw file", _CONVERT),
    (b"\0\0\0\x0cjP  ", "JPEG 2000", _CONVERT),
    (b"\xff\x4f\xff\x51", "JPEG 2000", _CONVERT),
    (b"\0\0\0\x0cJXL ", "JPEG XL", _CONVERT),
    (b"\xff\x0a", "JPEG XL", _CONVERT),
    (b"%PDF", "PDF", "send the picture itself"),
    (b"8BPS", "Photoshop", _CONVERT),
    (b"PK\x03\x04", "a ZIP archive", "unpack it and send the picture"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and send the picture"),
    (b"RIFF", "a film or a sound (RIFF)", "send a photo"),
)


@dataclass(frozen=True)
class ImageHeader:
    """What is known of a picture before it is decoded."""

    format: ImageFormat
    mode: ImageMode
    width: int
    """Pixels as stored, before the orientation."""
    height: int
    bit_depth: int
    """Bits a channel (of the index, for a palette)."""
    has_alpha: bool
    """An alpha channel, or a transparent colour (tRNS)."""
    animated: bool
    """Holds more than one frame (APNG, WebP)."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 where there is none or where it is damaged."""
    whole: bool
    """The end of the picture is there."""
    scans: int = 1
    """Passes of a JPEG, 1 for what is not progressive."""
    every_scan: bool = True
    """False: passes of a JPEG of several are missing."""
    pixels_end: int | None = None
    """Where the coded pixels of a JPEG of one pass end; None for all others."""
    has_pixel_data: bool = True
    """False: of a JPEG there is little more than the header."""
    lossless: bool = False
    """A lossless JPEG, which is decoded in its full size and its own colours only."""
    undecoded: str = ""
    """What kind of JPEG it is, where it is of one that is not decoded."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as the picture is seen, in pixels."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: bytes, name: str = "image") -> ImageHeader:
    """Read the header of JPEG, PNG or WebP, told apart by content.

    Raises:
        ImageError: ``empty``, ``unsupported_format`` (the message says what it is instead and what to do),
            ``truncated`` (within the header) or ``undecodable`` (not what the format allows); starts with ``name``.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty", Refusal.EMPTY)
    try:
        if data.startswith(b"\xff\xd8"):
            return _read_jpeg(data)
        if data.startswith(_PNG_SIGNATURE):
            return _read_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (struct.error, IndexError):
        raise ImageError(f"{name}: the picture is cut off within its header", Refusal.TRUNCATED) from None
    except ImageError as error:
        raise ImageError(f"{name}: {error}", error.code) from None
    _refuse_foreign(data, name)


def _refuse_foreign(data: bytes, name: str) -> NoReturn:
    """Name the format of what is none of the three."""
    found = next(((what, advice) for start, what, advice in _FOREIGN if data.startswith(start)), None)
    code = Refusal.UNSUPPORTED_FORMAT
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), data[3]), 4))}
        known = [_BRANDS[brand] for brand in (b"avif", b"avis", *sorted(brands)) if brand in brands & _BRANDS.keys()]
        found = known[0] if known else ("a film (MP4 or QuickTime)", "send a photo")
        code = Refusal.HEIC if found[1] is _PHONE else code
    elif data[:2] == b"BM" and data[6:10] == bytes(4):
        found = ("BMP", _CONVERT)
    elif found is None and _is_text(data[:512]):
        found = ("text", "send the picture itself")
    reason = "is not a picture that can be decoded (JPEG, PNG and WebP can)"
    if found is not None:
        reason += f", but {found[0]}; {found[1]}"
    raise ImageError(f"{name}: {reason}", code)


def _is_text(head: bytes) -> bool:
    try:
        return all(character.isprintable() or character.isspace() for character in head.decode("utf-8"))
    except UnicodeDecodeError as error:
        return error.start > 0 and error.end == len(head) and _is_text(head[: error.start])  # a cut character


def _damaged(what: str) -> ImageError:
    return ImageError(f"cannot be decoded ({what}); copy or take it again", Refusal.UNDECODABLE)


def _read_jpeg(data: bytes) -> ImageHeader:
    frame: tuple[int, int, int, int] | None = None
    orientation = transform = kind = 0
    restarts = False
    scan, coded = b"", len(data)
    for marker, segment, end in _jpeg_segments(data):
        if marker in _START_OF_FRAME:
            if frame is not None:
                raise _damaged("it has two frames")
            kind, frame = marker, struct.unpack_from(">BHHB", segment)
        elif marker == 0xE1 and segment[:6] == b"Exif\0\0" and not orientation:
            orientation = _orientation(segment[6:])
        elif marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            transform = segment[11]
        elif marker == 0xDD:
            restarts = any(segment[:2])
        elif marker == 0xDA:
            scan, coded = segment, end
    if frame is None:
        raise _damaged("its pixels come before its size")
    bit_depth, height, width, channels = frame
    mode: ImageMode | None = {1: "grey", 3: "rgb", 4: "ycck" if transform == 2 else "cmyk"}.get(channels)
    if mode is None:
        raise _damaged(f"{channels} channels")
    last = data.find(_END, coded)
    lossless, progressive = kind in _LOSSLESS, kind & 3 == 2
    found = (_AFTER_PIXELS_RESTARTED if restarts else _AFTER_PIXELS).search(data, coded)
    undecoded = _undecoded_kind(kind, bit_depth, channels)
    if height == 0 and found is not None and found[0] == b"\xff\xdc":
        undecoded = "whose height stands behind its pixels (DNL)"
    alone = scan[0] == channels and not progressive
    blocks = -(-width // 8) * -(-height // 8)  # each takes a bit at the least in Huffman's codes
    scans, every_scan = (1, True) if alone else _walk_scans(data, coded, scan, channels, progressive)
    return ImageHeader(
        "jpeg", mode, width, height, bit_depth, False, False, orientation or 1,
        whole=last >= 0,  # what follows the end marker is free: phones append the film of a motion photo there
        scans=scans,
        every_scan=every_scan,
        pixels_end=found.start() if found is not None and alone else None,
        has_pixel_data=8 * (last - coded) >= (blocks if kind in _HUFFMAN else 1),
        lossless=lossless,
        undecoded=undecoded,
    )  # fmt: skip


def _undecoded_kind(start_of_frame: int, bit_depth: int, channels: int) -> str:
    """In words, what libjpeg does not decode to 8 bits of colour; empty for all that it does."""
    if start_of_frame == _JPEG_LS:
        return "of the kind JPEG-LS"
    if bit_depth != 8 and 2 <= bit_depth <= 16:  # any other number is damage
        return f"of {bit_depth} bits a channel"
    if start_of_frame in _HIERARCHICAL:
        return "of the hierarchical kind"
    return "of the lossless kind, in grey" if start_of_frame in _LOSSLESS and channels == 1 else ""


def _walk_scans(data: bytes, coded: int, scan: bytes, channels: int, progressive: bool) -> tuple[int, bool]:
    """How many scans there are, and whether they hold every bit of every coefficient.

    The markers are walked as a decoder does: a segment between two scans may hold bytes that look like an end, and the
    scans behind it are decoded all the same. Counting ends where there are too many.

    Args:
        data: the file.
        coded: where the pixels of the first scan begin.
        scan: the content of its header.
        channels: of the frame.
        progressive: whether a scan holds some of the coefficients, or some of their bits.
    """
    missing: dict[int, list[int]] = {}  # component → of each coefficient, how many bits are still missing
    scans, position = 0, coded
    for _ in range(_MAX_PARTS):
        if scan:
            scans += 1
            first, last, bits = struct.unpack_from("3B", scan, 1 + 2 * scan[0]) if progressive else (0, 63, 0)
            for component in scan[1 : 1 + 2 * scan[0] : 2]:
                coefficients = missing.setdefault(component, [16] * 64)
                coefficients[first : last + 1] = [bits & 15] * len(coefficients[first : last + 1])
        found = _SCAN_MARKER.search(data, position)
        if found is None or found[1] == b"\xd9" or scans > _MANY_SCANS:
            return scans, len(missing) == channels and not any(map(any, missing.values()))
        position = found.end()
        length = max(int.from_bytes(data[position : position + 2], "big"), 2)
        scan = data[position + 2 : position + length] if found[1] == b"\xda" else b""
        position += length
    raise _damaged(f"over {_MAX_PARTS:,} segments")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content and end of every segment up to the first scan (0xDA), which is the last that is given.

    Past the header only: a thumbnail within it has scans and an end marker of its own. Bytes between two segments
    are skipped, as libjpeg does.
    """
    position = 2
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise ImageError("the picture is cut off within its header", Refusal.TRUNCATED)
        marker, position = found[1][0], found.end()
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == 0xD9:
            raise _damaged("it ends before its pixels")
        (length,) = struct.unpack_from(">H", data, position)
        end = position + max(length, 2)
        yield marker, data[position + 2 : end], end
        if marker == 0xDA:
            return
        position = end
    raise _damaged(f"over {_MAX_PARTS:,} segments")


def _read_png(data: bytes) -> ImageHeader:
    frames, orientation, transparent, whole, first = 0, 1, False, False, True
    width = height = bit_depth = color = 0
    pixels_seen = still_beside = False
    for kind, start, length in _png_chunks(data):
        if kind[0] & 0x20 == 0 and kind not in _PNG_NEEDED:
            raise _damaged("an unknown chunk that it says is critical")
        if first:
            if kind != b"IHDR" or length != 13:
                raise _damaged("it does not begin with IHDR")
            width, height, bit_depth, color = struct.unpack_from(">IIBB", data, start)
            first = False
        elif kind == b"tRNS":
            transparent = True
        elif kind == b"acTL" and not pixels_seen:
            (frames,) = struct.unpack_from(">I", data, start)
            still_beside = True
        elif kind == b"eXIf":
            orientation = _orientation(data[start : start + length])
        elif kind == b"fcTL" and not pixels_seen:
            still_beside = False  # the default image is the first frame
        elif kind == b"IDAT":
            pixels_seen = True
        whole = kind == b"IEND"
    if first:
        raise struct.error
    if color not in _PNG_MODES or bit_depth not in (1, 2, 4, 8, 16):
        raise _damaged(f"colour type {color}, {bit_depth} bits")
    alpha = transparent or color in (4, 6)
    animated = frames + still_beside > 1
    return ImageHeader("png", _PNG_MODES[color], width, height, bit_depth, alpha, animated, orientation, whole)


def bare_png(data: bytes) -> bytes:
    """The same PNG with nothing but what its pixels need, and nothing after its end.

    OpenCV 5.0 reads a PNG with APNG's chunks in a reader of its own, which crashes the process on damaged ones; and
    compressed texts and profiles are nobody's business here.
    """
    chunks = list(_png_chunks(data))
    if all(kind in _PNG_NEEDED for kind, _, _ in chunks):
        return data
    kept = [data[start - 8 : start + length + 4] for kind, start, length in chunks if kind in _PNG_NEEDED]
    return b"".join([_PNG_SIGNATURE, *kept])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of every chunk that is whole, up to IEND."""
    position = len(_PNG_SIGNATURE)
    for _ in range(_MAX_PARTS):
        if position + 12 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        if position + 12 + length > len(data):
            return
        yield kind, position + 8, length
        if kind == b"IEND":
            return
        position += 12 + length
    raise _damaged(f"over {_MAX_PARTS:,} chunks")


def _read_webp(data: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", data, 4)
    canvas: tuple[int, int, bool] | None = None
    frame: tuple[int, int, bool] | None = None
    frames, orientation = 0, 1
    for kind, start, length in _webp_chunks(data, min(len(data), size + 8)):
        if kind == b"VP8X" and canvas is None and frame is None:
            canvas = _u24(data, start + 4) + 1, _u24(data, start + 7) + 1, bool(data[start] & 0x10)
        elif kind in (b"VP8 ", b"VP8L") and frame is None:
            frame = _webp_frame(data, kind, start)
        elif kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF" and canvas is not None:
            orientation = _orientation(data[start : start + length].removeprefix(b"Exif\0\0"))
    found = canvas or frame
    whole = len(data) >= size + 8
    if found is None or (frame is None and frames == 0):
        raise _damaged("it holds no picture") if whole else struct.error
    if canvas and frame and frames == 0 and canvas[:2] != frame[:2]:
        raise _damaged("its canvas and its picture differ in size")
    width, height, alpha = found
    return ImageHeader("webp", "rgba" if alpha else "rgb", width, height, 8, alpha, frames > 1, orientation, whole)


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of every chunk; the last may be cut off."""
    position = 12
    for _ in range(_MAX_PARTS):
        if position + 8 > end:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, length
        position += 8 + length + length % 2
    raise _damaged(f"over {_MAX_PARTS:,} chunks")


def _webp_frame(data: bytes, kind: bytes, start: int) -> tuple[int, int, bool]:
    """Width, height and alpha out of a bitstream's own header."""
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, start)
        if signature != 0x2F:
            raise _damaged("the lossless bitstream has no signature")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    tag, code, width, height = struct.unpack_from("<B2x3sHH", data, start)
    if tag & 1 or code != b"\x9d\x01\x2a":
        raise _damaged("the lossy bitstream does not begin with a key frame")
    return width & 0x3FFF, height & 0x3FFF, False


def _u24(data: bytes, start: int) -> int:
    low, high = struct.unpack_from("<HB", data, start)
    return int(low) | int(high) << 16


def _orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory of an EXIF block; 1 where it is missing or damaged (as viewers do)."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, entry)
            if tag == 0x0112 and kind in (3, 4) and count == 1:
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), tiff, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
