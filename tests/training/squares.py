"""Builders for the tests of training and exporting: pictures of coloured squares, and a net that learns them fast.

Each picture is a coloured square of random size and place on a grey, noisy ground; the colour is the class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pillsnap.core.catalog import Catalog, Drug, TrainingWeight
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.files import sha256_bytes
from pillsnap.core.manifest import ROW_SCHEMA, Manifest

SIDE = 32
COLORS = np.asarray([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (200, 40, 200), (40, 200, 200)])
PER_CLASS = {"train": 16, "val": 4, "test": 4}
"""Images of one class; half of them real photos, half studio."""

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
"""No augmentation at all."""

PLAIN = {
    **OFF,
    "model.drop_rate": 0,
    "model.drop_path_rate": 0,
    "training.warmup_epochs": 0,
    "training.label_smoothing": 0,
    "training.gradient_clip": None,
    "training.weight_decay": 0,
}
"""Nothing between the pixels and the loss either."""


def tiny_config(overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    """A ResNet of 90,000 weights on 32 px images, on the CPU, without worker processes."""
    document = {
        "name": "tiny",
        "seed": 1,
        "preprocessing": {"target_size": SIDE, "clahe": {"enabled": False}},
        "model": {
            "backbone": "resnet18",
            "pretrained": False,
            "drop_rate": 0.1,
            "drop_path_rate": 0.1,
            "kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64], "stem_width": 8},
        },
        "data": {"batch_size": 16, "workers": 0},
        "training": {"epochs": 2, "warmup_epochs": 0.5, "base_lr": 0.01, "mixed_precision": False},
    }
    return ExperimentConfig.build(document, overrides, "tiny")


def save_squares(
    root: Path,
    per_class: dict[str, int] | None = None,
    weights: tuple[float, ...] = (),
    retired: tuple[int, ...] = (),
) -> Manifest:
    """A manifest of PNG pictures, saved; ``weights``: of the first classes, in the loss; no pictures of ``retired``."""
    rng = np.random.default_rng(0)
    catalog = Catalog(
        version="toy",
        drugs=tuple(
            Drug(
                kcode=f"K-{990001 + k}",
                drug_name=f"가상정{k}",
                manufacturer="가상제약",
                retired=k in retired,
                training_config=TrainingWeight(weight=weights[k] if k < len(weights) else 1.0),
            )
            for k in range(len(COLORS))
        ),
    )
    rows: list[dict[str, Any]] = []
    for split, count in (per_class or PER_CLASS).items():
        for label in (k for k in range(len(COLORS)) if k not in retired):
            for number in range(count):
                data = _picture(rng, label)
                path = root / "images" / f"{split}-{label}-{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                rows.append(
                    {
                        **dict.fromkeys(ROW_SCHEMA.names),
                        "path": path.relative_to(root).as_posix(),
                        "kcode": catalog.kcodes[label],
                        "label": label,
                        "split": split,
                        "domain": "studio" if number % 2 else "real",
                        "group": path.stem,
                        "sha256": sha256_bytes(data),
                    }
                )
    manifest = Manifest.build(root, {"name": "squares"}, pa.Table.from_pylist(rows, ROW_SCHEMA), catalog)
    manifest.save()
    return manifest


def _picture(rng: np.random.Generator, label: int) -> bytes:
    picture_rgb = rng.normal(120, 12, (SIDE, SIDE, 3))
    side = rng.integers(14, 22)
    top, left = rng.integers(2, SIDE - side - 1, 2)
    picture_rgb[top : top + side, left : left + side] = COLORS[label] + rng.normal(0, 12, 3)
    picture_u8 = np.clip(picture_rgb, 0, 255).astype(np.uint8)
    return cv2.imencode(".png", picture_u8[:, :, ::-1])[1].tobytes()
