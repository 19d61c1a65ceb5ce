"""The pure functions of the browser client in Node.js, against NumPy and OpenCV."""

from __future__ import annotations

import base64
import io
import json
import runpy
import struct
import subprocess
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from pillsnap.clients.phone import FOLDER
from pillsnap.core.client_contract import ClientContract, check_client_config

SIDES_AND_SIZES = [(1, 16), (2, 17), (5, 64), (16, 16), (31, 32), (100, 37), (257, 64), (64, 257), (600, 20)]
RULE = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_vectors.py"))


def text(data):
    return base64.b64encode(bytes(data)).decode()


def noise(side):
    return np.random.default_rng(side).integers(0, 256, (side, side, 4), np.uint8)


@pytest.fixture(scope="module")
def ask(node):
    """Answers of the client's functions to a list of jobs, from one start of Node.js."""

    def run(*jobs):
        script = Path(__file__).with_name("pure_functions.mjs")
        done = subprocess.run(
            [node, str(script), str(FOLDER / "pillsnap_client.js")],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_published_config_is_the_contract(ask):
    assert check_client_config(ask({"do": "config"})[0]) == []


def test_the_square_of_every_shape(ask):
    shapes = [(w, h) for w in (1, 2, 3, 8, 9, 4000) for h in (1, 2, 5, 8, 3000)]
    answers = ask(*({"do": "crop", "width": w, "height": h} for w, h in shapes))
    for (width, height), answer in zip(shapes, answers, strict=True):
        side = min(width, height)
        assert answer == {"left": (width - side) // 2, "top": (height - side) // 2, "side": side}


def test_resizing_is_the_rule_of_the_contract_and_one_level_from_opencv(ask):
    jobs = [{"do": "resize", "rgba": text(noise(side)), "side": side, "size": size} for side, size in SIDES_AND_SIZES]
    for (side, size), answer in zip(SIDES_AND_SIZES, ask(*jobs), strict=True):
        result = np.frombuffer(base64.b64decode(answer), np.uint8).reshape(size, size, 4)
        rgb = np.ascontiguousarray(noise(side)[..., :3])
        np.testing.assert_array_equal(result[..., :3], RULE["resize_by_the_rule"](rgb, size), f"{side} to {size}")
        assert (result[..., 3] == 255).all()
        opencv = cv2.resize(rgb, (size, size), interpolation=cv2.INTER_LINEAR)
        assert np.abs(result[..., :3].astype(int) - opencv).max() <= 1, f"{side} to {size}"


def test_bands_give_what_the_whole_gives(ask):
    pairs = [(side, size, rows) for side, size in SIDES_AND_SIZES for rows in (1, 7, 1000)]
    whole = ask(*({"do": "resize", "rgba": text(noise(a)), "side": a, "size": b} for a, b, _ in pairs))
    bands = ask(*({"do": "bands", "rgba": text(noise(a)), "side": a, "size": b, "rows": r} for a, b, r in pairs))
    assert whole == bands


def test_pixels_of_another_number_are_refused(ask):
    answer = ask({"do": "refuse", "rgba": text(bytes(15)), "side": 2, "size": 16})[0]
    assert answer == "RangeError: expected 2 × 2 RGBA pixels (16 bytes), got 15 bytes"


def test_a_cut_jpeg_is_seen_also_with_a_thumbnail_in_its_header(ask):
    jpeg = cv2.imencode(".jpg", noise(64)[..., :3])[1].tobytes()
    with_thumbnail = RULE["with_segment"](jpeg, 0xE1, b"Exif\x00\x00" + jpeg[:500] + b"\xff\xd9")
    png = cv2.imencode(".png", noise(8))[1].tobytes()
    files = [jpeg, jpeg + b"film", with_thumbnail, png, b"", jpeg[:2] + b"\xff" + jpeg[2:]]
    cut = [jpeg[:-2], jpeg[:300], jpeg[:3], with_thumbnail[:-2]]
    answers = ask(*({"do": "cut", "file": text(file)} for file in files + cut))
    assert answers == [False] * len(files) + [True] * len(cut)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_cut_png_or_webp_is_seen(ask, suffix):
    file = cv2.imencode(suffix, noise(64))[1].tobytes()
    files = [file, file + b"film"]
    cut = [file[:-1], file[: len(file) // 2], file[:17]]
    answers = ask(*({"do": "cut", "file": text(file)} for file in files + cut))
    assert answers == [False] * len(files) + [True] * len(cut)


def pillow(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_colour_profile_is_taken_out_and_nothing_else(ask, kind):
    image = Image.fromarray(noise(64)[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: it has to stay
    options = {"lossless": True} if kind == "WEBP" else {}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    marked = pillow(image, kind, icc_profile=profile, exif=exif, **options)
    assert Image.open(io.BytesIO(marked)).info["icc_profile"]
    plain = pillow(image, kind, exif=exif, **options)
    answers = ask(*({"do": "profile", "file": text(file)} for file in (marked, plain)))
    assert [base64.b64decode(answer) for answer in answers] == [plain, plain]


def test_the_colours_that_a_png_tells_are_taken_out(ask):
    png = cv2.imencode(".png", noise(8))[1].tobytes()
    gamma = struct.pack(">I4sI", 4, b"gAMA", 45455)
    marked = png[:33] + gamma + struct.pack(">I", zlib.crc32(gamma[4:])) + png[33:]
    answers = ask({"do": "profile", "file": text(marked)}, {"do": "profile", "file": text(b"GIF89a of no interest")})
    assert [base64.b64decode(answer) for answer in answers] == [png, b"GIF89a of no interest"]


def test_metadata_is_taken_out_and_the_pixels_stay(ask):
    jpeg = cv2.imencode(".jpg", noise(64)[..., :3])[1].tobytes()
    marked = jpeg
    for marker in (0xFE, 0xED, 0xE2, 0xE1):
        marked = RULE["with_segment"](marked, marker, b"where and when")
    answers = ask(*({"do": "strip", "file": text(file)} for file in (marked, jpeg)))
    assert [base64.b64decode(answer) for answer in answers] == [jpeg, jpeg]


def test_the_config_in_the_file_is_written_as_the_contract_writes_it():
    """Also where there is no Node.js: the values stand in the source as JSON does."""
    source = (FOLDER / "pillsnap_client.js").read_text(encoding="utf-8")
    for key, value in ClientContract().get_config().items():
        assert f"  {key}: {json.dumps(value)},\n" in source
