"""The part of a picture that shows the pill, where the whole picture shows more than that.

Legend: H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.errors import ImageError

MARGIN = 0.1
"""Room on each side of the pill, as a share of the box's longer side; as close as a phone photo is framed."""


class Box(NamedTuple):
    """A rectangle in pixels of the upright picture; x and y are its upper left corner."""

    x: int
    y: int
    width: int
    height: int

    def lies_within(self, width: int, height: int) -> bool:
        """The box has an area and no part of it is outside of a picture of this size."""
        return (
            self.width > 0
            and self.height > 0
            and self.x >= 0
            and self.y >= 0
            and self.x + self.width <= width
            and self.y + self.height <= height
        )


BOX_COLUMNS = tuple(f"box_{name}" for name in Box._fields)
"""Columns of a manifest's rows that hold a box; null in all of them where there is none."""


def box_of_row(row: Mapping[str, Any]) -> Box | None:
    """The box of a manifest's row, or None where the whole picture counts."""
    sides = [row[name] for name in BOX_COLUMNS]
    return None if sides[0] is None else Box(*sides)


def crop_to_box(image_HWC_u8: NDArray[np.uint8], box: Box, margin: float = MARGIN) -> NDArray[np.uint8]:
    """A square view around the box, moved (and at last made smaller) so that it stays in the picture.

    Raises:
        ImageError: the box is not within the picture.
    """
    height, width = image_HWC_u8.shape[:2]
    if not box.lies_within(width, height):
        raise ImageError(f"the pill's box {tuple(box)} is not within the picture of {width}×{height} px", "bad_box")
    longer = max(box.width, box.height)
    side = min(longer + 2 * round(margin * longer), width, height)
    left = min(max(box.x + (box.width - side) // 2, 0), width - side)
    top = min(max(box.y + (box.height - side) // 2, 0), height - side)
    return image_HWC_u8[top : top + side, left : left + side]
