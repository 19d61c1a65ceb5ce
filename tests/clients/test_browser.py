"""The browser client in Chromium, Firefox and WebKit: every vector, large photos, and files that are no photos."""

from __future__ import annotations

import io
import json
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from pillsnap.clients.phone import FOLDER, PhoneClient
from pillsnap.core.client_contract import ClientContract, check_client_config
from pillsnap.core.images import decode_rgb

GOLDEN = FOLDER / "golden"
VECTORS = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))["vectors"]
EACH_VECTOR = pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])


def picture(height, width):
    """Smooth colours with a sharp pattern on them."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([255 * x // width, 255 * y // height, 255 * (x + y) // (width + height)], axis=-1)
    image[(y // 97 + x // 89) % 3 == 0] //= 2
    return image.astype(np.uint8)


def encoded(image, suffix=".jpg"):
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


def turned(image, kind, orientation, **options):
    """Stored with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, exif=exif, **options)
    return stream.getvalue()


PHOTO = encoded(picture(90, 120))
SEE_THROUGH = np.dstack([picture(700, 900), np.full((700, 900), 3, np.uint8)])
PHOTOS = {
    "large": (encoded(picture(3000, 4000)), 512),
    "large_odd": (encoded(picture(2749, 2501)), 96),
    "large_see_through": (cv2.imencode(".png", SEE_THROUGH[..., [2, 1, 0, 3]])[1].tobytes(), 128),
    "webp": (encoded(picture(90, 120), ".webp"), 64),
    "png_turned": (turned(picture(60, 91), "PNG", 6), 64),
    "webp_turned": (turned(picture(60, 91), "WEBP", 7, lossless=True), 64),
    "png_mirrored": (turned(picture(91, 60), "PNG", 2), 64),
    "see_through_turned": (turned(SEE_THROUGH[:91, :60], "PNG", 8), 64),
    "with_a_film_behind": (PHOTO + b"\x00\x00\x00\x18ftypmp42" + bytes(5000), 64),
}
PLAIN_PNG = cv2.imencode(".png", picture(90, 120)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
DAMAGED_PNG = PLAIN_PNG[:9000] + bytes([PLAIN_PNG[9000] ^ 255]) + PLAIN_PNG[9001:]
NO_PHOTOS = {
    "empty": (b"", 64),
    "text": (b"this is not a picture", 64),
    "cut_jpeg": (PHOTO[: len(PHOTO) * 97 // 100], 64),
    "cut_png": (encoded(picture(90, 120), ".png")[:-400], 64),
    "cut_webp": (encoded(picture(90, 120), ".webp")[:-400], 64),
    "damaged_png": (DAMAGED_PNG, 64),
    "damaged_jpeg": (PHOTO.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x63"), 64),
    "no_pixels_jpeg": (PHOTO[: PHOTO.index(b"\xff\xda") + 14] + b"\xff\xd9", 64),
    "deep_jpeg": (PHOTO.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), 64),
    "heic": (b"\x00\x00\x00\x18ftypheic" + bytes(500), 64),
    "bmp": (encoded(picture(90, 120), ".bmp"), 64),
    "gif": (b"GIF89a" + bytes(500), 64),
}


SEEN_THROUGH = ("transparent", "large_see_through", "see_through_turned")


@pytest.fixture(scope="module")
def results(browser, browser_tools):
    return browser_tools.run_in_browser(browser, PHOTOS | NO_PHOTOS)


def square_of(results, browser, name):
    """The pixels; where a browser has no WebGL (on a screen without graphics), it has to say so."""
    if name in SEEN_THROUGH and browser.name != "chromium" and f"{name}/error" in results.posted:
        assert results.error(name)["code"] == "unsupported_browser"
        pytest.skip(f"{browser.name} has no WebGL here, and refuses the picture")
    return results.square(name)


def difference(one, other):
    levels = np.abs(one.astype(np.int16) - other.astype(np.int16))
    return levels.max(), levels.mean()


def segments(jpeg):
    """Marker and content of every segment up to the pixels."""
    position, found = 2, []
    while jpeg[position + 1] != 0xDA:
        marker, length = struct.unpack(">xBH", jpeg[position : position + 4])
        found.append((marker, jpeg[position + 4 : position + 2 + length]))
        position += 2 + length
    return found


@EACH_VECTOR
def test_a_vector_before_the_jpeg(results, browser, vector):
    client = vector["client"]
    expected = decode_rgb((GOLDEN / client["square"]).read_bytes())
    square = square_of(results, browser, vector["name"])
    assert (square[..., 3] == 255).all()
    largest, mean = difference(square[..., :3], expected)
    assert largest <= client["square_tolerance"]["max"]
    assert mean <= client["square_tolerance"]["mean"]


@EACH_VECTOR
def test_the_jpeg_of_a_vector(results, browser, vector):
    square_of(results, browser, vector["name"])
    sent = results.jpeg(vector["name"])
    expected = decode_rgb((GOLDEN / vector["client"]["jpeg"]).read_bytes())
    _, mean = difference(decode_rgb(sent), expected)
    assert mean <= vector["client"]["jpeg_tolerance"]["mean"]


def test_it_publishes_the_contract(results):
    assert check_client_config(results.config()) == []


def test_the_jpeg_has_the_tables_and_the_sampling_of_the_contract_and_no_metadata(results):
    ours = segments(PhoneClient().encode(picture(512, 512)))
    theirs = segments(results.jpeg("large"))

    def quantisation(found):
        return b"".join(content for marker, content in found if marker == 0xDB)

    assert quantisation(theirs) == quantisation(ours)
    frames = [content for marker, content in theirs if marker == 0xC0]
    assert len(frames) == 1, "not a baseline JPEG"
    height, width, components = struct.unpack(">xHHB", frames[0][:6])
    assert (height, width, components) == (512, 512, 3)
    assert [frames[0][6 + 3 * index + 1] for index in range(3)] == [0x22, 0x11, 0x11], "not 4:2:0"
    assert not [marker for marker, _ in theirs if 0xE1 <= marker <= 0xEF], "metadata leaves the phone"


@pytest.mark.parametrize("name", PHOTOS)
def test_large_and_unusual_photos_are_those_of_the_reference(results, browser, name):
    photo, size = PHOTOS[name]
    expected = PhoneClient(ClientContract(target_size=size)).square(photo)
    largest, mean = difference(square_of(results, browser, name)[..., :3], expected)
    assert largest <= 5
    assert mean <= 0.5


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("empty", "empty"),
        ("text", "unsupported_format"),
        ("cut_jpeg", "truncated"),
        ("cut_png", "truncated"),
        ("cut_webp", "truncated"),
        ("damaged_png", "undecodable"),
        ("damaged_jpeg", "undecodable"),
        ("no_pixels_jpeg", "no_pixel_data"),
        ("deep_jpeg", "rare_jpeg"),
        ("heic", "heic"),
        ("bmp", "unsupported_format"),
        ("gif", "unsupported_format"),
    ],
)
def test_what_is_no_photo_is_an_error_with_a_code(results, name, code):
    error = results.error(name)
    assert (error["type"], error["code"]) == ("PhotoError", code)
    assert len(error["message"]) > 20


def test_a_browser_that_disturbs_pixels_is_refused(browser, browser_tools):
    if browser.name != "firefox":
        pytest.skip("only Firefox does that when asked to")
    guarded = 'user_pref("privacy.resistFingerprinting", true);'
    results = browser_tools.run_in_browser(browser, {}, guarded)
    assert {results.error(vector["name"])["code"] for vector in VECTORS} == {"disturbed_pixels"}
