"""The first training images as a picture, as the net sees them: augmented, mixed, erased, with the labels they have.

A person who looks at it sees whether the labels survive the augmentation. Changes no generator of random numbers.
Legend: N batch, H height, W width, C channel, K class.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pillsnap.core.catalog import Catalog
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import writing_beside
from pillsnap.training.batches import AugmentedImages, TrainingData
from pillsnap.training.mixing import create_erasing, create_mixup

_BATCHES = 4
_LOOKED_AT = 24
"""timm mixes all images of a batch in one way: half of those that are shown are mixed, if so many are."""
_IMAGES = 8
"""Of each batch; even, as mixing takes pairs."""
_HANGUL_FONTS = ("NanumGothic", "NanumBarunGothic", "NotoSansCJK-Regular", "NotoSansKR-Regular", "malgun")
"""File names, in the order of liking."""
_SHOWN_SHARE = 0.005


def draw_samples(config: ExperimentConfig, data: TrainingData, path: Path) -> None:
    """Write a PNG of augmented training images with K-CODE and name; mixed ones with the share of each label.

    Raises:
        ConfigError: cutmix_minmax leaves no box at this size.
    """
    batches = _choose(list(sample_batches(config, data)))
    hangul = _hangul_font()
    names = _names(data.manifest.catalog, hangul is not None)
    font = font_manager.FontProperties(fname=hangul, size=7.5)
    columns = len(batches[0][0])
    figure = Figure(figsize=(2.1 * columns, 2.75 * len(batches)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(batches), columns, squeeze=False)
    for row, (image_NHWC_u8, share_NK) in zip(grid, batches, strict=True):
        for axes, image_HWC_u8, share_K in zip(row, image_NHWC_u8, share_NK, strict=True):
            axes.imshow(image_HWC_u8)
            axes.set_axis_off()
            axes.set_title(label_text(share_K, names), fontproperties=font, loc="left")
    with writing_beside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def sample_batches(
    config: ExperimentConfig, data: TrainingData
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """``image_NHWC_u8`` (de-normalised) and ``share_NK`` (without smoothing) of some images of the first epoch."""
    rows = np.random.default_rng((config.seed, 1)).permutation(data.train_indices)
    images = min(_IMAGES, len(rows) // 2 * 2)
    dataset = AugmentedImages(data, config.augmentation, config.seed)
    classes = len(data.manifest.catalog.drugs)
    with _own_generators(config.seed):
        mixup = create_mixup(config, classes)
        erasing = create_erasing(config, torch.device("cpu"))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.preprocessing.mean, config.preprocessing.std))
        for start in range(0, min(_LOOKED_AT * images, len(rows) // images * images), images):
            items = [dataset[(1, int(row))] for row in rows[start : start + images]]
            label_N = torch.tensor([label for _, label in items])
            image = torch.stack([image for image, _ in items]).permute(0, 3, 1, 2).float() / 255
            image = (image - mean) / std
            share_NK: Tensor = F.one_hot(label_N, classes).float()
            if mixup is not None:
                image, smoothed_NK = mixup(image, label_N)
                share_NK = _without_smoothing(smoothed_NK, config.training.label_smoothing)
            if erasing is not None:
                image = erasing(image)
            shown = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            yield shown.numpy(), share_NK.numpy()


def label_text(share_K: NDArray[np.float32], names: list[str]) -> str:
    """The labels of an image, the largest share first; a share is told where there are several."""
    order = [int(k) for k in np.argsort(-share_K, kind="stable") if share_K[k] > _SHOWN_SHARE]
    if len(order) == 1:
        return names[order[0]]
    return "\n".join(f"{share_K[k]:.0%} {names[k]}" for k in order)


def _choose(
    batches: list[tuple[NDArray[np.uint8], NDArray[np.float32]]],
) -> list[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """The first batches, half of them mixed where there are so many."""
    mixed = [batch for batch in batches if batch[1].max(axis=1).min() < 1 - _SHOWN_SHARE]
    plain = [batch for batch in batches if batch[1].max(axis=1).min() >= 1 - _SHOWN_SHARE]
    shown_mixed = max(min(len(mixed), _BATCHES // 2), min(len(mixed), _BATCHES - len(plain)))
    return plain[: _BATCHES - shown_mixed] + mixed[:shown_mixed]


def _without_smoothing(share_NK: Tensor, smoothing: float) -> Tensor:
    return (share_NK - smoothing / share_NK.shape[1]) / (1 - smoothing)


def _names(catalog: Catalog, with_hangul: bool) -> list[str]:
    """K-CODE and name of each class; a name that no font here can draw is left out."""
    return [
        f"{drug.kcode} {_short(drug.drug_name)}" if with_hangul or drug.drug_name.isascii() else drug.kcode
        for drug in catalog.drugs
    ]


def _short(name: str) -> str:
    return name if len(name) <= 11 else name[:10] + "…"


def _hangul_font() -> Path | None:
    here = {Path(path).stem: Path(path) for path in font_manager.findSystemFonts()}
    return next((here[name] for name in _HANGUL_FONTS if name in here), None)


@contextmanager
def _own_generators(seed: int) -> Iterator[None]:
    """timm draws from the global generators: seeded here, and put back as they were."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(state)
