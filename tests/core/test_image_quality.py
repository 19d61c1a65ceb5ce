"""What nothing can be seen in, told from pictures of pills; by the same figures however large the picture is."""

import cv2
import numpy as np
import pytest

from pillsnap.core.image_quality import QualityLimits, doubts, judge, measure, small_grey
from pillsnap.core.images import Decoded

RNG = np.random.default_rng(0)


def pill(side=512, ground=(90, 120, 150), colour=(220, 225, 230)):
    """A pill of an eighth of the side, with an imprint, and a sensor's noise."""
    image = np.full((side, side, 3), ground, np.uint8)
    cv2.circle(image, (side // 2, side // 2), side // 16, colour, -1, cv2.LINE_AA)
    cv2.putText(image, "A", (side * 15 // 32, side * 17 // 32), 0, side / 500, ground, side // 200, cv2.LINE_AA)
    return np.clip(image + RNG.normal(0, 1, image.shape), 0, 255).astype(np.uint8)


def codes(image, whole=True):
    return [finding.code for finding in doubts(Decoded(image, whole))]


@pytest.mark.parametrize("image", [pill(), pill(ground=(5, 5, 5)), pill(ground=(250, 250, 250), colour=(200, 150, 90))])
def test_a_pill_that_can_be_seen_gives_no_doubt(image):
    assert codes(image) == []
    assert codes(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) == []


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.zeros((512, 512, 3), np.uint8), "too_dark"),
        (pill() // 8, "too_dark"),
        (np.full((512, 512, 3), 255, np.uint8), "too_bright"),
        (np.full((512, 512, 3), 128, np.uint8), "blank"),
        (cv2.GaussianBlur(pill(), (0, 0), 16), "blurred"),
        (RNG.integers(0, 256, (512, 512, 3), np.uint8), "noise"),
        (RNG.integers(0, 256, (64, 64, 3), np.uint8).repeat(4, 0).repeat(4, 1), None),
        (RNG.integers(0, 256, (128, 128, 3), np.uint8).repeat(4, 0).repeat(4, 1), "noise"),
        (np.clip(RNG.normal(128, 20, (512, 512, 3)), 0, 255).astype(np.uint8), "noise"),
    ],
)
def test_what_nothing_can_be_seen_in(image, code):
    assert codes(image) == ([code] if code else [])


def test_pixels_that_are_missing_are_a_doubt_of_their_own():
    assert codes(pill(), whole=False) == ["damaged"]
    assert codes(np.zeros((512, 512, 3), np.uint8), whole=False) == ["damaged", "too_dark"]


def test_the_noise_of_a_large_photo_does_not_make_it_look_sharp():
    """Halved, all its pixels count, as where the audit measures it."""
    grain = np.tile(RNG.normal(0.5, 1, (256, 256)), (9, 9))[:2049, :2300]
    image = cv2.cvtColor(cv2.resize(cv2.GaussianBlur(pill(), (0, 0), 16), (2300, 2049)), cv2.COLOR_RGB2GRAY)
    image = np.clip(image + grain, 0, 255).astype(np.uint8)
    assert codes(image) == ["blurred"]
    assert [finding.code for finding in judge(measure(small_grey(image)), QualityLimits())] == ["blurred"]
    assert codes(image[::4, ::4]) == []
