from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.mixing import create_erasing, create_mixup, mix_in_epoch
from pillsnap.training.trainer import _Trainer

ALWAYS_MIXED = {"augmentation.mix_probability": 1, "augmentation.mixup_alpha": 1, "augmentation.cutmix_alpha": 1}


def test_the_last_epochs_are_unmixed(
    trainer: Callable[[dict[str, Any]], _Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the trainer: what the loss gets as its target, epoch by epoch."""
    built = trainer({**ALWAYS_MIXED, "training.epochs": 4, "training.mix_off_epochs": 2})
    mixed: list[bool] = []
    cross_entropy = F.cross_entropy

    def spy(logits: torch.Tensor, target: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        mixed.append(target.ndim == 2 and bool((target.max(1).values < 1).any()))
        return cross_entropy(logits, target, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", spy)
    for epoch in range(1, 5):
        built._train_epoch(epoch)
    assert mixed == [True] * 12 + [False] * 12  # six updates an epoch


def test_off_the_pixels_stay_and_the_labels_are_smoothed(tiny_config: Callable[..., ExperimentConfig]) -> None:
    config = tiny_config({**ALWAYS_MIXED, "training.mix_off_epochs": 1, "training.label_smoothing": 0.3})
    mixup = create_mixup(config, 6)
    mix_in_epoch(mixup, config, epoch=2)
    image_NCHW = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert mixup is not None
    found, share_NK = mixup(image_NCHW.clone(), torch.tensor([0, 1, 2, 3]))
    assert torch.equal(found, image_NCHW)
    torch.testing.assert_close(share_NK, 0.7 * torch.eye(4, 6) + 0.3 / 6)
    mix_in_epoch(mixup, config, epoch=1)
    np.random.seed(0)  # noqa: NPY002
    assert not torch.equal(mixup(image_NCHW.clone(), torch.tensor([0, 1, 2, 3]))[0], image_NCHW)


def test_without_mixing_there_is_nothing_to_switch(tiny_config: Callable[..., ExperimentConfig]) -> None:
    config = tiny_config({"augmentation.mix_probability": 0})
    assert create_mixup(config, 6) is None
    mix_in_epoch(None, config, epoch=1)


def test_mixing_cannot_be_configured_and_always_off(tiny_config: Callable[..., ExperimentConfig]) -> None:
    with pytest.raises(ConfigError, match=r"mix_off_epochs \(2\) must be fewer than epochs \(2\)"):
        tiny_config({"training.mix_off_epochs": 2})


def test_erasing_is_off_at_probability_0(tiny_config: Callable[..., ExperimentConfig]) -> None:
    assert create_erasing(tiny_config({"augmentation.random_erasing": 0}), torch.device("cpu")) is None


@pytest.mark.parametrize(("alpha", "middle"), [(0.1, (0.0, 0.4)), (1, (0.35, 0.65)), (20, (0.95, 1.0))])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_alpha_is_how_evenly_two_images_are_mixed(
    tiny_config: Callable[..., ExperimentConfig], kind: str, alpha: float, middle: tuple[float, float]
) -> None:
    """The share of batches that are mixed about half and half: few at a small alpha, nearly all at a large one."""
    other = {"mixup": "cutmix", "cutmix": "mixup"}[kind]
    values = {f"augmentation.{kind}_alpha": alpha, f"augmentation.{other}_alpha": 0, "augmentation.cutmix_minmax": None}
    mixup = create_mixup(tiny_config({"augmentation.mix_probability": 1, **values}), 6)
    assert mixup is not None
    np.random.seed(0)  # noqa: NPY002
    drawn = np.array([mixup._params_per_batch() for _ in range(300)])
    assert (drawn[:, 1] == (kind == "cutmix")).all()
    low, high = middle
    assert low <= np.mean(np.abs(drawn[:, 0] - 0.5) < 0.25) <= high
