"""The reference client against the golden vectors, and its errors."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.clients.phone import FOLDER, PhoneClient
from pillsnap.core.client_contract import ClientContract, check_client_config
from pillsnap.core.errors import ImageError
from pillsnap.core.images import decode_rgb

GOLDEN = FOLDER / "golden"
VECTORS = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))["vectors"]
EACH_VECTOR = pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])


def levels(one, other):
    return np.abs(one.astype(np.int16) - other.astype(np.int16))


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


@EACH_VECTOR
def test_a_vector(vector):
    client, photo = vector["client"], (GOLDEN / vector["input"]).read_bytes()
    phone = PhoneClient(ClientContract(target_size=client["target_size"]))
    square = phone.square(photo)
    assert list(square.shape) == client["square_shape_HWC"]
    off = levels(square, decode_rgb((GOLDEN / client["square"]).read_bytes()))
    assert off.max() <= client["square_tolerance"]["max"]
    assert off.mean() <= client["square_tolerance"]["mean"]
    sent = decode_rgb(phone.prepare(photo))
    expected = decode_rgb((GOLDEN / client["jpeg"]).read_bytes())
    assert levels(sent, expected).mean() <= client["jpeg_tolerance"]["mean"]


def test_it_publishes_the_contract():
    assert check_client_config(PhoneClient().get_config()) == []


@given(st.integers(1, 80), st.integers(1, 80))
def test_every_shape_becomes_the_square(height, width):
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    sent = decode_rgb(PhoneClient(ClientContract(target_size=32)).prepare(png(image)))
    assert sent.shape == (32, 32, 3)


def test_the_jpeg_is_small_baseline_and_says_nothing_but_pixels():
    photo = (GOLDEN / "orientation_6.jpg").read_bytes()
    assert b"Exif" in photo
    sent = PhoneClient().prepare(photo)
    assert b"Exif" not in sent
    frame = sent.index(b"\xff\xc0")
    assert [sent[frame + 11 + 3 * component] for component in range(3)] == [0x22, 0x11, 0x11], "4:2:0"
    assert PhoneClient().prepare(photo) == sent


def test_the_quality_is_applied():
    photo = (GOLDEN / "noise.png").read_bytes()
    sizes = [len(PhoneClient(ClientContract(target_size=64, jpeg_quality=q)).prepare(photo)) for q in (30, 85, 98)]
    assert sizes == sorted(set(sizes))


def test_what_is_no_photo_is_refused_by_its_name():
    with pytest.raises(ImageError, match=r"^IMG_1\.HEIC: "):
        PhoneClient().prepare(b"no picture at all", "IMG_1.HEIC")
