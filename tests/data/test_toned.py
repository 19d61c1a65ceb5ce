from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.image_quality import small_grey
from pillsnap.data.capture_groups import capture_groups
from pillsnap.data.groups import TONED_GREY_LEVELS, near_duplicate_links
from pillsnap.data.reading import perceptual_hashes
from pillsnap.data.toned import toned_difference


def photo(seed, angle_deg=20, grey=120):
    """A lit surface with a pill off its middle."""
    coarse = np.random.default_rng(seed).integers(60, 200, (5, 5), np.uint8)
    image = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
    cv2.ellipse(image, (96, 150), (50, 20), angle_deg, 0, 360, grey, -1)
    return image


def curve(values):
    return lambda image: cv2.LUT(image, np.clip(values, 0, 255).round().astype(np.uint8))


LEVELS = np.arange(256)
EDITS = {
    "brightness": curve(LEVELS + 12.0),
    "gamma": curve(255 * (LEVELS / 255) ** 0.8),
    "contrast": curve(LEVELS * 1.1 - 12),
}


def usable(shots, image, file, digest):
    dhash, phash = perceptual_hashes(small_grey(image))
    return replace(shots.usable(file), sha256=digest * 64, dhash=dhash, phash=phash, thumb=thumb(image).tobytes())


def thumb(image):
    return cv2.resize(small_grey(image), (16, 16), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("before", [{}, {"a" * 64: "test"}], ids=["fresh", "growing"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("name", ["IMG_7.jpg", "K-000059_2_1_0_0_90_045_200.jpg"])
def test_a_copy_of_another_tone_follows_its_original(shots, edit, name, before):
    original = usable(shots, photo(1), shots.real(0), "a")
    saved = cv2.imdecode(cv2.imencode(".jpg", edit(photo(1)), [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_GRAYSCALE)
    pictures = [original, usable(shots, saved, name, "b"), usable(shots, photo(2), shots.real(1), "c")]
    groups = capture_groups(pictures, near_duplicate_links(pictures), before).groups
    assert groups[pictures[1].path] == groups[original.path] != groups[pictures[2].path]


@pytest.mark.parametrize("edit", [lambda image: image, *EDITS.values()], ids=["none", *EDITS.keys()])
@pytest.mark.parametrize("turned_deg", [45, 90, 135])
def test_the_next_rotations_of_another_sitting_are_no_copies(shots, turned_deg, edit):
    """Of a pill that stands out, in steps of the capture protocol, whatever the light."""
    one, other = photo(1, 20, grey=15), edit(photo(1, 20 + turned_deg, grey=15))
    assert toned_difference(thumb(one).reshape(1, -1), thumb(other).reshape(1, -1)) > TONED_GREY_LEVELS
    pictures = [usable(shots, one, shots.real(0), "a"), usable(shots, other, shots.real(1), "b")]
    assert not len(near_duplicate_links(pictures))


def test_a_flat_picture_is_no_copy_of_anything():
    flat, lit = np.full((1, 256), 90, np.uint8), thumb(photo(3)).reshape(1, -1)
    assert np.isinf(toned_difference(flat, lit)).all()
    assert np.isinf(toned_difference(flat, flat)).all()


def test_the_negative_is_no_copy():
    lit = thumb(photo(3)).reshape(1, -1)
    assert np.isinf(toned_difference(lit, 255 - lit)).all()


@given(st.integers(0, 99), st.floats(0.8, 1.2), st.floats(-10, 10))
def test_no_brightness_and_no_contrast_makes_a_difference(seed, gain, shift):
    lit = thumb(photo(seed)).reshape(1, -1)
    other = np.clip(lit * gain + shift, 0, 255).round().astype(np.uint8)
    clipped = ((other == 0) | (other == 255)).any()
    assert clipped or toned_difference(lit, other) <= 0.5
