"""Labels of the studio data set (COCO-like JSON, one a pill): which drug it is, and where the pill lies.

Pure: takes the text of a label. What a label says about the camera is believed less than the file's name: in a public
copy the elevations disagreed in 1,000 of 5,612 labels, and the names were right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pillsnap.core.boxes import Box
from pillsnap.core.catalog import edi_codes, normalize_kcode
from pillsnap.core.errors import CatalogError, DataError
from pillsnap.data.names import Condition


@dataclass(frozen=True)
class Label:
    """What a label file says."""

    kcode: str | None
    """None where it names no drug."""
    box: Box | None
    """None where it has none, or several."""
    elevation: int | None
    rotation: int | None
    edi_codes: tuple[str, ...] = ()
    """Insurance codes: the field can hold several, separated by commas. Empty where it holds anything else."""


def parse_label(text: str | bytes) -> Label:
    """Read a label.

    Raises:
        DataError: not JSON, or not an object with ``images`` and ``annotations``.
    """
    try:
        document = json.loads(text)
        image = document["images"][0]
        annotations = document.get("annotations", [])
        boxes = [annotation["bbox"] for annotation in annotations if annotation.get("bbox")]
        kcode = _kcode(image)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"is not a label of the studio data set ({type(error).__name__}: {error})") from error
    return Label(
        kcode,
        _box(boxes[0]) if len(boxes) == 1 else None,
        _whole(image.get("camera_la")),
        _whole(image.get("camera_lo")),
        _edi_codes(image.get("di_edi_code")),
    )


def disagreements(label: Label, condition: Condition | None) -> tuple[str, ...]:
    """Where a label contradicts the file's name (which wins), in words."""
    if condition is None:
        return ()
    pairs = (
        ("elevation", label.elevation, condition.elevation),
        ("rotation", label.rotation, condition.rotation),
    )
    return tuple(
        f"the label says {name} {said}, the name {named}" for name, said, named in pairs if said not in (None, named)
    )


def _kcode(image: dict[str, Any]) -> str | None:
    for key in ("drug_N", "dl_mapping_code"):
        if image.get(key):
            try:
                return normalize_kcode(str(image[key]))
            except CatalogError:
                continue  # a combination's code, or another numbering
    return None


def _edi_codes(value: Any) -> tuple[str, ...]:
    try:
        return edi_codes(value)
    except CatalogError:
        return ()


def _box(values: Any) -> Box | None:
    """The corners are rounded, not the sides: a box that ends at the picture's edge still does."""
    try:
        x, y, width, height = (float(value) for value in values)
        left, top, right, bottom = round(x), round(y), round(x + width), round(y + height)
    except (TypeError, ValueError, OverflowError):
        return None
    return Box(left, top, right - left, bottom - top)


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
