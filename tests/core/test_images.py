import io
import runpy
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pillsnap.core import images
from pillsnap.core.errors import ImageError
from pillsnap.core.image_header import read_header
from pillsnap.core.images import (
    MAX_BYTES,
    MAX_PIXELS,
    MAX_SCANS,
    decode_grey,
    decode_inspected,
    decode_rgb,
    inspect,
    read_image_bytes,
    reduction,
)

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("image_samples.py"))))
SAMPLES = made.make_samples()
gradient, encode = made.gradient, made.encode


def by_pil(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_channels_are_rgb(form):
    options = {"lossless": True} if form == "WEBP" else {"quality": 98} if form == "JPEG" else {}
    decoded = decode_rgb(encode(form, **options))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - gradient()).mean() < (2 if form == "JPEG" else 1e-9)


@pytest.mark.parametrize("kind", [kind for kind in SAMPLES if not kind.startswith("png grey 16")])
def test_every_kind_decodes_as_pil_decodes_it(kind):
    """The table in the module's docstring: PIL is the second opinion on all of it, the orientations too."""
    decoded, expected = decode_rgb(SAMPLES[kind]), by_pil(SAMPLES[kind])
    assert decoded.dtype == np.uint8
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= (1 if "cmyk" in kind or "ycck" in kind else 0)


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_orientation_is_applied_once(form):
    upright = decode_rgb(SAMPLES[f"{form} exif 1"])
    turned = decode_rgb(SAMPLES[f"{form} exif 6"])
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


def test_sixteen_bits_keep_the_upper_eight():
    np.testing.assert_array_equal(decode_rgb(SAMPLES["png 16 bits"]), gradient())
    grey = decode_rgb(SAMPLES["png grey 16 bits"])
    np.testing.assert_array_equal(grey, np.repeat(gradient()[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("kind", ["png rgba", "webp rgba lossless", "png rgb trns"])
def test_alpha_is_ignored(kind):
    """Where the picture is quite transparent the stored colour still counts."""
    visible = np.abs(decode_rgb(SAMPLES[kind]).astype(int) - gradient()).max(axis=2)[:, 1:]
    assert visible.max() == 0


def test_animations_give_their_first_picture():
    for kind in ("png animated", "png animated default", "webp animated"):
        np.testing.assert_array_equal(decode_rgb(SAMPLES[kind]), gradient())
    on_canvas = decode_rgb(SAMPLES["webp animated part"])
    assert on_canvas.shape == (40, 56, 3)
    np.testing.assert_array_equal(on_canvas[10:30, 10:30], gradient(20, 20))


def test_a_damaged_apng_does_not_reach_the_reader_that_crashes(monkeypatch):
    """Found by the fuzzer: OpenCV 5.0's APNG reader ends the process on an unknown chunk among the frames."""
    given, decode = [], cv2.imdecode
    monkeypatch.setattr(images.cv2, "imdecode", lambda data, flags: given.append(data.tobytes()) or decode(data, flags))
    chunks = made.png_chunks(SAMPLES["png animated"])
    np.testing.assert_array_equal(decode_rgb(made.png([*chunks[:-1], (b"junK", b"x"), chunks[-1]])), gradient())
    assert {kind for kind, _ in made.png_chunks(given[0])} == {b"IHDR", b"IDAT", b"IEND"}
    assert refusal(made.png([*chunks[:-1], (b"IDND", b""), chunks[-1]])) == "undecodable"
    assert len(given) == 1


def test_interlaced_and_progressive_are_as_any_other():
    np.testing.assert_array_equal(decode_rgb(SAMPLES["png interlaced"]), gradient())
    np.testing.assert_array_equal(decode_rgb(SAMPLES["jpeg progressive"]), decode_rgb(SAMPLES["jpeg"]))


def refusal(data):
    with pytest.raises(ImageError, match=r"^x: ") as refused:
        decode_rgb(data, "x")
    return refused.value.code


def test_every_refusal_has_its_code(tmp_path):
    body = (b"IDAT", zlib.compress(b"\0" * 100))
    bomb = made.png([made.png_header(60_000, 60_000), body, (b"IEND", b"")])
    hollow = made.png([made.png_header(0, 40), body, (b"IEND", b"")])
    damaged = made.png([made.png_header(40, 40), body, (b"IEND", b"")])
    assert refusal(b"") == "empty"
    assert refusal(bytes(MAX_BYTES + 1)) == "too_many_bytes"
    assert refusal(bomb) == "too_many_pixels"
    assert refusal(hollow) == "no_pixels"
    assert refusal(damaged) == "undecodable"
    assert refusal(b"GIF89a" + bytes(50)) == "unsupported_format"
    assert refusal(SAMPLES["jpeg"][:-2]) == "truncated"
    with pytest.raises(ImageError) as refused:
        read_image_bytes(tmp_path)
    assert refused.value.code == "unreadable"


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "webp lossless"])
def test_a_bomb_is_refused_before_the_decoder_sees_it(form, monkeypatch):
    def decoder(*_):
        raise AssertionError("the decoder was called")

    data = bytearray(SAMPLES[form])
    if form == "jpeg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = b"\xff\xff\xff\xff"
    elif form == "png":
        data[16:24] = b"\0\0\x40\0\0\0\x40\0"
    elif form == "webp":
        data[26:30] = b"\xff\x3f\xff\x3f"
    else:
        data[21:25] = b"\xff\xff\xff\x0f"
    monkeypatch.setattr(images.cv2, "imdecode", decoder)
    assert refusal(bytes(data)) == "too_many_pixels"


def test_the_largest_picture_that_is_taken():
    side = int(MAX_PIXELS**0.5)
    assert side * side == MAX_PIXELS
    fits = made.png([made.png_header(side, side), (b"IEND", b"")])
    over = made.png([made.png_header(side, side + 1), (b"IEND", b"")])
    images.inspect(fits)
    assert refusal(over) == "too_many_pixels"


def test_a_jpeg_of_very_many_scans_is_refused():
    data = SAMPLES["jpeg progressive"]
    at = data.rindex(b"\xff\xda")
    last_scan = data[at:-2]
    scans = read_header(data).scans
    assert decode_rgb(data[:-2] + last_scan * (MAX_SCANS - scans) + data[-2:]).shape == (40, 56, 3)
    assert refusal(data[:-2] + last_scan * (MAX_SCANS - scans + 1) + data[-2:]) == "too_many_scans"


def test_an_end_within_a_comment_hides_no_scans():
    """A decoder skips the comment between two scans by its length, and goes on."""
    data = SAMPLES["jpeg progressive"]
    second = data.index(b"\xff\xc4", data.index(b"\xff\xda"))  # the tables before the second scan
    comment = b"\xff\xfe\0\4\xff\xd9"
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    hidden = data[:second] + comment + data[second:-2] + last_scan * MAX_SCANS + data[-2:]
    assert read_header(data[:second] + comment + data[second:]).scans == read_header(data).scans
    assert cv2.imdecode(np.frombuffer(hidden, np.uint8), cv2.IMREAD_COLOR) is not None, "they are decoded"
    assert refusal(hidden) == "too_many_scans"
    endless = read_header(data[:-2] + last_scan * 5000 + data[-2:])
    assert MAX_SCANS < endless.scans < 5000


def test_a_baseline_jpeg_of_very_many_scans_is_refused_too():
    """A scan of one component out of three may come again and again without the file being progressive."""
    data = SAMPLES["jpeg"]
    at = data.index(b"\xff\xda")
    one_component = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\0" * 8
    assert refusal(data[:at] + one_component * (MAX_SCANS + 1) + data[-2:]) == "too_many_scans"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_reduced_decoding_is_upright_and_in_colour(scale, orientation):
    image = cv2.resize(gradient(), (96, 64))
    data = encode("JPEG", image, exif=made.exif(orientation), quality=95)
    reduced = decode_rgb(data, keep_side=64 // scale)
    expected = cv2.resize(by_pil(data), reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert sorted(reduced.shape[:2]) == [64 // scale, 96 // scale]
    assert np.abs(reduced.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("size", "keep_side", "expected"),
    [
        ((4000, 3000), 512, 4),  # 12 megapixels
        ((3024, 4032), 512, 4),
        ((5712, 4284), 512, 2),  # 24 megapixels: 714 columns beside the square are no multiple of 8
        ((8160, 6120), 512, 4),
        ((1024, 1024), 512, 2),
        ((1022, 1022), 512, 1),
        ((2000, 1001), 128, 1),
        ((640, 480), 512, 1),
        ((640, 480), 60, 8),
    ],
)
def test_reduction_keeps_the_target_and_the_crop(size, keep_side, expected):
    header = read_header(made.encode("JPEG"))
    assert reduction(replace(header, width=size[0], height=size[1]), keep_side) == expected
    assert reduction(replace(header, width=size[0], height=size[1], format="webp"), keep_side) == 1


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_cut_off_pictures(form, share):
    data = encode(form)
    with pytest.raises(ImageError, match=r"^x\.jpg: "):
        decode_rgb(data[: int(len(data) * share)], "x.jpg")


NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
JPEGS = {
    "baseline": {},
    "restarts": {"restart_marker_blocks": 3},
    "grey": {"image": Image.fromarray(NOISE).convert("L")},
    "cmyk": {"image": Image.fromarray(NOISE).convert("CMYK")},
    "progressive": {"progressive": True},
    "of its own tables": {"image": cv2.GaussianBlur(NOISE, (0, 0), 2), "optimize": True},
    "flat": {"image": np.full((120, 160, 3), 90, np.uint8), "optimize": True},
}


def pixels_of(kind):
    return encode("JPEG", **({"image": NOISE} | JPEGS[kind]))


def coded(data):
    """Where the first pixels begin."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def zeroed(data, share):
    """Its last bytes overwritten with zeros up to the end marker, as a copy that broke off leaves them."""
    kept = coded(data) + int(share * (len(data) - coded(data)))
    return data[:kept] + bytes(len(data) - kept - 2) + data[-2:]


def closed(data, share):
    """Cut, and an end marker behind it."""
    return data[: coded(data) + int(share * (len(data) - coded(data)))] + b"\xff\xd9"


def is_whole(data, scale=1):
    header = inspect(data)
    found = {decode_inspected(data, header, scale).whole, decode_grey(data, header, scale).whole}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("scale", [1, 8])
def test_a_jpeg_of_which_all_pixels_are_there(kind, scale):
    """Whatever follows its end, and to the very pixels that the decoder gives of the whole file. Of the even surface
    all pixel data is zeros."""
    data = pixels_of(kind)
    for file in (data, data + bytes(50), data + b"\0\0\0\x18ftypmp42" + data, data[:-2] + b"\xff\xff" + data[-2:]):
        assert is_whole(file, scale)
        np.testing.assert_array_equal(decode_rgb(file), by_pil(data) if kind != "cmyk" else decode_rgb(data))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("damage", [zeroed, closed])
@pytest.mark.parametrize("kind", ["baseline", "restarts", "grey", "cmyk", "of its own tables"])
def test_a_jpeg_of_which_pixels_are_missing_is_decoded_and_not_whole(kind, damage, share):
    data = pixels_of(kind)
    assert not is_whole(damage(data, share))
    assert not is_whole(damage(data, share), 8)
    assert decode_rgb(damage(data, share)).shape == decode_rgb(data).shape


@pytest.mark.parametrize("damage", [zeroed, closed])
def test_a_progressive_jpeg_whose_later_passes_are_missing_is_not_whole(damage):
    assert not is_whole(damage(pixels_of("progressive"), 0.5))


def test_a_jpeg_overwritten_with_another_file_is_not_whole():
    data = pixels_of("baseline")
    middle = (coded(data) + len(data)) // 2
    other = encode("PNG", NOISE)[:4000]
    assert not is_whole(data[:middle] + other + data[middle + len(other) :])
    assert not is_whole(data[:middle] + b"\xff\xd3" + data[middle:]), "a restart where none is announced"


def test_the_other_formats_are_whole_or_refused():
    for data in (encode("PNG"), encode("WEBP")):
        assert decode_inspected(data, inspect(data), 1).whole


def test_a_jpeg_of_a_rare_kind_is_named():
    deep = SAMPLES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c")
    with pytest.raises(ImageError, match=r"^x: is a JPEG of 12 bits a channel, which is not decoded; save it as"):
        decode_rgb(deep, "x")
    assert refusal(SAMPLES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x63")) == "undecodable"


def test_a_lossless_jpeg_in_colour_is_decoded_whole_also_where_others_are_decoded_smaller():
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    data = made.lossless_jpeg(image)
    header = inspect(data)
    assert header.lossless
    assert reduction(header, 8) == 1
    np.testing.assert_array_equal(decode_rgb(data, keep_side=8), image)
    assert decode_grey(data, header, 1).whole


def thumbnail_jpeg():
    thumbnail = encode("JPEG", gradient(8, 8))
    body = encode("JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    return body[:2] + segment + body[2:]


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture():
    data = thumbnail_jpeg()
    assert decode_rgb(data).shape == (40, 56, 3)
    with pytest.raises(ImageError, match="cut off"):
        decode_rgb(data[:-20])


def test_a_motion_photo_carries_a_film_after_its_end():
    assert decode_rgb(encode("JPEG") + b"\0" * 20_000).shape == (40, 56, 3)


def test_what_is_no_picture():
    for data in (b"this is no picture", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"GIF89a"):
        with pytest.raises(ImageError):
            decode_rgb(data)
    with pytest.raises(ImageError, match="the file is empty"):
        decode_rgb(b"")
    with pytest.raises(ImageError, match="over the limit of 64 MiB"):
        decode_rgb(bytes(MAX_BYTES + 1))


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_a_picture_or_an_image_error(data, head):
    try:
        decoded = decode_rgb(head + data)
    except ImageError:
        return
    assert decoded.ndim == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg: cannot be read"):
        read_image_bytes(tmp_path / "none.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "moved" / "photo.jpg")
    with pytest.raises(ImageError, match=r"link\.jpg: cannot be read .*it is a link to .*moved/photo\.jpg"):
        read_image_bytes(tmp_path / "link.jpg")


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "large.jpg"
    with path.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match=r"large\.jpg: 64 MiB, over the limit"):
        read_image_bytes(path)


def test_fill_bytes_before_a_marker_are_part_of_a_jpeg():
    """ITU-T T.81, B.1.1.2: any marker may be preceded by fill bytes 0xFF."""
    ok, data = cv2.imencode(".jpg", np.full((24, 24, 3), 90, np.uint8))
    assert ok
    whole = data.tobytes()
    filled = whole[:2] + b"\xff\xff\xff" + whole[2:]
    assert decode_rgb(filled).shape == (24, 24, 3)
    with pytest.raises(ImageError, match="cut off"):
        decode_rgb(filled[:-40])
