"""Read one picture file: its digest, whether it decodes, and the figures that audit and grouping ask for.

Knows single files; judges nothing but what makes a file useless as such (see `pillsnap.data.audit` for the rest).
Legend: H height, W width, C channel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pillsnap.core.boxes import Box
from pillsnap.core.errors import DataError, ImageError
from pillsnap.core.files import sha256_bytes
from pillsnap.core.image_codes import Refusal, Remark
from pillsnap.core.image_quality import MEASURED_FROM_PX, Figures, measure, small_grey
from pillsnap.core.images import decode_grey, inspect, read_image_bytes, reduction
from pillsnap.core.text import is_utf8
from pillsnap.data.labels import Label, disagreements, parse_label
from pillsnap.data.names import combination_kcodes, kcode_of_name
from pillsnap.data.sources import Picture

READER_VERSION = 2
"""Another number makes every picture be read again."""
HASHED_SIDE = 64
THUMB_SIDE = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a picture file. ``fault`` is empty where it can be used."""

    path: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    dhash: str = ""
    """Gradient hash, 16 hexadecimal digits."""
    phash: str = ""
    """Frequency hash, likewise."""
    thumb: bytes = b""
    """Grey, 16 × 16: tells a copy from a picture that only hashes alike."""
    figures: Figures | None = None
    box: Box | None = None
    notes: tuple[str, ...] = ()
    """What is odd about its label."""
    fault_code: str = ""
    fault: str = ""


def read_picture(picture: Picture) -> Reading:
    """Read a picture and its label; what is wrong with it stands in the reading, nothing is raised."""
    sha256 = ""
    try:
        _check_name(picture)
        data = read_image_bytes(picture.source)
        sha256 = sha256_bytes(data)
        header = inspect(data, picture.path)
        width, height = header.upright_size
        decoded = decode_grey(data, header, reduction(header, MEASURED_FROM_PX), picture.path)
        if not decoded.whole:
            raise ImageError("a part of its pixel data is missing or damaged; copy or take it again", Remark.DAMAGED)
        grey_HW_u8 = small_grey(decoded.pixels)
        label, notes = _read_label(picture)
        box, box_notes = _checked_box(picture, label, width, height)
    except ImageError as error:
        fault = str(error).removeprefix(f"{picture.path}: ")
        return Reading(picture.path, sha256, fault_code=error.code, fault=fault)
    dhash, phash = perceptual_hashes(grey_HW_u8)
    thumb = cv2.resize(grey_HW_u8, (THUMB_SIDE, THUMB_SIDE), interpolation=cv2.INTER_AREA).tobytes()
    figures = measure(grey_HW_u8)
    return Reading(picture.path, sha256, width, height, dhash, phash, thumb, figures, box, notes + box_notes)


def perceptual_hashes(grey_HW_u8: NDArray[np.uint8]) -> tuple[str, str]:
    """dHash and pHash (64 bits each, as hexadecimal digits), by the library imagehash.

    It shrinks what it gets to 9 × 8 and 32 × 32; from 64 × 64 that takes a quarter of the time of 256 × 256, and
    finds the same sittings.
    """
    image = Image.fromarray(cv2.resize(grey_HW_u8, (HASHED_SIDE, HASHED_SIDE), interpolation=cv2.INTER_AREA))
    return str(imagehash.dhash(image)), str(imagehash.phash(image))


def _check_name(picture: Picture) -> None:
    below_link = picture.source.parts[-max(picture.path.count("/") - 1, 1) :]
    if not all(map(is_utf8, below_link)):
        raise ImageError("has a name that is not UTF-8; rename the file (or its folder)", "name_not_utf8")
    if picture.combination or not picture.named:
        return
    base = os.path.basename(picture.path)
    shown = combination_kcodes(base.split("_")[0]) or (kcode_of_name(base),)
    if shown not in ((picture.kcode,), (None,)):
        raise ImageError(
            f"is named after {' and '.join(map(str, shown))} but lies in the folder of {picture.kcode}; put it where "
            "it belongs",
            "wrong_folder",
        )


def _read_label(picture: Picture) -> tuple[Label | None, tuple[str, ...]]:
    if picture.label is None:
        return None, ()
    try:
        label = parse_label(picture.label.read_bytes())
    except DataError as error:
        return None, (f"{picture.label.name}: {error}",)
    except OSError as error:
        raise ImageError(
            f"its label {picture.label} cannot be read ({error.strerror or error})", Refusal.UNREADABLE
        ) from error
    if label.kcode is not None and label.kcode != picture.kcode:
        raise ImageError(
            f"lies in the folder of {picture.kcode}, its label {picture.label.name} says {label.kcode}; "
            "find out which is right",
            "label_of_another_drug",
        )
    return label, disagreements(label, picture.condition)


def _checked_box(picture: Picture, label: Label | None, width: int, height: int) -> tuple[Box | None, tuple[str, ...]]:
    """The box of a pill among others; a box around a single pill is checked and not needed further."""
    box = None if label is None else label.box
    inside = box is not None and box.lies_within(width, height)
    if picture.combination and not inside:
        shown = "it has none" if box is None else f"{tuple(box)} in {width}×{height} px"
        raise ImageError(f"shows several pills and needs the box of {picture.kcode} ({shown})", Refusal.BAD_BOX)
    if box is not None and not inside:
        return None, (f"the label's box {tuple(box)} is not within the picture of {width}×{height} px",)
    return (box if picture.combination else None), ()
