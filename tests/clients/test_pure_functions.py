"""The pure functions of the browser client in Node.js, against NumPy and OpenCV."""

from __future__ import annotations

import base64
import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pillsnap.clients.phone import FOLDER
from pillsnap.core.client_contract import ClientContract, check_client_config

SIDES_AND_SIZES = [(1, 16), (2, 17), (5, 64), (16, 16), (31, 32), (100, 37), (257, 64), (64, 257), (600, 20)]
RULE = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_vectors.py"))


def noise(side):
    return np.random.default_rng(side).integers(0, 256, (side, side, 4), np.uint8)


def test_the_published_config_is_the_contract(ask):
    assert check_client_config(ask({"do": "config"})[0]) == []


def test_the_square_of_every_shape(ask):
    shapes = [(w, h) for w in (1, 2, 3, 8, 9, 4000) for h in (1, 2, 5, 8, 3000)]
    answers = ask(*({"do": "crop", "width": w, "height": h} for w, h in shapes))
    for (width, height), answer in zip(shapes, answers, strict=True):
        side = min(width, height)
        assert answer == {"left": (width - side) // 2, "top": (height - side) // 2, "side": side}


def test_resizing_is_the_rule_of_the_contract_and_one_level_from_opencv(ask):
    jobs = [{"do": "resize", "rgba": noise(side), "side": side, "size": size} for side, size in SIDES_AND_SIZES]
    for (side, size), answer in zip(SIDES_AND_SIZES, ask(*jobs), strict=True):
        result = np.frombuffer(base64.b64decode(answer), np.uint8).reshape(size, size, 4)
        rgb = np.ascontiguousarray(noise(side)[..., :3])
        np.testing.assert_array_equal(result[..., :3], RULE["resize_by_the_rule"](rgb, size), f"{side} to {size}")
        assert (result[..., 3] == 255).all()
        opencv = cv2.resize(rgb, (size, size), interpolation=cv2.INTER_LINEAR)
        assert np.abs(result[..., :3].astype(int) - opencv).max() <= 1, f"{side} to {size}"


def test_bands_give_what_the_whole_gives(ask):
    pairs = [(side, size, rows) for side, size in SIDES_AND_SIZES for rows in (1, 7, 1000)]
    whole = ask(*({"do": "resize", "rgba": noise(a), "side": a, "size": b} for a, b, _ in pairs))
    bands = ask(*({"do": "bands", "rgba": noise(a), "side": a, "size": b, "rows": r} for a, b, r in pairs))
    assert whole == bands


def test_pixels_of_another_number_are_refused(ask):
    answer = ask({"do": "refuse", "rgba": bytes(15), "side": 2, "size": 16})[0]
    assert answer == "RangeError: expected 2 × 2 RGBA pixels (16 bytes), got 15 bytes"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_after_the_crop_is_turning_before_it(ask, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation

    def upright(stored):
        image = Image.fromarray(stored)
        image.info["exif"] = exif.tobytes()
        return np.asarray(ImageOps.exif_transpose(image))

    shapes = [(5, 8), (8, 5), (4, 7), (7, 4), (6, 6)]
    crops = ask(*({"do": "stored_crop", "width": w, "height": h, "orientation": orientation} for w, h in shapes))
    for (width, height), crop in zip(shapes, crops, strict=True):
        stored = np.random.default_rng(width).integers(0, 256, (height, width, 4), np.uint8)
        left, top, side = crop["left"], crop["top"], crop["side"]
        square = np.ascontiguousarray(stored[top : top + side, left : left + side])
        assert square.shape == (side, side, 4)
        answer = ask({"do": "turn", "rgba": square, "size": side, "orientation": orientation})[0]
        turned = np.frombuffer(base64.b64decode(answer), np.uint8).reshape(side, side, 4)
        seen = upright(stored)
        x, y = (seen.shape[1] - side) // 2, (seen.shape[0] - side) // 2
        np.testing.assert_array_equal(turned, seen[y : y + side, x : x + side])


def test_the_config_in_the_file_is_written_as_the_contract_writes_it():
    """Also where there is no Node.js: the values stand in the source as JSON does."""
    source = (FOLDER / "pillsnap_client.js").read_text(encoding="utf-8")
    for key, value in ClientContract().get_config().items():
        assert f"  {key}: {json.dumps(value)},\n" in source
