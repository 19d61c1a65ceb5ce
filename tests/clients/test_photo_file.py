"""What the browser client reads in a photo's bytes, against what the server reads in them."""

from __future__ import annotations

import base64
import io
import runpy
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from pillsnap.core.errors import ImageError
from pillsnap.core.image_codes import Refusal
from pillsnap.core.image_header import read_header
from pillsnap.core.images import inspect

WITH_SEGMENT = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_vectors.py"))["with_segment"]
KINDS = ("JPEG", "PNG", "WEBP")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def encoded(kind, orientation=None, **options):
    """A small picture; WebP without loss."""
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return stream.getvalue()


def chunk(kind, content):
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png, kind, content):
    """``png`` with one chunk more behind its header."""
    return png[:33] + chunk(kind, content) + png[33:]


JPEG, PNG, WEBP = (encoded(kind) for kind in KINDS)
STRAY = JPEG[:20] + b"\x12\x34\xff\x00" + JPEG[20:]
BARE = JPEG[:20] + b"\xff\x01" + JPEG[20:]
THUMBNAIL = WITH_SEGMENT(JPEG, 0xE1, b"Exif\x00\x00" + JPEG[:500] + b"\xff\xd9")
WHOLE = {
    "jpeg": JPEG,
    "progressive": encoded("JPEG", progressive=True),
    "jpeg with a film behind": JPEG + b"film\xff\xd8",
    "thumbnail": THUMBNAIL,
    "bytes between segments": STRAY,
    "a marker without length": BARE,
    "fill bytes": JPEG[:20] + b"\xff\xff" + JPEG[20:],
    "png": PNG,
    "png with a film behind": PNG + bytes(500),
    "webp": WEBP,
    "webp with a film behind": WEBP + b"film",
    "all of it": encoded("WEBP", 3, icc_profile=PROFILE),
}


def cut_for_the_server(file):
    try:
        return not read_header(file).whole
    except ImageError as error:
        return error.code == Refusal.TRUNCATED


@pytest.mark.parametrize("name", WHOLE)
def test_the_end_is_missed_wherever_the_server_misses_it(ask, name):
    file = WHOLE[name]
    cuts = [*range(12, 64), *range(64, len(file), max(1, len(file) // 300)), *range(len(file) - 20, len(file) + 1)]
    answers = ask(*({"do": "cut", "file": file[:cut]} for cut in cuts))
    assert answers == [cut_for_the_server(file[:cut]) for cut in cuts]
    assert answers[0]
    assert not answers[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_orientation_is_the_one_that_the_server_reads(ask, kind):
    files = [encoded(kind), *(encoded(kind, orientation) for orientation in range(10))]
    answers = ask(*({"do": "orientation", "file": file} for file in files))
    assert answers == [read_header(file).orientation for file in files] == [1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 1]


def test_the_orientation_of_unusual_blocks(ask):
    big = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    long = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 4, 1, 8)
    beyond = b"II*\0" + struct.pack("<I", 10_000)
    cut = big[:-6]
    blocks = [big, long, beyond, cut, b"", b"no directory"]
    files = [
        *(WITH_SEGMENT(JPEG, 0xE1, b"Exif\0\0" + block) for block in blocks),
        *(with_chunk(PNG, b"eXIf", block) for block in blocks),
        WITH_SEGMENT(WITH_SEGMENT(JPEG, 0xE1, b"Exif\0\0" + big), 0xE1, b"Exif\0\0" + long),
        WITH_SEGMENT(JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    ]
    answers = ask(*({"do": "orientation", "file": file} for file in files))
    assert answers == [read_header(file).orientation for file in files]
    assert answers == [6, 8, 1, 1, 1, 1] * 2 + [8, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_profile_and_exif_are_taken_out_and_nothing_else(ask, kind):
    marked = encoded(kind, 6, icc_profile=PROFILE)
    assert Image.open(io.BytesIO(marked)).info["icc_profile"]
    alone, again, plain = ask(*({"do": "alone", "file": file} for file in (marked, encoded(kind, 6), encoded(kind))))
    assert alone == again
    left = Image.open(io.BytesIO(base64.b64decode(alone)))
    assert not {"icc_profile", "exif"} & left.info.keys()
    np.testing.assert_array_equal(np.asarray(left), np.asarray(Image.open(io.BytesIO(marked))))
    if kind == "WEBP":  # with metadata it has a header of its own, in which nothing is announced any more
        assert base64.b64decode(alone)[20] == 0
        assert struct.unpack_from("<I", base64.b64decode(alone), 4)[0] + 8 == len(base64.b64decode(alone))
    else:
        assert alone == plain


@pytest.mark.parametrize("jpeg", [STRAY, BARE], ids=["bytes between segments", "a marker without length"])
def test_a_profile_behind_what_is_skipped_is_taken_out(ask, jpeg):
    place = 24 if jpeg is STRAY else 22
    profile = b"ICC_PROFILE\0\x01\x01" + PROFILE
    marked = jpeg[:place] + b"\xff\xe2" + struct.pack(">H", 2 + len(profile)) + profile + jpeg[place:]
    assert base64.b64decode(ask({"do": "alone", "file": marked})[0]) == jpeg


def test_what_says_how_a_jpeg_is_to_be_read_stays(ask):
    cmyk = io.BytesIO()
    Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]]), "CMYK").save(cmyk, "JPEG")
    assert b"Adobe" in cmyk.getvalue()
    assert base64.b64decode(ask({"do": "alone", "file": cmyk.getvalue()})[0]) == cmyk.getvalue()


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"sRGB", b"cICP", b"acTL", b"fcTL", b"fdAT", b"tEXt", b"eXIf"])
def test_of_a_png_only_the_picture_stays(ask, kind):
    assert base64.b64decode(ask({"do": "alone", "file": with_chunk(PNG, kind, b"12345678")})[0]) == PNG


def refused_by_the_server(file):
    try:
        inspect(file)
    except ImageError as error:
        return str(error.code)
    return None


def frame_changed(jpeg, marker=0xC0, bits=8, height=None):
    """``jpeg`` with another start of frame."""
    at = jpeg.index(b"\xff\xc0")
    size = jpeg[at + 5 : at + 7] if height is None else struct.pack(">H", height)
    return jpeg[:at] + bytes([0xFF, marker]) + jpeg[at + 2 : at + 4] + bytes([bits]) + size + jpeg[at + 7 :]


def without_pixels(jpeg, kept=0):
    """The header, ``kept`` bytes of pixel data and the end."""
    at = jpeg.index(b"\xff\xda")
    coded = at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
    return jpeg[: coded + kept] + b"\xff\xd9"


GREY = io.BytesIO()
Image.fromarray(PIXELS[..., 0]).save(GREY, "JPEG")
FLAT = io.BytesIO()
Image.new("RGB", (640, 480)).save(FLAT, "JPEG", optimize=True)
DNL = frame_changed(JPEG, height=0)[:-2] + b"\xff\xdc\0\x04\0\x18\xff\xd9"
JPEGS = {
    "whole": (JPEG, None),
    "progressive": (encoded("JPEG", progressive=True), None),
    "as little pixel data as there can be": (FLAT.getvalue(), None),
    "no pixel data": (without_pixels(JPEG), "no_pixel_data"),
    "a byte of it": (without_pixels(JPEG, 1), "no_pixel_data"),
    "progressive without pixel data": (without_pixels(encoded("JPEG", progressive=True)), "no_pixel_data"),
    "no pixel data, and a film": (without_pixels(JPEG) + JPEG, "no_pixel_data"),
    "12 bits": (frame_changed(JPEG, 0xC1, 12), "rare_jpeg"),
    "lossless in grey": (frame_changed(GREY.getvalue(), 0xC3), "rare_jpeg"),
    "hierarchical": (frame_changed(JPEG, 0xC5), "rare_jpeg"),
    "JPEG-LS": (frame_changed(JPEG, 0xF7), "rare_jpeg"),
    "its height behind the pixels": (DNL, "rare_jpeg"),
    "fill bytes that lead to no marker": (JPEG[:20] + b"\xff" * 2**18 + b"\0" + JPEG[20:], None),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_is_refused_by_its_header_as_by_the_server(ask, name):
    file, code = JPEGS[name]
    assert refused_by_the_server(file) == code
    assert ask({"do": "jpeg_refusal", "file": file}) == [code]


def test_heic_and_avif_are_told_from_other_files(ask):
    def box(*brands):
        return struct.pack(">I", 16 + 4 * len(brands[1:])) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])

    files = [box(b"heic"), box(b"mif1", b"heic"), box(b"xxxx", b"yyyy", b"avif"), box(b"mp42", b"isom"), b"", JPEG, PNG]
    assert ask(*({"do": "heif", "file": file} for file in files)) == [True] * 3 + [False] * 4
    assert [refused_by_the_server(file + bytes(20)) for file in files[:4]] == ["heic"] * 3 + ["unsupported_format"]


def test_other_formats(ask):
    files = [b"", b"\xff", b"GIF89a", b"RIFF1234WAVE5678", b"RIFF", b"II*\0", JPEG, PNG, WEBP]
    assert ask(*({"do": "format", "file": file} for file in files)) == [None] * 6 + ["jpeg", "png", "webp"]
    for job in ("alone", "cut", "damaged", "orientation", "jpeg_refusal"):
        answers = ask(*({"do": job, "file": file} for file in files[:6]))
        expected = {"alone": [base64.b64encode(file).decode() for file in files[:6]], "orientation": [1] * 6}
        expected["jpeg_refusal"] = [None] * 6
        assert answers == expected.get(job, [False] * 6)


def test_a_png_of_wrong_checksums_is_damaged(ask):
    png = cv2.imencode(".png", PIXELS)[1].tobytes()
    places = [20, png.index(b"IDAT") + 20, len(png) - 3]
    damaged = [png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :] for place in places]
    of_no_interest = with_chunk(png, b"tEXt", b"comment").replace(b"comment", b"Comment")
    answers = ask(*({"do": "damaged", "file": file} for file in [png, of_no_interest, *damaged, JPEG, WEBP]))
    assert answers == [False, False, True, True, True, False, False]


def test_metadata_of_what_is_sent_is_taken_out(ask):
    marked = JPEG
    for marker in (0xFE, 0xED, 0xE2, 0xE1):
        marked = WITH_SEGMENT(marked, marker, b"where and when")
    answers = ask(*({"do": "strip", "file": file} for file in (marked, JPEG)))
    assert [base64.b64decode(answer) for answer in answers] == [JPEG, JPEG]
