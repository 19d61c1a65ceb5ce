import contextlib
import io
import runpy
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pillsnap.core.errors import ImageError
from pillsnap.core.image_header import read_header
from pillsnap.core.images import inspect

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("image_samples.py"))))
SAMPLES = made.make_samples()
PIL_MODES = {
    "grey": {"L", "1", "I;16"},
    "grey_alpha": {"LA"},
    "rgb": {"RGB"},
    "rgba": {"RGBA"},
    "palette": {"P"},
    "cmyk": {"CMYK"},
    "ycck": {"CMYK"},
}


def agrees_with_pil(data):
    header = read_header(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = Image.open(io.BytesIO(data))
        picture.load()
    assert header.format == ("jpeg" if picture.format == "MPO" else picture.format.lower())
    assert (header.width, header.height) == picture.size
    assert picture.mode in PIL_MODES[header.mode]
    assert header.animated == getattr(picture, "is_animated", False)
    assert header.orientation == picture.getexif().get(0x0112, 1)
    assert header.has_alpha == (picture.mode in ("LA", "RGBA") or "transparency" in picture.info)
    assert header.whole
    return header


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_kind_is_read_as_pil_reads_it(kind):
    agrees_with_pil(SAMPLES[kind])


@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    mode=st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"]),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    orientation=st.one_of(st.none(), st.integers(1, 8)),
    option=st.booleans(),
)
def test_generated_pictures_are_read_as_pil_reads_them(form, mode, size, orientation, option):
    if mode in {"JPEG": {"RGBA", "LA", "P", "1"}, "PNG": {"CMYK"}, "WEBP": {"CMYK", "LA", "P", "1"}}[form]:
        mode = "RGB"
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 4), np.uint8)
    picture = Image.fromarray(pixels).convert("RGB" if mode != "RGBA" else "RGBA").convert(mode)
    options = {"exif": made.exif(orientation)} if orientation else {}
    options[{"JPEG": "progressive", "PNG": "optimize", "WEBP": "lossless"}[form]] = option
    header = agrees_with_pil(made.encode(form, picture, **options))
    assert header.upright_size == (size[::-1] if (orientation or 1) >= 5 else size)


def test_what_pil_does_not_tell():
    bits = {kind: read_header(SAMPLES[kind]).bit_depth for kind in SAMPLES}
    assert bits["png 16 bits"] == bits["png grey 16 bits"] == 16
    assert (bits["png grey 1 bit"], bits["png palette 4 bits"], bits["jpeg"], bits["webp"]) == (1, 4, 8, 8)
    assert read_header(SAMPLES["jpeg ycck"]).mode == "ycck"
    assert read_header(SAMPLES["jpeg cmyk without adobe"]).mode == "cmyk"
    assert read_header(SAMPLES["jpeg progressive"]).scans > 3
    assert read_header(SAMPLES["jpeg motion"]).scans == read_header(SAMPLES["jpeg"]).scans == 1


def test_attack_of_fill_bytes_that_lead_to_no_marker():
    """A search that begins anew at each of them would take hours, and no other thread would run meanwhile."""
    data = SAMPLES["jpeg progressive"]
    assert read_header(made.with_fill_bytes(data, 2**20)) == read_header(data)


def ftyp(*brands):
    return struct.pack(">I4s4sI", 16 + 4 * len(brands[1:]), b"ftyp", brands[0], 0) + b"".join(brands[1:]) + bytes(40)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ftyp(b"mp42", b"isom"), "film"),
        (made.encode("GIF"), "GIF; convert"),
        (made.encode("BMP"), "BMP"),
        (made.encode("TIFF"), "TIFF"),
        (made.encode("PDF"), "PDF; send the picture itself"),
        (made.encode("JPEG2000"), "JPEG 2000"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        ("알약 사진이 아닙니다".encode(), "text"),
        (("가" * 200).encode(), "text"),
        (b"<html><body>404</body></html>", "text"),
        (b"PK\x03\x04" + bytes(30), "ZIP"),
        (b"RIFF\0\0\0\0AVI LIST", "RIFF"),
        (bytes(range(128, 256)), r"that can be decoded \(JPEG, PNG and WebP can\)$"),
    ],
)
def test_other_formats_are_named(data, words):
    with pytest.raises(ImageError, match=rf"^x\.jpg: is not a picture .*{words}") as refused:
        read_header(data, "x.jpg")
    assert refused.value.code == "unsupported_format"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (ftyp(b"heic", b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"mif1", b"avif"), "AVIF"),
        (made.encode("AVIF"), "AVIF"),
    ],
)
def test_what_a_phone_writes_is_named_with_what_to_set_there(data, name):
    words = rf"but {name}; set the phone to JPEG .*Settings > Camera > Formats > Most Compatible; Android: turn"
    with pytest.raises(ImageError, match=words) as refused:
        read_header(data, "x.jpg")
    assert refused.value.code == "heic"


def test_the_name_never_counts():
    assert read_header(SAMPLES["jpeg"], "IMG_0001.HEIC").format == "jpeg"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_in_both_byte_orders(order, kind):
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((6, 0) if kind == 3 else (6,)))
    entries = (
        struct.pack(order + "HHI4s", 0x010F, 2, 1, b"x\0\0\0") + struct.pack(order + "HHI", 0x0112, kind, 1) + value
    )
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 2) + entries
    whole = SAMPLES["jpeg"]
    for block, expected in ((tiff, 6), (tiff[:-3], 1), (tiff[:9], 1), (b"XX" + tiff[2:], 1)):
        segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
        assert read_header(whole[:2] + segment + whole[2:]).orientation == expected


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_senseless_orientation_is_upright(value):
    assert read_header(made.encode("JPEG", exif=made.exif(value))).orientation == 1


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "webp lossless", "webp animated", "png animated"])
def test_every_truncation_is_seen(kind):
    data = SAMPLES[kind]
    for length in range(12, len(data) - 1):  # the last byte alone may be padding
        with contextlib.suppress(ImageError):
            assert not read_header(data[:length]).whole, length
        with pytest.raises(ImageError) as refused:
            inspect(data[:length])
        assert refused.value.code == "truncated", length


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xd8\xff\xd9", "ends before its pixels"),
        (b"\xff\xd8\xff\xda\0\x02", "before its size"),
        (SAMPLES["jpeg"][:2] + b"\xff\xc0\0\x0b\x08\0\x01\0\x01\x01\1\x11\0" + SAMPLES["jpeg"][2:], "two frames"),
        (b"\xff\xd8\xff\xc0\0\x08\x08\0\x01\0\x01\x02\xff\xda\0\x02", "2 channels"),
        (made.png([(b"IDAT", b""), made.png_header(4, 4), (b"IEND", b"")]), "begin with IHDR"),
        (made.png([made.png_header(4, 4, color=5), (b"IEND", b"")]), "colour type 5"),
        (made.webp(), "holds no picture"),
        (made.webp(made.vp8x(9, 9), SAMPLES["webp lossless"][12:]), "differ in size"),
        (made.webp(made.riff_chunk(b"VP8 ", bytes(20))), "key frame"),
        (made.webp(made.riff_chunk(b"VP8L", bytes(20))), "signature"),
        (b"\xff\xd8" + b"\xff\xe0\0\x02" * 100_001, "over 100,000 segments"),
    ],
)
def test_what_no_decoder_could_read(data, words):
    with pytest.raises(ImageError, match=words) as refused:
        read_header(data)
    assert refused.value.code == "undecodable"


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_any_bytes_are_a_header_or_an_image_error(kind, draw):
    data = bytearray(SAMPLES[kind])
    for _ in range(draw.draw(st.integers(1, 6))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        header = read_header(bytes(data))
    except ImageError:
        return
    assert 1 <= header.orientation <= 8
