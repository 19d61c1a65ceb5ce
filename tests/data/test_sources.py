import os

import pytest

from pillsnap.core.errors import DataError
from pillsnap.data.sources import find_drug_folders, list_pictures

WANTED = ("K-000059", "K-030864")


def found(root, **more):
    folders = find_drug_folders(root, WANTED, **more)
    return {kcode: [path.relative_to(root).as_posix() for path in paths] for kcode, paths in folders.items()}


@pytest.mark.parametrize("name", ["K-000059", "k-000059", "K59", "59", "000059"])
def test_any_spelling_of_the_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    assert found(tmp_path) == {"K-000059": [name]}


def test_aihub_tree(tmp_path):
    for folder in (
        "단일경구약제 5000종/TS_1_단일/K-000059",
        "단일경구약제 5000종/VS_1_단일/K-000059",
        "단일경구약제 5000종/TS_2_단일/K-030864",
        "단일경구약제 5000종/TS_2_단일/K-777777",
        "단일경구약제 5000종/TL_1_단일/K-000059_json",
        "경구약제조합 5000종/TS_1_조합/K-000059-030864-016551-031705",
    ):
        (tmp_path / folder).mkdir(parents=True)
    assert found(tmp_path) == {
        "K-000059": ["단일경구약제 5000종/TS_1_단일/K-000059", "단일경구약제 5000종/VS_1_단일/K-000059"],
        "K-030864": ["단일경구약제 5000종/TS_2_단일/K-030864"],
    }


def test_folders_of_other_drugs_are_not_entered(tmp_path):
    (tmp_path / "K-777777" / "K-000059").mkdir(parents=True)
    (tmp_path / "2024" / "K-030864").mkdir(parents=True)
    assert found(tmp_path) == {"K-030864": ["2024/K-030864"]}


def test_links_in_a_circle_end_and_count_once(tmp_path):
    (tmp_path / "a" / "K-000059").mkdir(parents=True)
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "a" / "K59").symlink_to(tmp_path / "a" / "K-000059")
    assert found(tmp_path) == {"K-000059": ["a/K-000059"]}


def test_the_output_inside_the_source_is_left_out(tmp_path):
    source = tmp_path / "K-000059"
    source.mkdir()
    (tmp_path / "out" / "studio").mkdir(parents=True)
    (tmp_path / "out" / "studio" / "K-000059").symlink_to(source)
    assert found(tmp_path, skip=tmp_path / "out") == {"K-000059": ["K-000059"]}
    with pytest.raises(DataError, match="at once"):
        find_drug_folders(tmp_path, WANTED, skip=tmp_path)


def test_missing_folder_and_no_drug_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_drug_folders(tmp_path / "none", WANTED)
    with pytest.raises(DataError, match="no folder of any of the 2 drugs"):
        find_drug_folders(tmp_path, WANTED)


def test_pictures_of_a_folder(tmp_path, tiny):
    for name in ("b.PNG", "a.jpg", "deep/c.jpeg", "deep/K_json/no.png", ".hidden.jpg", "d.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "deep" / "circle").symlink_to(tmp_path)
    assert list_pictures(tmp_path) == ["a.jpg", "b.PNG", "d.webp", "deep/c.jpeg"]


def test_a_name_that_is_no_text_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    with pytest.raises(DataError, match="rename it"):
        list_pictures(tmp_path)


def test_the_folder_of_another_drug_inside_is_refused(tmp_path):
    (tmp_path / "K-000059" / "K-030864").mkdir(parents=True)
    with pytest.raises(DataError, match="lies in the folder of another"):
        list_pictures(tmp_path / "K-000059")


def test_pipes_and_links_to_themselves_are_no_pictures(tmp_path):
    folder = tmp_path / "K-000059"
    folder.mkdir()
    (folder / "a.jpg").touch()
    os.mkfifo(folder / "b.jpg")
    (folder / "loop").symlink_to("loop")
    assert list_pictures(folder) == ["a.jpg"]
