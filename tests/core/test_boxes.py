import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.boxes import Box, crop_to_box
from pillsnap.core.errors import ImageError


def numbered(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)


@given(st.data())
def test_the_crop_is_a_square_that_holds_the_box_wherever_the_picture_has_room(data):
    width, height = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = Box(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    crop = crop_to_box(numbered(height, width), box)
    assert crop.shape[0] == crop.shape[1] <= min(width, height)
    if max(box.width, box.height) <= min(width, height):
        top, left = int(crop[0, 0, 0]), int(crop[0, 0, 1])
        assert left <= box.x
        assert box.x + box.width <= left + crop.shape[1]
        assert top <= box.y
        assert box.y + box.height <= top + crop.shape[0]


def test_the_pill_is_in_the_middle_with_a_margin():
    crop = crop_to_box(numbered(100, 100), Box(40, 30, 20, 10))
    assert crop.shape == (24, 24, 3)
    assert crop[0, 0].tolist() == [23, 38, 0]


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(0, 0, 0, 5), Box(60, 0, 50, 5), Box(0, 99, 5, 2)])
def test_a_box_out_of_the_picture_is_an_error(box):
    with pytest.raises(ImageError, match="not within the picture") as refused:
        crop_to_box(numbered(100, 100), box)
    assert refused.value.code == "bad_box"
