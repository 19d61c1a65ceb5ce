"""What the BFF (the back end for the front end) does with a photo: look at it, and pass on the very same bytes.

Validates and never transforms. Everything that is refused or remarked on has a code (`core.image_codes`) for the
mobile client and a message for people. A photo that passes is one that the inference server can decode: both use
the same decoder. Safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict

from pillsnap.core.errors import ImageError
from pillsnap.core.image_codes import DOUBTS, Finding, Refusal, Remark
from pillsnap.core.image_header import ImageFormat, ImageHeader, ImageMode, read_header
from pillsnap.core.image_quality import MEASURED_FROM_PX, QualityLimits, doubts
from pillsnap.core.images import MAX_PIXELS, MAX_SCANS, decode_grey, reduction, refuse_header

VALIDATOR_VERSION = "1.2"
MAX_UPLOAD_BYTES = 10 * 2**20
"""The specification's 10 MB, read as 10 MiB: 10,485,760 bytes pass, one more is refused."""
MIN_SIDE_PX = 512
"""Of a photo that nothing is remarked on."""
LEAST_SIDE_PX = 32
"""Of a photo that is answered at all."""
_NAME = "image"
_ENDINGS: dict[str, ImageFormat] = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg"),
    ".png": "png",
    ".webp": "webp",
}


class ValidationResult(BaseModel):
    """What is known of a photo; ``refusals`` is empty when it is ``ok``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: bool
    format: ImageFormat | None
    """By content; None where the header cannot be read."""
    mode: ImageMode | None
    width: int | None
    """Pixels of the upright picture, as it is seen and as the model gets it."""
    height: int | None
    size_kb: float
    """Size of the file; 1 KB = 1,024 bytes."""
    warnings: tuple[Finding, ...]
    """Codes: `Remark`."""
    refusals: tuple[Finding, ...]
    """Codes: `Refusal`."""


class ImageValidator:
    """Format, mode, size, file size, warnings; refuses over 10 MiB and whatever cannot be decoded."""

    def get_config(self) -> dict[str, Any]:
        """Limits, codes and a version, in the form other systems synchronise with."""
        return {
            "version": VALIDATOR_VERSION,
            "max_bytes": MAX_UPLOAD_BYTES,
            "max_pixels": MAX_PIXELS,
            "max_scans": MAX_SCANS,
            "warn_below_side_px": MIN_SIDE_PX,
            "refuse_below_side_px": LEAST_SIDE_PX,
            "expected_formats": ["jpeg", "png"],
            "decodable_formats": ["jpeg", "png", "webp"],
            "warnings": {code.value: code.meaning for code in Remark},
            "never_sure": [code.value for code in DOUBTS],
            "quality_limits": QualityLimits().model_dump(),
            "refusals": {code.value: code.meaning for code in Refusal},
        }

    def validate(self, data: bytes, name: str | None = None) -> ValidationResult:
        """Look at a photo; it is decoded (a large JPEG smaller) and thrown away. Raises nothing for a bad photo.

        Args:
            data: the file, as it came.
            name: the file's name where there is one: only to remark on an ending that says something else.
        """
        header: ImageHeader | None = None
        warnings: tuple[Finding, ...] = ()
        refusals: tuple[Finding, ...] = ()
        try:
            if len(data) > MAX_UPLOAD_BYTES:
                raise ImageError(
                    f"{len(data) / 2**20:.1f} MiB, over the limit of {MAX_UPLOAD_BYTES // 2**20} MiB; "
                    "send it in JPEG quality 85, or smaller",
                    Refusal.TOO_MANY_BYTES,
                )
            header = read_header(data, _NAME)
            warnings = self.remarks(header, name)
            refuse_header(header, _NAME)
            refuse_small(header, _NAME)
            decoded = decode_grey(data, header, reduction(header, MEASURED_FROM_PX), _NAME)
            warnings += doubts(decoded)
        except ImageError as error:
            refusals = (_finding(error.code, str(error).removeprefix(f"{_NAME}: ")),)
        width, height = header.upright_size if header else (None, None)
        return ValidationResult(
            ok=not refusals,
            format=header.format if header else None,
            mode=header.mode if header else None,
            width=width,
            height=height,
            size_kb=round(len(data) / 1024, 3),
            warnings=warnings,
            refusals=refusals,
        )

    def remarks(self, header: ImageHeader, name: str | None = None) -> tuple[Finding, ...]:
        """The warnings that the header gives, for who decodes the photo anyway and asks `doubts` of its pixels;
        ``header`` and ``name`` as in `validate`."""
        return tuple(_remarks(header, name))

    def pass_through(self, data: bytes, name: str | None = None) -> bytes:
        """The very same bytes object, when the photo is fit to be passed on.

        Raises:
            ImageError: it is not; with the code and the message of the refusal.
        """
        for refusal in self.validate(data, name).refusals:
            raise ImageError(f"{name or _NAME}: {refusal.message}", refusal.code)
        return data


def refuse_small(header: ImageHeader, name: str) -> None:
    """Raise ImageError where a side is shorter than `LEAST_SIDE_PX`."""
    width, height = header.upright_size
    if min(width, height) < LEAST_SIDE_PX:
        raise ImageError(
            f"{name}: {width}×{height} px: a side is under {LEAST_SIDE_PX} px; go nearer to the pill", Refusal.TOO_SMALL
        )


def _finding(code: str, message: str) -> Finding:
    return Finding(code=str(code), message=message)


def _remarks(header: ImageHeader, name: str | None) -> Iterator[Finding]:
    width, height = header.upright_size
    named = _ENDINGS.get(ending := PurePath(name or "").suffix.lower())
    if min(width, height) < MIN_SIDE_PX:
        yield _finding(Remark.SMALL_SIDE, f"{width}×{height} px: a side is under {MIN_SIDE_PX} px; go nearer")
    if header.format not in ("jpeg", "png"):
        yield _finding(Remark.NOT_JPEG_OR_PNG, f"{header.format}: JPEG or PNG is expected")
    if ending and named != header.format:
        yield _finding(Remark.NAME_DIFFERS, f"the name ends in {ending}, the content is {header.format}")
    if header.has_alpha:
        yield _finding(Remark.ALPHA, f"{header.mode} with transparency, which is ignored")
    if header.animated:
        yield _finding(Remark.ANIMATED, "an animation; only its first picture is used")
    if header.mode in ("cmyk", "ycck"):
        yield _finding(Remark.CMYK, "colours for print; a photo should be RGB")
    if header.bit_depth > 8:
        yield _finding(Remark.DEEP, f"{header.bit_depth} bits a channel; the upper 8 are used")
    if header.orientation != 1:
        yield _finding(Remark.ORIENTATION, f"EXIF orientation {header.orientation}; decoding puts it upright")
