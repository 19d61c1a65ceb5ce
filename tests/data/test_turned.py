from dataclasses import replace

import cv2
import numpy as np
import pytest

from pillsnap.core.image_quality import small_grey
from pillsnap.data.capture_groups import capture_groups
from pillsnap.data.groups import COPY_GREY_LEVELS, near_duplicate_links
from pillsnap.data.reading import perceptual_hashes
from pillsnap.data.turned import turned_copy_links


def photo(seed):
    """A lit surface with a pill off its middle."""
    coarse = np.random.default_rng(seed).integers(60, 220, (5, 5), np.uint8)
    image = cv2.cvtColor(cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC), cv2.COLOR_GRAY2RGB)
    cv2.ellipse(image, (96, 150), (30, 14), 20, 0, 360, (200, 120, 90), -1)
    return image


def thumb(image):
    grey = small_grey(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    return cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA)


TURNS = {
    "a quarter": lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    "a half": lambda image: cv2.rotate(image, cv2.ROTATE_180),
    "three quarters": lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
    "mirrored": lambda image: image[:, ::-1],
    "mirrored and turned": lambda image: cv2.transpose(image),
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())
@pytest.mark.parametrize("name", ["IMG_7.jpg", "K-000059_2_1_0_0_90_045_200.jpg"])
def test_a_turned_copy_follows_its_original_whatever_its_name_says(shots, turn, name):
    def usable(image, file, digest):
        grey = small_grey(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        dhash, phash = perceptual_hashes(grey)
        thumb_bytes = thumb(image).tobytes()
        return replace(shots.usable(file), sha256=digest * 64, dhash=dhash, phash=phash, thumb=thumb_bytes)

    original = usable(photo(1), shots.real(0), "a")
    saved = cv2.imdecode(cv2.imencode(".jpg", turn(photo(1)), [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    copy, other = usable(saved, name, "b"), usable(photo(2), shots.real(1), "c")
    pictures = [original, copy, other]
    groups = capture_groups(pictures, near_duplicate_links(pictures), {"a" * 64: "test"}).groups
    assert groups[copy.path] == groups[original.path] != groups[other.path]


def test_upright_and_flat_pictures_are_left_to_the_hashes():
    flat, lit = np.full((16, 16), 90, np.uint8), thumb(photo(3))
    assert not len(turned_copy_links(np.stack([one.ravel() for one in (flat, flat, lit, lit)]), COPY_GREY_LEVELS))


def test_more_pictures_than_a_block(monkeypatch):
    monkeypatch.setattr("pillsnap.data.turned._BLOCK", 2)
    images = [thumb(photo(seed)) for seed in range(5)]
    stack = np.stack([one.ravel() for one in [*images, np.rot90(images[4])]])
    links = turned_copy_links(stack, COPY_GREY_LEVELS)
    assert {tuple(sorted(pair)) for pair in links.tolist()} == {(4, 5)}
