"""What each part of a fine-tuning from published weights is worth, on photos of one's own.

    python benchmarks/finetuning.py MANIFEST_DIR --seeds 0 1 2
    python benchmarks/finetuning.py MANIFEST_DIR --rows "weights averaged" --set data.domain=studio
    python benchmarks/finetuning.py MANIFEST_DIR --rows "weights averaged" --set preprocessing.target_size=96

Each row adds one part to the row before it; the last one is the experiment as it stands. Every run is the trainer's own
(`fit`), its best checkpoint answers the test split, and test photos count by whether they are real. The first loss is
that of the first update: ln K where a classifier knows nothing yet.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pillsnap.core.experiment import ExperimentConfig, parse_override
from pillsnap.core.manifest import Manifest
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import TrainingData, plain_batches
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.trainer import FitResult, fit

_ONE_RATE = {
    "training.backbone_lr_scale": 1.0,
    "training.base_lr": 1e-3,
    "training.freeze_epochs": 0,
    "training.ema_decay": None,
}
ROWS: dict[str, tuple[bool, dict[str, Any]]] = {
    "timm's classifier, norms learn, one rate": (False, {"training.batch_norm": "train", **_ONE_RATE}),
    "small classifier": (True, {"training.batch_norm": "train", **_ONE_RATE}),
    "norms kept": (True, _ONE_RATE),
    "own rates": (True, {"training.freeze_epochs": 0, "training.ema_decay": None}),
    "head first": (True, {"training.ema_decay": None}),
    "weights averaged": (True, {}),
}
"""Name → whether a new classifier starts small, and what differs from the experiment."""


class _FirstLoss:
    """An observer that keeps the loss of the first update."""

    def __init__(self) -> None:
        self.loss = float("nan")

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if step == 1:
            self.loss = metrics["step_loss"]

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None: ...

    def on_resume(self, epoch: int, step: int) -> None: ...


def test_shares(result: FitResult, data: TrainingData) -> dict[str, float]:
    """Top-1 of the best checkpoint on the test photos, of all and of the real ones."""
    rows = np.flatnonzero(np.asarray(data.manifest.rows["split"].to_pylist()) == "test")
    net = Checkpoint.load(result.best_checkpoint).build_net()
    with torch.inference_mode():
        answer_N = torch.cat([net(image).argmax(1) for image, _ in plain_batches(data, rows, 64)]).numpy()
    right_N = answer_N == data.labels_N[rows]
    return {"test": float(right_N.mean()), "test real": float(right_N[data.is_real_N[rows]].mean())}


def run(config: ExperimentConfig, manifest: Manifest, cache: Path, small: bool) -> dict[str, float]:
    """One training; its figures and CPU-seconds."""
    data = TrainingData.of(manifest, PreparedCache.build(manifest, config.preprocessing, cache), config)
    observer, started = _FirstLoss(), time.process_time()
    as_timm: Callable[..., None] = lambda backbone: None  # noqa: E731
    start = nullcontext() if small else mock.patch("pillsnap.training.weights.start_classifier_small", as_timm)
    with tempfile.TemporaryDirectory() as folder, start:
        result = fit(config, data, Path(folder), observer)
        shares = test_shares(result, data)
    best = result.best_metrics
    return {
        "first loss": observer.loss,
        "validation real": best.get("val_real_top1", float("nan")),
        **shares,
        "CPU-s": time.process_time() - started,
    }


def main() -> None:
    """Train all rows with all seeds, print a line a training and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with manifest.json")
    parser.add_argument("--config", type=Path, default=Path("experiments/few-photos.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=Path("workspace/cache"))
    args = parser.parse_args()
    manifest = Manifest.load(args.data)
    given = {"logging.every_steps": 1, "data.workers": 0, **dict(parse_override(text) for text in args.settings)}
    found: dict[str, list[dict[str, float]]] = {}
    for name in args.rows:
        small, row = ROWS[name]
        for seed in args.seeds:
            config = ExperimentConfig.load(args.config, {**row, **given, "seed": seed})
            figures = run(config, manifest, args.cache, small)
            found.setdefault(name, []).append(figures)
            print(
                f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True
            )
    print(
        "\n| | first loss | validation, real | test | test, real (lowest-highest) | CPU-s |\n|---|---|---|---|---|---|"
    )
    for name, runs in found.items():
        mean = {key: statistics.fmean(each[key] for each in runs) for key in runs[0]}
        real = [each["test real"] for each in runs]
        print(
            f"| {name} | {mean['first loss']:.2f} | {mean['validation real']:.1%} | {mean['test']:.1%} | "
            f"**{mean['test real']:.1%}** ({min(real):.1%}-{max(real):.1%}) | {mean['CPU-s']:.0f} |"
        )


if __name__ == "__main__":
    main()
