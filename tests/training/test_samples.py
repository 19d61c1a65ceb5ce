"""The picture of augmented images: what the net sees, with the labels that it has."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training import samples
from pillsnap.training.batches import TrainingData
from pillsnap.training.samples import draw_samples, label_text, sample_batches

OFF = {
    "augmentation.rotation_degrees": 0,
    "augmentation.color_jitter.brightness": 0,
    "augmentation.color_jitter.contrast": 0,
    "augmentation.color_jitter.saturation": 0,
    "augmentation.color_jitter.hue": 0,
    "augmentation.random_crop.scale": [1, 1],
    "augmentation.random_crop.ratio": [1, 1],
    "augmentation.blur.probability": 0,
    "augmentation.random_erasing": 0,
    "augmentation.mix_probability": 0,
}
Build = Callable[..., ExperimentConfig]


def test_without_augmentation_the_pixels_are_those_of_the_cache(tiny_config: Build, data: TrainingData) -> None:
    for image_NHWC_u8, share_NK in sample_batches(tiny_config(OFF), data):
        label_N = share_NK.argmax(axis=1)
        assert (share_NK.max(axis=1) == 1).all()
        for image, label in zip(image_NHWC_u8, label_N, strict=True):
            rows = data.train_indices[data.labels_N[data.train_indices] == label]
            assert any(np.array_equal(image, data.cache.images_NHWC_u8[row]) for row in rows), "of its own class"


def test_mixed_images_have_the_shares_of_their_labels(tiny_config: Build, data: TrainingData) -> None:
    mixing = {"mix_probability": 1.0, "mixup_alpha": 1.0, "cutmix_alpha": 0.0}
    mixed = {**OFF, **{f"augmentation.{key}": value for key, value in mixing.items()}}
    plain = list(sample_batches(tiny_config(OFF), data))
    smoothed = {"training.label_smoothing": 0.2}
    for (before, label_NK), (after, share_NK) in zip(
        plain, sample_batches(tiny_config({**mixed, **smoothed}), data), strict=True
    ):
        np.testing.assert_allclose(share_NK.sum(axis=1), 1, atol=1e-5)
        differing = (label_NK != label_NK[::-1]).any(axis=1)
        share = share_NK[differing][np.arange(differing.sum()), label_NK[differing].argmax(axis=1)]
        expected = share[0] * before[differing] + (1 - share[0]) * before[::-1][differing]
        np.testing.assert_allclose(share, share[0], atol=1e-5)
        assert np.abs(after[differing] - expected).max() <= 1.5, "what is drawn is what the label says"


def test_the_training_draws_the_same_numbers_with_and_without_the_picture(
    tiny_config: Build, data: TrainingData, tmp_path: Path
) -> None:
    config = tiny_config({"augmentation.random_erasing": 0.5, "augmentation.mix_probability": 0.5})
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    draw_samples(config, data, tmp_path / "deep" / "augmented.png")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    image = cv2.imread(str(tmp_path / "deep" / "augmented.png"))
    assert image is not None
    assert image.std() > 8
    first = (tmp_path / "deep" / "augmented.png").read_bytes()
    draw_samples(config, data, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == first


def test_half_of_the_batches_that_are_shown_are_mixed(tiny_config: Build, data: TrainingData) -> None:
    batches = list(sample_batches(tiny_config({"augmentation.mix_probability": 0.5}), data))
    shown = samples._choose(batches)
    mixed = [bool((share_NK.max(axis=1) < 0.99).any()) for _, share_NK in shown]
    assert mixed == [False, False, True, True]


def test_without_a_font_for_hangul_the_codes_stand_alone(
    tiny_config: Build, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_HANGUL_FONTS", ("no such font",))
    draw_samples(tiny_config(OFF), data, tmp_path / "augmented.png")  # a warning of a missing glyph would be an error
    assert not any("가" in name for name in samples._names(data.manifest.catalog, with_hangul=False))


def test_the_text_of_a_label() -> None:
    names = ["K-1 a", "K-2 b", "K-3 c"]
    assert label_text(np.array([0, 1, 0], np.float32), names) == "K-2 b"
    assert label_text(np.array([0.25, 0, 0.75], np.float32), names) == "75% K-3 c\n25% K-1 a"
