import os

import pytest

from pillsnap.core.errors import DataError
from pillsnap.data.sources import tree

WANTED = ("K-000059", "K-030864")


def found(root):
    folders = tree.single_folders(root, WANTED, None)
    return {kcode: [one.path.relative_to(root).as_posix() for one in each] for kcode, each in folders.items()}


def test_folders_of_other_drugs_are_not_entered(tmp_path, monkeypatch):
    (tmp_path / "K-777777" / "K-000059").mkdir(parents=True)
    (tmp_path / "2024" / "K-030864" / "deep").mkdir(parents=True)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(os.path.basename(path)) or scandir(path))
    assert found(tmp_path) == {"K-030864": ["2024/K-030864"]}
    assert listed == [tmp_path.name, "2024"]


def test_links_in_a_circle_end_and_count_once(tmp_path):
    (tmp_path / "a" / "K-000059").mkdir(parents=True)
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "a" / "K59").symlink_to(tmp_path / "a" / "K-000059")
    assert found(tmp_path) == {"K-000059": ["a/K-000059"]}


def test_pictures_below_links_in_a_circle_and_beside_hidden_files(tmp_path):
    for name in ("a.jpg", "deep/b.jpg", ".hidden.jpg", "._a.jpg", ".thumbnails/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    assert tree.list_pictures(tmp_path) == ["a.jpg", "deep/b.jpg"]


def test_only_a_code_makes_a_folder_of_labels(tmp_path):
    for name in ("K-000059_json/a.png", "photos_json/b.png", "K-000059-030864_json/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert tree.list_pictures(tmp_path) == ["photos_json/b.png"]
    (tmp_path / "photos_json" / "K-030864").mkdir()
    assert found(tmp_path) == {"K-030864": ["photos_json/K-030864"]}


def test_a_name_that_is_no_text_is_listed(tmp_path):
    """The reading says what is wrong with it."""
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    assert tree.list_pictures(tmp_path) == [os.fsdecode(b"\xff.jpg")]


def test_the_folder_of_another_drug_inside_is_refused(tmp_path):
    (tmp_path / "K-000059" / "K-030864").mkdir(parents=True)
    with pytest.raises(DataError, match="lies in the folder of another"):
        tree.list_pictures(tmp_path / "K-000059")


def test_pipes_and_links_to_themselves_are_no_pictures(tmp_path):
    (tmp_path / "a.jpg").touch()
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "loop").symlink_to("loop")
    assert tree.list_pictures(tmp_path) == ["a.jpg"]


def test_a_link_to_a_picture_that_is_gone_is_listed_to_be_reported(tmp_path):
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    assert tree.list_pictures(tmp_path) == ["a.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "K-000059").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"K-000059: cannot be listed \(Permission denied\)"):
        tree.list_pictures(tmp_path / "K-000059")
