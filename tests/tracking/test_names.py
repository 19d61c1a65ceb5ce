"""What runs and metrics are called."""

from __future__ import annotations

import pytest

from pillsnap.core.evidence import Metric
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.tracking.names import of_best, of_curves, of_gate, of_test, run_name

EPOCH = {"epoch": 2.0, "train_loss": 1.0, "train_label_loss": 0.5, "val_loss": 0.3, "val_real_top1": 0.8}
EPOCH |= {"val_plain_top1": 0.7, "lr": 0.1, "images_per_s": 90.0, "train_s": 3.0, "val_s": 1.0}


def test_metrics_stand_in_sections() -> None:
    assert of_curves(EPOCH) == {
        "train/loss": 1.0,
        "train/label_loss": 0.5,
        "train/images_per_s": 90.0,
        "val/loss": 0.3,
        "val/real_top1": 0.8,
        "val/plain_top1": 0.7,
    }
    steps = {"step_loss": 1.5, "step_lr": 0.1, "step_images_per_s": 80.0}
    assert of_curves(steps) == {"train/step_loss": 1.5, "train/step_lr": 0.1}
    assert of_best(EPOCH, 2) == {"best_val_loss": 0.3, "best_val_real_top1": 0.8, "best_epoch": 2}
    measured = {"top1": Metric(value=0.9, images=10), "latency_p95_ms": Metric(value=3.0)}
    assert of_test(measured) == {"test_top1": 0.9, "test_latency_p95_ms": 3.0}
    assert of_gate(measured) == {"gate_top1": 0.9, "gate_latency_p95_ms": 3.0}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (
            {"model.backbone": "tf_efficientnet_lite0", "preprocessing.target_size": 96, "training.epochs": 3},
            "lite0 96px · 3 epochs · seed 0 · night",
        ),
        (
            {"model.backbone": "tf_efficientnetv2_s", "training.epochs": 1, "seed": 7},
            "efficientnetv2_s 512px · 1 epoch · seed 7 · night",
        ),
    ],
)
def test_names_tell_runs_apart(values: dict[str, object], name: str) -> None:
    config = ExperimentConfig.build({"name": "night", "training": {"warmup_epochs": 0}}, values, "test")
    assert run_name(config) == name
