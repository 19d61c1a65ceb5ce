"""Reads pictures that a source has listed, and their labels."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pillsnap.core.boxes import Box
from pillsnap.core.files import sha256_file
from pillsnap.core.image_quality import Figures, measure
from pillsnap.data.names import Domain
from pillsnap.data.reading import read_picture
from pillsnap.data.sources import AiHubSource, Picture

trees = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("trees.py"))))
ONE, TWO = "K-000059", "K-010224"
STEM, TOGETHER = trees.name(ONE), trees.name(trees.COMBINATION)
BOX = [10, 20, 30, 40]
# The first box of an ISO base media file: all that a HEIC needs to be told by.
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)


def picture(path, kcode=ONE, domain: Domain = "real", **more):
    return Picture(f"real_photos/{kcode}/{path.name}", path, kcode, domain, **more)


def read(root, kcode=ONE, combinations=True):
    """The single reading of a tree."""
    source = AiHubSource(root, combinations=combinations)
    (folder,) = source.folders([kcode])[kcode]
    (found,) = source.pictures(folder, kcode, f"studio/{kcode}")
    return read_picture(found)


def label_of(root):
    (path,) = root.rglob("*.json")
    return path


def test_a_sound_picture_with_a_sound_label(tmp_path):
    source = trees.single(tmp_path, ONE, STEM, BOX)
    reading = read(tmp_path)
    assert (reading.fault, reading.notes, reading.box) == ("", (), None)  # a single pill needs no box
    assert (reading.width, reading.height) == (96, 128)
    assert reading.sha256 == sha256_file(source)
    assert (len(reading.dhash), len(reading.phash), len(reading.thumb)) == (16, 16, 256)
    assert reading.figures is not None


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp"])
def test_every_format(tmp_path, suffix):
    path = trees.write(tmp_path / f"a{suffix}", trees.picture_bytes("a", suffix.lower()))
    reading = read_picture(picture(path))
    assert (reading.fault, reading.width, reading.height) == ("", 96, 128)


def test_a_jpeg_by_the_name_of_heic_is_used_and_a_real_heic_refused(tmp_path):
    jpeg = trees.write(tmp_path / "IMG_1.heic", trees.picture_bytes("a", ".jpg"))
    assert read_picture(picture(jpeg)).fault == ""
    reading = read_picture(picture(trees.write(tmp_path / "IMG_2.HEIC", HEIC)))
    assert reading.fault_code == "heic"
    assert "HEIC" in reading.fault
    assert reading.sha256 == sha256_file(tmp_path / "IMG_2.HEIC")


def test_a_jpeg_is_measured_smaller_and_tells_its_whole_size(tmp_path):
    path = trees.write(tmp_path / "a.jpg", trees.picture_bytes("a", ".jpg", (4096, 3072)))
    reading = read_picture(picture(path))
    assert (reading.width, reading.height) == (4096, 3072)


def test_faults_of_the_file(tmp_path):
    whole, jpeg = trees.picture_bytes("a"), trees.picture_bytes("a", ".jpg")
    for name, data, code in (
        ("empty.png", b"", "empty"),
        ("cut.png", whole[:-40], "truncated"),
        ("text.jpg", b"not a picture", "unsupported_format"),
        ("damaged.png", whole[:60] + bytes(40) + whole[100:], "undecodable"),
        ("half.jpg", jpeg[: len(jpeg) // 2] + b"\xff\xd9", "damaged"),
        ("zeroed.jpg", jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2) + b"\xff\xd9", "damaged"),
        ("header.jpg", jpeg[: jpeg.index(b"\xff\xda") + 14] + b"\xff\xd9", "no_pixel_data"),
    ):
        reading = read_picture(picture(trees.write(tmp_path / name, data)))
        assert (reading.fault_code, reading.figures, reading.dhash) == (code, None, "")
        assert not reading.fault.startswith("real_photos")  # the finding has the path already
    reading = read_picture(picture(tmp_path / "gone.png"))
    assert reading.fault_code == "unreadable"


def test_a_picture_in_the_folder_of_another_drug(tmp_path):
    path = trees.write(tmp_path / f"{TWO}_1.png", trees.picture_bytes("a"))
    reading = read_picture(picture(path))
    assert reading.fault_code == "wrong_folder"
    assert f"named after {TWO} but lies in the folder of {ONE}" in reading.fault
    assert read_picture(picture(path, named=False)).fault == ""
    assert read_picture(picture(path, TWO)).fault == ""


def test_a_picture_of_several_pills_in_the_folder_of_one(tmp_path):
    path = trees.write(tmp_path / f"{TOGETHER}.png", trees.picture_bytes("a"))
    assert read_picture(picture(path, domain="studio")).fault_code == "wrong_folder"


class TestLabels:
    def test_the_name_wins_over_the_label(self, tmp_path):
        trees.single(tmp_path, ONE, STEM, BOX, camera_la=60)
        reading = read(tmp_path)
        assert reading.notes == ("the label says elevation 60, the name 90",)
        assert reading.fault == ""

    def test_a_box_out_of_the_picture_is_noted_for_a_single_pill(self, tmp_path):
        trees.single(tmp_path, ONE, STEM, [80, 20, 30, 40])
        reading = read(tmp_path)
        assert reading.fault == ""
        assert reading.notes == ("the label's box (80, 20, 30, 40) is not within the picture of 96×128 px",)

    def test_the_label_of_another_drug(self, tmp_path):
        trees.single(tmp_path, ONE, STEM, BOX, drug_N=TWO)
        reading = read(tmp_path)
        assert reading.fault_code == "label_of_another_drug"
        assert f"folder of {ONE}, its label {STEM}.json says {TWO}" in reading.fault

    def test_a_damaged_label_is_noted(self, tmp_path):
        trees.single(tmp_path, ONE, STEM, BOX)
        label_of(tmp_path).write_text("{")
        reading = read(tmp_path)
        assert reading.fault == ""
        assert len(reading.notes) == 1
        assert reading.notes[0].startswith(f"{STEM}.json: is not a label")

    def test_a_label_that_cannot_be_read_now_says_nothing_about_the_picture(self, tmp_path):
        trees.single(tmp_path, ONE, STEM, BOX)
        label = label_of(tmp_path)
        label.unlink()
        label.symlink_to("gone")
        assert read(tmp_path).fault_code == "unreadable"

    def test_the_box_of_a_pill_among_others(self, tmp_path):
        trees.combined(tmp_path, TOGETHER, {ONE: BOX, TWO: [0, 0, 96, 128]})
        assert read(tmp_path, ONE).box == Box(10, 20, 30, 40)
        assert read(tmp_path, TWO).box == Box(0, 0, 96, 128)

    @pytest.mark.parametrize("box", [[80, 20, 30, 40], [-1, 0, 9, 9], [1, 1, 0, 5], None])
    def test_a_pill_among_others_needs_its_box(self, tmp_path, box):
        trees.combined(tmp_path, TOGETHER, {ONE: box})
        reading = read(tmp_path)
        assert reading.fault_code == "bad_box"
        assert f"needs the box of {ONE}" in reading.fault

    def test_a_pill_among_others_with_a_damaged_label(self, tmp_path):
        trees.combined(tmp_path, TOGETHER, {ONE: BOX})
        label_of(tmp_path).write_text("{")
        assert read(tmp_path).fault_code == "bad_box"


def test_figures():
    grey_HW_u8 = np.full((256, 256), 100, np.uint8)
    assert measure(grey_HW_u8) == Figures(100, 100, 100, 0, 1)
    grey_HW_u8[:16, :16] = 250  # 0.4 % of the pixels
    grey_HW_u8[0, 0] = 0  # a single one does not count
    figures = measure(grey_HW_u8)
    assert (figures.darkest, figures.brightest) == (100, 250)
    assert measure(cv2.GaussianBlur(grey_HW_u8, (31, 31), 0)).sharpness < figures.sharpness / 10
