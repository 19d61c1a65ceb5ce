"""The golden vectors themselves: whole, drawn as the code draws them, and what the server makes of them."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pillsnap.clients.phone import FOLDER
from pillsnap.core.client_contract import ClientContract, check_client_config
from pillsnap.core.files import sha256_bytes
from pillsnap.core.images import decode_rgb
from pillsnap.core.preprocessing import InferencePreprocessor, UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec

GOLDEN = FOLDER / "golden"
DOCUMENT = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))
EACH_VECTOR = pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=[v["name"] for v in DOCUMENT["vectors"]])
MAKE = runpy.run_path(str(Path(__file__).with_name("make_vectors.py")))


def levels(one, other):
    return np.abs(one.astype(np.int16) - other.astype(np.int16))


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """The vectors, drawn anew into another folder."""
    folder = tmp_path_factory.mktemp("golden")
    return folder, MAKE["write_vectors"](folder)


def test_they_belong_to_the_contract_of_today():
    assert check_client_config(DOCUMENT["contract"], ClientContract()) == []


def test_every_file_is_named_and_every_name_has_its_file():
    named = {"vectors.json"}
    for vector in DOCUMENT["vectors"]:
        named |= {vector["input"], vector["client"]["square"], vector["client"]["jpeg"]}
        named.add(vector["server"]["model_input"])
    there = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file()}
    assert there == named
    assert sum((GOLDEN / name).stat().st_size for name in there) < 3_000_000


@EACH_VECTOR
def test_the_photo_is_the_one_that_was_recorded(vector):
    assert sha256_bytes((GOLDEN / vector["input"]).read_bytes()) == vector["input_sha256"]


@EACH_VECTOR
def test_drawing_again_gives_the_same(vector, again):
    """Pixels, not bytes: another encoder may pack them otherwise. JPEG may differ by a level between libraries."""
    folder, document = again
    fresh = next(entry for entry in document["vectors"] if entry["name"] == vector["name"])
    allowed = 0 if vector["input"].endswith(".png") else 2
    for name in (vector["input"], vector["client"]["square"], vector["client"]["jpeg"]):
        one, other = (decode_rgb((place / name).read_bytes()) for place in (GOLDEN, folder))
        assert levels(one, other).max() <= (2 if name.endswith(".jpg") else allowed), name
    volatile = {"input_sha256", "server"}
    assert {k: v for k, v in fresh.items() if k not in volatile} == {
        k: v for k, v in vector.items() if k not in volatile
    }


@EACH_VECTOR
def test_the_server_makes_of_it_what_was_recorded(vector):
    """Both callers: pixels as in training, bytes as in serving."""
    server, photo = vector["server"], (GOLDEN / vector["input"]).read_bytes()
    spec = PreprocessingSpec.model_validate(server["preprocessing"])
    expected = decode_rgb((GOLDEN / server["model_input"]).read_bytes())
    image = decode_rgb(photo)
    of_pixels = UnifiedPreprocessor(spec).to_model_input(image)
    of_bytes = InferencePreprocessor(spec).prepare_for_model(photo)[0]
    for made in (of_pixels, of_bytes):
        off = levels(made, expected)
        assert off.max() <= server["model_input_tolerance"]["max"]
        assert off.mean() <= server["model_input_tolerance"]["mean"]
    normalized = UnifiedPreprocessor(spec).process(image)
    for channel, row, column, value in server["normalized_samples_CHW"]:
        assert normalized[channel, row, column] == pytest.approx(value, abs=server["normalized_tolerance"])


@pytest.mark.parametrize("number", range(2, 9))
def test_every_orientation_ends_upright(number):
    """Against the picture that was drawn, not against any decoder."""
    upright = MAKE["square_by_the_rule"](MAKE["smooth_scene"](80, 113), 64)
    expected = decode_rgb((GOLDEN / f"expected/orientation_{number}.square.png").read_bytes())
    assert levels(upright, expected).max() <= 6


@EACH_VECTOR
def test_the_usual_mistakes_are_far_outside_the_tolerances(vector):
    client = vector["client"]
    square = decode_rgb((GOLDEN / client["square"]).read_bytes())
    mistakes = [square[:, ::-1], square[::-1], square.transpose(1, 0, 2)]
    if vector["name"] != "gray":
        mistakes.append(square[..., ::-1])
    for mistake in mistakes:
        off = levels(square, mistake)
        assert off.max() > 5 * client["square_tolerance"]["max"]
        assert off.mean() > 1.5 * client["jpeg_tolerance"]["mean"]


def test_whoever_applies_the_colour_profile_fails():
    """The profile is a real one: Pillow's colour management reads it and gives other pixels."""
    vector = next(entry for entry in DOCUMENT["vectors"] if entry["name"] == "wide_gamut")
    with Image.open(GOLDEN / vector["input"]) as photo:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(photo.info["icc_profile"]))
        stored = photo.convert("RGB")
        converted = ImageCms.profileToProfile(stored, profile, ImageCms.createProfile("sRGB"))
    off = levels(np.asarray(stored), np.asarray(converted))
    assert off.mean() > 20 * vector["client"]["square_tolerance"]["mean"]
