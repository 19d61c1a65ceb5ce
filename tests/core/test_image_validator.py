import runpy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from pillsnap.core.errors import ImageError
from pillsnap.core.image_codes import Refusal, Remark
from pillsnap.core.image_validator import MAX_UPLOAD_BYTES, ImageValidator
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("image_samples.py"))))
SAMPLES = made.make_samples()
LARGE = cv2.resize(made.gradient(), (640, 512))
LARGE[100:400, 200:500] = 255 - LARGE[100:400, 200:500]  # something with edges
NOISE = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)


def half_of(jpeg):
    """Cut in the middle of its pixel data and closed, as tools that repair pictures do."""
    return jpeg[: len(jpeg) // 2] + b"\xff\xd9"


def warned(data, name=None):
    return {finding.code for finding in ImageValidator().validate(data, name).warnings}


def refused(data):
    result = ImageValidator().validate(data)
    assert result.ok == (not result.refusals)
    return {finding.code for finding in result.refusals}


def test_a_good_photo():
    data = made.encode("JPEG", LARGE)
    result = ImageValidator().validate(data, "IMG_0001.JPG")
    assert result.ok
    assert (result.format, result.mode, result.width, result.height) == ("jpeg", "rgb", 640, 512)
    assert result.size_kb == pytest.approx(len(data) / 1024, abs=0.001)
    assert result.warnings == result.refusals == ()
    with pytest.raises(ValidationError):
        result.ok = False


@pytest.mark.parametrize(
    ("code", "data", "name"),
    [
        ("small_side", made.encode("JPEG", LARGE[:511]), None),
        ("not_jpeg_or_png", made.encode("WEBP", LARGE), None),
        ("name_differs", made.encode("JPEG", LARGE), "photo.heic"),
        ("name_differs", made.encode("PNG", LARGE), "photo.jpg"),
        ("alpha", made.encode("PNG", np.dstack([LARGE, LARGE[:, :, :1]])), None),
        ("animated", made.encode("PNG", LARGE, save_all=True, append_images=[made.Image.fromarray(255 - LARGE)]), None),
        ("cmyk", made.encode("JPEG", made.Image.fromarray(LARGE).convert("CMYK")), None),
        ("more_than_8_bits", made.sixteen_bits(LARGE), None),
        ("exif_orientation", made.encode("JPEG", LARGE, exif=made.exif(6)), None),
        ("damaged", half_of(made.encode("JPEG", LARGE)), None),
        ("too_dark", made.encode("JPEG", LARGE // 8), None),
        ("too_bright", made.encode("JPEG", 250 - LARGE // 16), None),
        ("blank", made.encode("JPEG", LARGE // 32 + 100), None),
        ("blurred", made.encode("JPEG", cv2.GaussianBlur(LARGE, (0, 0), 20)), None),
        ("noise", made.encode("JPEG", NOISE), None),
    ],
)
def test_each_warning(code, data, name):
    assert warned(data, name) == {code}
    assert ImageValidator().validate(data, name).ok
    assert ImageValidator().pass_through(data, name) is data


def test_every_warning_has_its_test():
    mark = next(mark for mark in test_each_warning.pytestmark if mark.name == "parametrize")
    assert {case[0] for case in mark.args[1]} == {str(code) for code in Remark}


@pytest.mark.parametrize("name", [None, "", "photo", "photo.JPEG", "a.b/photo.jfif", ".jpg"])
def test_a_name_that_fits_or_says_nothing(name):
    assert warned(made.encode("JPEG", LARGE), name) == set()


def test_the_size_is_that_of_the_upright_picture():
    result = ImageValidator().validate(made.encode("JPEG", LARGE, exif=made.exif(8)))
    assert (result.width, result.height) == (512, 640)


def test_ten_mebibytes_pass_and_one_byte_more_does_not():
    photo = made.encode("JPEG", LARGE)
    fits = photo + bytes(MAX_UPLOAD_BYTES - len(photo))  # as if a film followed
    assert ImageValidator().validate(fits).ok
    assert refused(fits + b"\0") == {"too_many_bytes"}


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("empty", b""),
        ("unsupported_format", made.encode("GIF")),
        ("unsupported_format", b"hello"),
        ("heic", b"\0\0\0\x18ftypheic" + bytes(40)),
        ("rare_jpeg", SAMPLES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c")),
        ("no_pixel_data", SAMPLES["jpeg"][: SAMPLES["jpeg"].index(b"\xff\xda") + 14] + b"\xff\xd9"),
        ("truncated", SAMPLES["jpeg"][:-40]),
        ("truncated", SAMPLES["webp"][:-4]),
        ("no_pixels", made.png([made.png_header(0, 5), (b"IEND", b"")])),
        ("too_many_pixels", made.png([made.png_header(60_000, 60_000), (b"IEND", b"")])),
        ("undecodable", made.png([made.png_header(40, 40), (b"IDAT", b"none"), (b"IEND", b"")])),
        ("undecodable", SAMPLES["webp lossless"][:26] + b"\xff" * (len(SAMPLES["webp lossless"]) - 26)),
    ],
)
def test_each_refusal(code, data):
    assert refused(data) == {code}
    with pytest.raises(ImageError, match=r"^cat\.jpg: ") as error:
        ImageValidator().pass_through(data, "cat.jpg")
    assert error.value.code == code


def test_a_refused_photo_is_described_as_far_as_it_is_known():
    result = ImageValidator().validate(SAMPLES["jpeg"][:-2])
    assert (result.ok, result.format, result.width) == (False, "jpeg", 56)


@pytest.mark.parametrize("kind", SAMPLES)
def test_what_is_passed_on_is_what_the_server_can_prepare(kind):
    """Both ends: the BFF lets through what the inference server takes."""
    data = SAMPLES[kind]
    assert ImageValidator().pass_through(data) is data
    assert InferencePreprocessor(PreprocessingSpec(target_size=16)).prepare_for_model(data).shape == (1, 16, 16, 3)


def test_the_result_is_plain_json():
    result = ImageValidator().validate(SAMPLES["webp"], "x.png")
    assert type(result).model_validate_json(result.model_dump_json()) == result
    assert [type(finding["code"]) for finding in result.model_dump()["warnings"]] == [str] * 4


def test_the_config_lists_every_code():
    config = ImageValidator().get_config()
    assert config["version"] == "1.2"
    assert config["refuse_below_side_px"] == 32
    assert config["max_bytes"] == 10 * 2**20
    assert config["warn_below_side_px"] == 512
    assert set(config["warnings"]) == {str(code) for code in Remark}
    assert set(config["refusals"]) == {str(code) for code in Refusal}
    assert config["never_sure"] == ["damaged", "too_dark", "too_bright", "blank", "blurred", "noise"]
    assert config["quality_limits"]["dark_below"] == 48


@pytest.mark.parametrize(("side", "codes"), [(31, ["too_small"]), (32, [])])
def test_what_the_server_refuses_is_refused_here(side, codes):
    data = made.encode("JPEG", LARGE[100 : 100 + side, 150:250])
    result = ImageValidator().validate(data)
    assert [finding.code for finding in result.refusals] == codes
    assert [finding.code for finding in result.warnings] == ["small_side"]
