import os

import pytest

from pillsnap.data.sources import OVERLOOKED, find_overlooked

WANTED = ("K-000059", "K-030864")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def overlooked(root, **options):
    return {code: found.first for code, found in find_overlooked(root, WANTED, **options).items()}


def test_a_tidy_tree_has_nothing(tmp_path):
    touch(tmp_path, "K-000059/a.jpg", "2024/K-030864/deep/b.PNG", "K-000059_json/a.json", "notes.txt", "K-000059/.x")
    assert find_overlooked(tmp_path, WANTED) == {}


def test_everything_that_nobody_takes_is_named(tmp_path):
    touch(
        tmp_path, "loose.jpg", "K-99O048/a.jpg", "K-000059 (copy)/deep/b.dng", "K-000059/c.dng", "K-000059/deep/IMG_1",
        "K-777777/d.jpg", "K-000059-030864/e.png", "K-000059/ok.jpg",
    )  # fmt: skip
    os.mkfifo(tmp_path / "K-030864.jpg")
    (tmp_path / "K-030864").mkdir()
    os.mkfifo(tmp_path / "K-030864" / "pipe.jpg")
    expected = {
        "in_no_drug_folder": ["K-000059 (copy)/deep/b.dng", "K-030864.jpg", "K-99O048/a.jpg", "loose.jpg"],
        "unknown_ending": ["K-000059/c.dng", "K-000059/deep/IMG_1"],
        "not_a_file": ["K-030864/pipe.jpg"],
        "other_drug": ["K-777777"],
        "combination": ["K-000059-030864"],
    }
    assert overlooked(tmp_path) == expected
    assert set(expected) == set(OVERLOOKED)
    assert "combination" not in overlooked(tmp_path, combinations=True)


def test_the_output_circles_and_folders_of_other_drugs_are_not_searched(tmp_path):
    touch(tmp_path, "out/K-99O048/a.jpg", "K-777777/deep/loose.jpg", "K-000059/a.jpg")
    (tmp_path / "K-000059" / "circle").symlink_to(tmp_path)
    assert overlooked(tmp_path, skip=tmp_path / "out") == {"other_drug": ["K-777777"]}


def test_many_are_counted_and_the_first_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pillsnap.data.sources.overlooked._LISTED", 2)
    touch(tmp_path, *(f"{n}.jpg" for n in range(5)))
    found = find_overlooked(tmp_path, WANTED)["in_no_drug_folder"]
    assert (found.count, found.first) == (5, ["0.jpg", "1.jpg"])


def test_a_name_that_is_no_text_can_be_shown(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    assert overlooked(tmp_path) == {"in_no_drug_folder": ["\\xff.jpg"]}


@pytest.mark.parametrize("name", ["K-000059", "k59"])
def test_spellings_of_a_wanted_drug_are_no_finding(tmp_path, name):
    touch(tmp_path, f"{name}/a.jpg")
    assert overlooked(tmp_path) == {}
