from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from pillsnap.training.curves import draw_learning_curves


def draw(history: list[dict[str, float]], path: Path) -> None:
    draw_learning_curves(history, path)
    image = cv2.imread(str(path))
    assert image is not None
    assert min(image.shape[:2]) > 400
    assert image.std() > 8
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_curves_of_a_training(trained: SimpleNamespace, tmp_path: Path) -> None:
    draw(trained.result.history, tmp_path / "deep" / "curves.png")


@pytest.mark.parametrize("missing", ["val_real_top1", "val_studio_top1"])
def test_one_epoch_of_one_domain(trained: SimpleNamespace, tmp_path: Path, missing: str) -> None:
    first = {key: value for key, value in trained.result.history[0].items() if key != missing}
    draw([first], tmp_path / "curves.png")
