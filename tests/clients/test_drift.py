"""The drift benchmark runs, and its figures mean what they say."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pillsnap.clients.phone import FOLDER

DRIFT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "client_drift.py"))


@pytest.fixture
def photos(tmp_path):
    for name in ("landscape.png", "orientation_6.jpg", "already_512.png", "gradient.png"):
        shutil.copy(FOLDER / "golden" / name, tmp_path / name)
    (tmp_path / "damaged.jpg").write_bytes(b"no picture")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(DRIFT["main"], [str(argument) for argument in arguments])


def test_tables_for_each_size_and_a_damaged_photo_is_named(photos):
    result = run("--photos", photos, "--target-size", 64, "--target-size", 32, "--no-clahe")
    assert result.exit_code == 0, result.output
    assert "4 photos, 64 pixels, linear, no CLAHE" in result.output
    assert "4 photos, 32 pixels, linear, no CLAHE" in result.output
    assert "left out:" in result.stderr
    assert "damaged.jpg" in result.stderr


def test_agreement_of_a_bundle(photos, toys, tmp_path):
    bundle = toys.save_bundle(tmp_path / "toy.onnx", toys.toy_colors(3))
    result = run("--photos", photos, "--bundle", bundle)
    assert result.exit_code == 0, result.output
    assert "top-1 agreement 100.00 % (4 of 4)" in result.output


def test_disagreement_is_counted():
    text = DRIFT["agreement"]([(1, 1, 0.1, 0.2), (1, 2, 0.3, 0.4)])
    assert text.startswith("top-1 agreement 50.00 % (1 of 2), mean change of the confidence 0.2000")
    assert text.endswith("0.400")


def test_the_table_shows_the_worst():
    table = DRIFT["pixel_table"](np.asarray([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
    assert "| mean difference | 1.05 | 1.50 | 1.95 | 2.00 |" in table


def test_a_limit_takes_photos_from_all_over(photos):
    names = [path.name for path in DRIFT["photo_paths"](photos, 2)]
    assert names == ["already_512.png", "orientation_6.jpg"]


def test_a_folder_without_pictures_is_refused(tmp_path):
    result = run("--photos", tmp_path)
    assert result.exit_code == 1
    assert "no picture in there" in result.output
