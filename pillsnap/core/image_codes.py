"""Every reason why a picture is refused and every remark on one that is taken: the codes, in one place.

The code is for programs (audit tables, the API, the mobile client), its ``meaning`` for their documents. The
message that travels with a code is for people, and lives where the fault is found.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict


class _Code(StrEnum):
    """A code and, in one line, what it means."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """A member is its code as a string; ``meaning`` is an attribute."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class Refusal(_Code):
    """Why a picture cannot be used: the ``code`` of an ``ImageError``."""

    UNREADABLE = "unreadable", "the file is missing or cannot be read"
    EMPTY = "empty", "the file has no bytes"
    TOO_MANY_BYTES = "too_many_bytes", "the file is larger than the limit"
    UNSUPPORTED_FORMAT = "unsupported_format", "by its content it is not JPEG, PNG or WebP"
    HEIC = "heic", "a HEIC or AVIF photo: set the phone to JPEG (iPhone: Most Compatible)"
    RARE_JPEG = "rare_jpeg", "a JPEG of a kind that is not decoded: 12 bits, lossless in grey, height behind the pixels"
    TRUNCATED = "truncated", "the file's end is missing"
    NO_PIXEL_DATA = "no_pixel_data", "a JPEG that has a header and next to nothing behind it"
    NO_PIXELS = "no_pixels", "the header says that a side is 0"
    TOO_MANY_PIXELS = "too_many_pixels", "the header says that there are more pixels than the limit"
    TOO_SMALL = "too_small", "its shorter side has too few pixels to tell a pill"
    TOO_MANY_SCANS = "too_many_scans", "a progressive JPEG of more passes than any camera writes"
    UNDECODABLE = "undecodable", "the file is damaged, or uses a feature that the decoder lacks"
    WRONG_PIXELS = "wrong_pixels", "an array that is not H×W×3 uint8"
    EMPTY_BATCH = "empty_batch", "a batch without a picture"
    BAD_BOX = "bad_box", "the pill's box is not within the picture"


class Remark(_Code):
    """What is worth a warning in a picture that is taken all the same."""

    SMALL_SIDE = "small_side", "a side is shorter than the 512 pixels that clients send: go nearer"
    NOT_JPEG_OR_PNG = "not_jpeg_or_png", "it can be decoded, but the mobile client sends JPEG or PNG"
    NAME_DIFFERS = "name_differs", "the ending of the name belongs to another format; the content counts"
    ALPHA = "alpha", "there is an alpha channel or a transparent colour: it is ignored"
    ANIMATED = "animated", "there are several pictures: only the first is used"
    CMYK = "cmyk", "the colours are for print: converted without a colour profile"
    DEEP = "more_than_8_bits", "more than 8 bits a channel: the lower bits are dropped"
    ORIENTATION = "exif_orientation", "the picture is stored turned or mirrored; decoding puts it upright"
    DAMAGED = "damaged", "a part of its pixel data is missing or damaged: it was cut off, or copied badly"
    TOO_DARK = "too_dark", "no part of the picture is bright enough to see anything"
    TOO_BRIGHT = "too_bright", "no part of the picture is dark enough to see anything"
    BLANK = "blank", "one even surface, no pill"
    BLURRED = "blurred", "no edge in the picture is sharp"
    NOISE = "noise", "nothing but noise: no shape is left when it is made smaller"


DOUBTS = (Remark.DAMAGED, Remark.TOO_DARK, Remark.TOO_BRIGHT, Remark.BLANK, Remark.BLURRED, Remark.NOISE)
"""With one of these no answer is sure, however confident the model is."""


class Finding(BaseModel):
    """A code for programs, a message for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    message: str
