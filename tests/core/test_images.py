import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pillsnap.core.errors import ImageError
from pillsnap.core.images import MAX_BYTES, decode_rgb, read_image_bytes


def gradient(height=40, width=56):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 5, columns * 4, np.full_like(rows, 90)], axis=-1).astype(np.uint8)


def encode(form, image=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(gradient() if image is None else image).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_channels_are_rgb(form):
    options = {"lossless": True} if form == "WEBP" else {"quality": 98} if form == "JPEG" else {}
    decoded = decode_rgb(encode(form, **options))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - gradient()).mean() < (2 if form == "JPEG" else 1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pil_does(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode("JPEG", exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    decoded = decode_rgb(data)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 4


def test_grey_alpha_and_sixteen_bits_come_as_rgb():
    rgba = np.dstack([gradient(), np.full((40, 56), 120, np.uint8)])
    sixteen = cv2.imencode(".png", gradient().astype(np.uint16) * 257)[1].tobytes()
    for data in (encode("PNG", gradient()[:, :, 0]), encode("PNG", rgba), sixteen):
        decoded = decode_rgb(data)
        assert decoded.shape == (40, 56, 3)
        assert decoded.dtype == np.uint8


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_cut_off_pictures(form, share):
    data = encode(form)
    with pytest.raises(ImageError, match=r"^x\.jpg: "):
        decode_rgb(data[: int(len(data) * share)], "x.jpg")


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


def test_fill_bytes_before_a_marker_are_part_of_a_jpeg():
    """ITU-T T.81, B.1.1.2: any marker may be preceded by fill bytes 0xFF."""
    ok, data = cv2.imencode(".jpg", np.full((24, 24, 3), 90, np.uint8))
    assert ok
    whole = data.tobytes()
    filled = whole[:2] + b"\xff\xff\xff" + whole[2:]
    assert decode_rgb(filled).shape == (24, 24, 3)
    with pytest.raises(ImageError, match="cut off"):
        decode_rgb(filled[:-40])
