"""What happens to a whole batch on the training device: mixup or cutmix, then random erasing.

timm does the work and draws from the global generators (numpy for the mixing, ``random`` and torch for the erasing).
Knows nothing of the net. Legend: N batch, H height, W width, C channel, K class.
"""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import ExperimentConfig


def create_mixup(config: ExperimentConfig, num_classes: int) -> Mixup | None:
    """``(image_NCHW, label_N)`` → mixed images and ``share_NK``, smoothed; None where nothing is ever mixed.

    Raises:
        ConfigError: cutmix_minmax leaves no box at this size.
    """
    augmentation = config.augmentation
    if augmentation.mix_probability == 0 or (augmentation.mixup_alpha == 0 and augmentation.cutmix_alpha == 0):
        return None
    minmax = augmentation.cutmix_minmax if augmentation.cutmix_alpha > 0 else None
    size = config.preprocessing.target_size
    if minmax is not None and not int(size * minmax[0]) < int(size * minmax[1]) <= size:
        raise ConfigError(
            f"augmentation.cutmix_minmax: {list(minmax)} leaves no box to choose in an image of {size} px; "
            "the two must be shares up to 1, at least a pixel apart"
        )
    return Mixup(
        mixup_alpha=augmentation.mixup_alpha,
        cutmix_alpha=augmentation.cutmix_alpha,
        # timm takes a given range for "cutmix is on", whatever its alpha
        cutmix_minmax=minmax,
        prob=augmentation.mix_probability,
        label_smoothing=config.training.label_smoothing,
        num_classes=num_classes,
    )


def mix_in_epoch(mixup: Mixup | None, config: ExperimentConfig, epoch: int) -> None:
    """Switch the mixing off for the last ``mix_off_epochs``; ``epoch`` counts from 1.

    A switched-off Mixup gives the images as they are, and their labels smoothed: the loss of a plain batch.
    """
    if mixup is not None:
        mixup.mixup_enabled = epoch <= config.training.epochs - config.training.mix_off_epochs


def create_erasing(config: ExperimentConfig, device: torch.device) -> RandomErasing | None:
    """``image_NCHW`` → the same, in some images a box of noise; None where nothing is ever erased."""
    if config.augmentation.random_erasing == 0:
        return None
    return RandomErasing(config.augmentation.random_erasing, mode="pixel", device=device)
