"""A feature that is configured is a feature that is applied: every key of the experiment changes the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.backbone import create_net
from pillsnap.training.batches import TrainingData
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.trainer import _Trainer

BASE = {
    "data.batch_size": 24,  # four updates an epoch
    "model.drop_rate": 0.2,
    "model.drop_path_rate": 0.2,
    "training.warmup_epochs": 0.5,
    "training.weight_decay": 0.5,
    "augmentation.mix_probability": 0.6,
    "augmentation.random_erasing": 0.5,
    "augmentation.blur.probability": 0.5,
}
"""Everything on, so that a change of each value can be seen."""

CHANGED: dict[str, Any] = {
    "seed": 9,
    "preprocessing.mean": [0.5, 0.5, 0.5],
    "preprocessing.std": [0.5, 0.5, 0.5],
    "model.backbone": "resnet50",
    "model.drop_rate": 0,
    "model.drop_path_rate": 0,
    "data.batch_size": 16,
    "data.domain": "studio",
    "training.epochs": 3,
    "training.warmup_epochs": 0.25,
    "training.base_lr": 0.02,
    "training.min_lr": 0.005,
    "training.weight_decay": 0,
    "training.label_smoothing": 0,
    "training.gradient_clip": 0.1,
    "training.mixed_precision": True,
    "training.quantisation_aware": True,
    "training.accumulate": 2,
    "training.layer_decay": 0.5,
    "training.backbone_lr_scale": 0.5,
    "training.batch_norm": "keep",
    "training.freeze_epochs": 1,
    "training.ema_decay": 0.9,
    "optimizer.betas": [0.5, 0.9],
    "optimizer.eps": 0.01,
    "schedule.warmup_factor": 0.5,
    "augmentation.rotation_degrees": 0,
    "augmentation.color_jitter.brightness": 0,
    "augmentation.color_jitter.contrast": 0,
    "augmentation.color_jitter.saturation": 0,
    "augmentation.color_jitter.hue": 0,
    "augmentation.random_crop.scale": [0.5, 0.6],
    "augmentation.random_crop.ratio": [1, 1],
    "augmentation.blur.probability": 0,
    "augmentation.blur.kernel": 3,
    "augmentation.blur.sigma": [2, 3],
    "augmentation.random_erasing": 0,
    "augmentation.mixup_alpha": 0,
    "augmentation.cutmix_alpha": 0,
    "augmentation.cutmix_minmax": [0.1, 0.3],
    "augmentation.mix_probability": 0,
}
"""Key → another value, with which the weights after one epoch must be others."""

CHANGED_WITH_A_TEACHER: dict[str, Any] = {
    "distillation.teacher": "other.pt",
    "distillation.weight": 0.4,
    "distillation.temperature": 5,
}
"""The same, where the base has a teacher too."""

TESTED_ELSEWHERE = {
    "name": "tracking: the name of the run",
    "preprocessing.target_size": "data: the cache has this size",
    "preprocessing.interpolation": "core: test_preprocessing",
    "preprocessing.decoding": "core: test_preprocessing",
    "preprocessing.clahe.enabled": "core: test_preprocessing",
    "preprocessing.clahe.clip_limit": "core: test_preprocessing",
    "preprocessing.clahe.tile_grid": "core: test_preprocessing",
    "model.pretrained": "test_backbone",
    "model.weights": "test_backbone, test_weights",
    "model.kwargs.layers": "test_backbone",
    "model.kwargs.channels": "test_backbone",
    "model.kwargs.stem_width": "test_backbone",
    "data.workers": "test_batches: must change nothing",
    "data.pin_memory": "test_batches: must change nothing",
    "data.persistent_workers": "test_batches: must change nothing",
    "training.compile": "test_update: must change nothing",
    "training.mix_off_epochs": "test_mixing: the first epoch is mixed whatever it is",
    "optimizer.name": "one value only",
    "schedule.name": "one value only",
    "checkpoints.every_epochs": "test_checkpoint",
    "checkpoints.keep_best": "test_checkpoint",
    "logging.every_steps": "test_trainer",
}


@pytest.fixture
def weights_after_an_epoch(
    data: TrainingData,
    tiny_config: Callable[..., ExperimentConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[dict[str, Any]], torch.Tensor]:
    monkeypatch.setattr("pillsnap.training.device._cpu_computes_bf16", lambda: True)  # on every machine
    observer = SimpleNamespace(on_step=lambda *_: None, on_epoch=lambda *_: None)

    def train(overrides: dict[str, Any]) -> torch.Tensor:
        config = tiny_config({**BASE, **overrides})
        trainer = _Trainer(config, TrainingData.of(data.manifest, data.cache, config), tmp_path, observer)
        trainer._train_epoch(1)
        return torch.cat([value.detach().flatten() for value in trainer._judged_net().parameters()])

    return train


@pytest.fixture(scope="module")
def base_weights() -> dict[str, torch.Tensor]:
    """Filled by the first test that needs it."""
    return {}


@pytest.fixture(scope="module")
def teachers(
    tiny_config: Callable[..., ExperimentConfig], data: TrainingData, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with ``teacher.pt`` and ``other.pt``."""
    folder, config = tmp_path_factory.mktemp("teachers"), tiny_config()
    for seed, name in enumerate(("teacher.pt", "other.pt")):
        torch.manual_seed(seed)
        state = create_net(config.model, config.preprocessing, 6).state_dict()
        manifest = data.manifest
        Checkpoint(config, manifest.catalog.kcodes, manifest.hash, 1, {"val_top1": 0.5}, state).save(folder / name)
    return folder


@pytest.mark.parametrize(("key", "value"), CHANGED.items())
def test_the_key_reaches_the_weights(
    weights_after_an_epoch: Callable[[dict[str, Any]], torch.Tensor],
    base_weights: dict[str, torch.Tensor],
    key: str,
    value: Any,
) -> None:
    if not base_weights:
        base_weights["base"] = weights_after_an_epoch({})
        assert torch.equal(weights_after_an_epoch({}), base_weights["base"])  # else a difference would say nothing
    assert not torch.equal(weights_after_an_epoch({key: value}), base_weights["base"])


@pytest.mark.parametrize(("key", "value"), CHANGED_WITH_A_TEACHER.items())
def test_the_key_of_the_teacher_reaches_the_weights(
    weights_after_an_epoch: Callable[[dict[str, Any]], torch.Tensor],
    base_weights: dict[str, torch.Tensor],
    teachers: Path,
    key: str,
    value: Any,
) -> None:
    teacher = {"distillation.teacher": str(teachers / "teacher.pt")}
    if "taught" not in base_weights:
        base_weights["taught"] = weights_after_an_epoch(teacher)
        assert torch.equal(weights_after_an_epoch(teacher), base_weights["taught"])
        assert not torch.equal(weights_after_an_epoch({}), base_weights["taught"]), "a teacher changes the weights"
    changed = {**teacher, key: str(teachers / value) if isinstance(value, str) else value}
    assert not torch.equal(weights_after_an_epoch(changed), base_weights["taught"])


def test_every_key_is_proven(tiny_config: Callable[..., ExperimentConfig]) -> None:
    config = tiny_config({"distillation.teacher": "teacher.pt"})
    keys = {key for key in config.flat() if not key.startswith("tuning.")}
    assert keys == CHANGED.keys() | CHANGED_WITH_A_TEACHER.keys() | TESTED_ELSEWHERE.keys()
