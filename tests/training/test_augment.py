from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.experiment import AugmentationConfig, ExperimentConfig
from pillsnap.training.augment import augment

SIDE = 32


class Highest:
    """Draws the highest value of each range."""

    def uniform(self, low: float, high: float) -> float:
        return high

    def random(self) -> float:
        return 0.0


@pytest.fixture
def only(squares: SimpleNamespace) -> Any:
    """``only({key: value})``: an augmentation with everything else off."""

    def build(values: dict[str, Any]) -> AugmentationConfig:
        dotted = {f"augmentation.{key}": value for key, value in values.items()}
        return squares.tiny_config({**squares.OFF, **dotted}).augmentation

    return build


def picture(seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(30, 200, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def plain(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), color, np.uint8)


def saturation(image: np.ndarray) -> float:
    return float((image.max(axis=2).astype(float) - image.min(axis=2)).mean())


@pytest.mark.parametrize("seed", range(5))
def test_everything_off_is_the_identity(only: Any, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(augment(image, only({}), np.random.default_rng(seed)), image)


@pytest.mark.parametrize(
    "values",
    [
        {"rotation_degrees": 30},
        {"color_jitter.brightness": 0.2},
        {"color_jitter.contrast": 0.2},
        {"color_jitter.saturation": 0.2},
        {"color_jitter.hue": 0.1},
        {"random_crop.scale": [0.8, 0.9]},
        {"random_crop.ratio": [0.8, 0.9]},
        {"blur.probability": 1},
    ],
    ids=str,
)
def test_each_key_alone_changes_the_pixels_and_nothing_else(only: Any, values: dict[str, Any]) -> None:
    image = picture()
    before = image.copy()
    versions = [augment(image, only(values), np.random.default_rng(seed)) for seed in range(4)]
    for version in versions:
        assert (version.shape, version.dtype) == (image.shape, np.uint8)
        assert np.any(version != image)
    assert any(np.any(version != versions[0]) for version in versions[1:])
    again = augment(image, only(values), np.random.default_rng(0))
    np.testing.assert_array_equal(again, versions[0])
    np.testing.assert_array_equal(image, before)


@given(seed=st.integers(0, 2**32), side=st.integers(16, 40))
def test_the_reference_keeps_shape_and_type(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (side, side, 3), np.uint8)
    version = augment(image, ExperimentConfig().augmentation, rng)
    assert (version.shape, version.dtype) == (image.shape, np.uint8)
    assert version.flags.c_contiguous


def test_rotation_turns_by_the_given_degrees(only: Any) -> None:
    image = picture()
    turned = augment(image, only({"rotation_degrees": 90}), Highest())  # type: ignore[arg-type]
    np.testing.assert_array_equal(turned, np.rot90(image, k=1))


def test_rotation_stays_within_the_given_degrees(only: Any) -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[15:17, 4:28] = 255  # a bar that lies
    angles = []
    for seed in range(30):
        version = augment(image, only({"rotation_degrees": 20}), np.random.default_rng(seed))
        rows, columns = np.nonzero(version[:, :, 0] > 128)
        angles.append(np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0])))
    assert -21 < min(angles) < -12
    assert 12 < max(angles) < 21


def test_crop_shows_the_given_share_of_the_area(only: Any) -> None:
    image = picture()
    crop = augment(image, only({"random_crop.scale": [0.25, 0.25]}), Highest())  # type: ignore[arg-type]
    quarter = cv2.resize(image[16:, 16:], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    assert np.abs(crop[2:-2, 2:-2].astype(int) - quarter[2:-2, 2:-2]).max() <= 3


def test_crop_ratio_is_width_to_height(only: Any) -> None:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[20:28, 12:20] = 255
    config = only({"random_crop.scale": [0.5, 0.5], "random_crop.ratio": [2, 2]})
    rows, columns = np.nonzero(augment(image, config, Highest())[:, :, 0] > 128)  # type: ignore[arg-type]
    # the whole width and the lower half of the height: the square comes out twice as high as wide
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (16, 8)


def test_brightness_scales_the_mean(only: Any) -> None:
    bright = augment(picture(), only({"color_jitter.brightness": 0.2}), Highest())  # type: ignore[arg-type]
    assert bright.mean() == pytest.approx(1.2 * picture().mean(), rel=0.01)


def test_contrast_keeps_the_mean_and_spreads(only: Any) -> None:
    image = plain((100, 100, 100))
    image[:, 16:] = 150
    spread = augment(image, only({"color_jitter.contrast": 0.2}), Highest())  # type: ignore[arg-type]
    assert spread.mean() == pytest.approx(125, abs=1)
    assert spread.std() == pytest.approx(1.2 * image.std(), rel=0.03)


def test_saturation_leaves_grey_and_drives_colours_apart(only: Any) -> None:
    config = only({"color_jitter.saturation": 0.5})
    np.testing.assert_array_equal(augment(plain((90, 90, 90)), config, Highest()), plain((90, 90, 90)))
    assert saturation(augment(picture(), config, Highest())) > 1.3 * saturation(picture())


def test_hue_leaves_grey_and_turns_red_into_green(only: Any) -> None:
    config = only({"color_jitter.hue": 1 / 3})
    np.testing.assert_array_equal(augment(plain((90, 90, 90)), config, Highest()), plain((90, 90, 90)))
    red, green, blue = augment(plain((200, 0, 0)), config, Highest())[0, 0]
    assert (green, blue) == (200, 0)
    assert red < 10


def test_blur_has_probability_kernel_and_sigma(only: Any) -> None:
    image = picture()
    values = {"blur.probability": 1, "blur.kernel": 3, "blur.sigma": [0.7, 0.7]}
    blurred = augment(image, only(values), np.random.default_rng(0))
    np.testing.assert_array_equal(blurred, cv2.GaussianBlur(image, (3, 3), 0.7))
    half = only({**values, "blur.probability": 0.5})
    versions = [augment(image, half, np.random.default_rng(seed)) for seed in range(60)]
    assert 15 <= sum(np.any(version != image) for version in versions) <= 45
