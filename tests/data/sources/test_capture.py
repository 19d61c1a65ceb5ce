import pytest

from pillsnap.data.names import Condition
from pillsnap.data.sources import CaptureSource
from pillsnap.data.sources.base import DrugFolder


def conditions(folder):
    found = CaptureSource(folder.parent).pictures(DrugFolder(folder), "K-030864", "real_photos/K-030864")
    return {picture.source.name: picture.condition for picture in found}


@pytest.mark.parametrize("side", ["1", "back", "Back"])
def test_both_spellings_of_the_side(tmp_path, side):
    name = f"K-030864_4_2_{side}_0_90_315_200.JPG"
    (tmp_path / name).touch()
    assert conditions(tmp_path) == {name: Condition(background=4, light=2, side=1, elevation=90, rotation=315)}


def test_a_photo_with_another_name_is_taken_and_tells_no_conditions(tmp_path):
    (tmp_path / "IMG_0001.HEIC").touch()
    assert conditions(tmp_path) == {"IMG_0001.HEIC": None}
