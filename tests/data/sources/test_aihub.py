import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from pillsnap.core.errors import DataError
from pillsnap.data.names import Condition
from pillsnap.data.sources import AiHubSource

trees = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "trees.py")))
ONE, TWO = "K-000059", "K-010224"
BOX = [10, 20, 30, 40]


def pictures(root, kcode, **options):
    source = AiHubSource(root, **options)
    found = source.folders([ONE, TWO])
    return [
        picture
        for number, folder in enumerate(found.get(kcode, ()), start=1)
        for picture in source.pictures(folder, kcode, f"studio/{kcode}/{number}")
    ]


def test_pictures_of_training_and_validation_find_their_labels(tmp_path):
    training = trees.single(tmp_path, ONE, trees.name(ONE, 2, 1, 340, 75), BOX)
    stem = trees.name(ONE)
    validation = trees.write(tmp_path / trees.SINGLE / "VS_1_단일" / ONE / f"{stem}.png", b"")
    label = trees.write(tmp_path / trees.SINGLE / "VL_1_단일" / f"{ONE}_json" / f"{stem}.json", "{}")
    first, second = pictures(tmp_path, ONE)
    assert (first.path, first.source) == (f"studio/{ONE}/1/{training.name}", training)
    assert first.condition == Condition(background=2, light=1, side=1, elevation=75, rotation=340)
    assert first.label is not None
    assert first.label.parent.parent.name == "TL_1_단일"
    assert (second.source, second.label) == (validation, label)
    assert not first.combination


def test_a_plain_tree_without_labels(tmp_path):
    trees.write(tmp_path / ONE / "any name.jpeg", b"")
    (picture,) = pictures(tmp_path, ONE)
    assert (picture.label, picture.condition) == (None, None)


def test_labels_are_found_however_the_code_is_spelled(tmp_path):
    stem = trees.name(ONE)
    trees.write(tmp_path / "pictures" / "k59" / f"{stem}.png", b"")
    label = trees.write(tmp_path / "labels" / "000059_json" / f"{stem}.json", "{}")
    assert pictures(tmp_path, ONE)[0].label == label


def test_combinations_only_when_asked(tmp_path):
    trees.single(tmp_path, ONE, trees.name(ONE), BOX)
    shown = trees.combined(tmp_path, trees.name(trees.COMBINATION), {ONE: BOX, TWO: [1, 2, 3, 4]})
    assert [one.source.name for one in pictures(tmp_path, ONE)] == [f"{trees.name(ONE)}.png"]
    assert pictures(tmp_path, TWO) == []
    for kcode in (ONE, TWO):
        both = [one for one in pictures(tmp_path, kcode, combinations=True) if one.combination]
        assert [one.source for one in both] == [shown]
        assert both[0].label is not None
        assert both[0].label.parent.name == kcode
        assert both[0].condition == Condition(0, 1, 0, 90, 0)


def test_labels_of_a_combination_beside_each_other(tmp_path):
    stem = trees.name(trees.COMBINATION)
    trees.write(tmp_path / trees.COMBINATION / f"{stem}.png", b"")
    folder = tmp_path / f"{trees.COMBINATION}_json"
    for kcode in (ONE, TWO):
        trees.write(folder / f"{stem}_{kcode}.json", "{}")
    (picture,) = pictures(tmp_path, TWO, combinations=True)
    assert picture.label == folder / f"{stem}_{TWO}.json"


def test_two_labels_of_one_picture_are_refused(tmp_path):
    trees.single(tmp_path, ONE, trees.name(ONE), BOX)
    again = tmp_path / "copy" / f"{ONE}_json" / f"{trees.name(ONE)}.json"
    trees.write(again, "{}")
    with pytest.raises(DataError, match=r"labels the same picture as .*keep one"):
        pictures(tmp_path, ONE)
