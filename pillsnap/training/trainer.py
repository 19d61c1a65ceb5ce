"""The training loop: from batches to checkpoints, telling an observer what happens.

Knows nothing of MLflow, Optuna or files other than its checkpoints. Legend: N batch, H height, W width,
C channel, K class.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from pillsnap.core.bundle import RETIRED_LOGIT
from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.backbone import PillNet
from pillsnap.training.batches import TrainingData, plain_batches, train_loader
from pillsnap.training.checkpoint import Checkpoint, CheckpointKeeper
from pillsnap.training.device import Device
from pillsnap.training.freezing import Freezer
from pillsnap.training.mixing import create_erasing, create_mixup, mix_in_epoch
from pillsnap.training.optimizer import base_rate, create_optimizer, create_schedule
from pillsnap.training.weights import StartWeights, create_started_net


class TrainingObserver(Protocol):
    """Told what happens, in the training process. An exception from it ends the training (pruning does that)."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """After every ``logging.every_steps`` updates; ``step`` counts updates from 1."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """After the validation of every epoch; ``epoch`` counts from 1."""


@dataclass(frozen=True)
class FitResult:
    """What a training left behind."""

    best_checkpoint: Path
    best_epoch: int
    best_metrics: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch, with the key ``epoch``."""
    weights: StartWeights | None = None
    """What the training started from."""


def fit(config: ExperimentConfig, data: TrainingData, folder: Path, observer: TrainingObserver) -> FitResult:
    """Train from the start and keep the best.

    Raises:
        TrainingError: the loss is not a finite number, or pretrained weights cannot be had.
        DataError: fewer training images than one batch.
        ConfigError: the backbone does not exist or cannot be frozen, or cutmix_minmax leaves no box at this size.
    """
    return _Trainer(config, data, folder, observer).fit()


def weighted_loss(logits_NK: Tensor, target: Tensor, class_weights_K: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy, each class by its weight, as the mean over the N images.

    torch's own mean divides by N for mixed targets, but by the sum of the weights for hard ones: a batch of one
    class would then not feel its weight at all, and the size of a step would hang on whether the batch is mixed.

    Args:
        logits_NK: answers.
        target: ``label_N``, or the ``share_NK`` of each class in mixed images.
        class_weights_K: mean 1 over the drugs in use.
        smoothing: of the labels, 0..1.
    """
    loss_N = F.cross_entropy(logits_NK, target, weight=class_weights_K, label_smoothing=smoothing, reduction="none")
    return loss_N.mean()


class _Trainer:
    def __init__(self, config: ExperimentConfig, data: TrainingData, folder: Path, observer: TrainingObserver) -> None:
        self._config = config
        self._data = data
        self._observer = observer
        self._device = Device.of(config)
        # torch's dropout, timm's mixup (numpy) and random erasing (random) draw from the global generators.
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        np.random.seed(config.seed)  # noqa: NPY002
        catalog = data.manifest.catalog
        device = self._device.torch_device
        net, self._started_with = create_started_net(config, catalog.kcodes, data.manifest.hash)
        self._net: PillNet = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._loader, self._sampler = train_loader(data, config, cuda=device.type == "cuda")
        self._optimizer = create_optimizer(self._net, config)
        self._schedule = create_schedule(self._optimizer, config, len(self._loader) // config.training.accumulate)
        self._freezer = Freezer(self._net, config.training.freeze_epochs)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._device.needs_scaler)
        self._ema = _create_ema(self._net, config)
        if config.training.compile:
            self._net.backbone.compile()  # in place: the names of the weights stay
        self._mixup = create_mixup(config, len(catalog.drugs))
        self._erasing = create_erasing(config, device)
        weights_K = torch.tensor(catalog.class_weights, device=device)
        self._class_weights_K = weights_K / weights_K[weights_K > 0].mean()  # those of retired classes are 0
        self._keeper = CheckpointKeeper(folder, config.checkpoints.every_epochs, config.checkpoints.keep_best)
        self._step = 0
        self._accumulated = 0  # batches whose gradients wait for the next update

    def fit(self) -> FitResult:
        history: list[dict[str, float]] = []
        best: tuple[int, dict[str, float]] = (0, {})
        for epoch in range(1, self._config.training.epochs + 1):
            metrics = {**self._train_epoch(epoch), **self._validate()}
            history.append({"epoch": epoch, **metrics})
            if self._keeper.add(self._checkpoint(epoch, metrics)):
                best = (epoch, metrics)
            self._observer.on_epoch(epoch, metrics)
        return FitResult(self._keeper.best, best[0], best[1], history, self._started_with)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self._net.train()
        self._freezer.enter(epoch)
        mix_in_epoch(self._mixup, self._config, epoch)
        self._sampler.epoch = epoch
        started = time.perf_counter()
        images = 0
        total = torch.zeros((), device=self._device.torch_device)
        since_log: list[Tensor] = []
        for image_NHWC_u8, label_N in self._loader:
            loss = self._update(image_NHWC_u8, label_N)
            images += len(label_N)
            since_log.append(loss)
            total += loss
            if self._accumulated:
                continue
            self._step += 1
            if self._step % self._config.logging.every_steps == 0:
                self._log_step(since_log, images / (time.perf_counter() - started))
                since_log = []
        mean_loss = float(total) / len(self._loader)
        self._require_finite(mean_loss)
        seconds = time.perf_counter() - started
        return {"train_loss": mean_loss, "lr": self._lr(), "images_per_s": images / seconds, "train_s": seconds}

    def _update(self, image_NHWC_u8: Tensor, label_N: Tensor) -> Tensor:
        """The loss of one batch; the weights change where it is the last one of an update."""
        device = self._device.torch_device
        label_N = label_N.to(device, non_blocking=True)
        image = self._net.normalize(image_NHWC_u8.to(device, non_blocking=True))
        target: Tensor = label_N
        if self._mixup is not None:
            image, target = self._mixup(image, label_N)
        if self._erasing is not None:
            image = self._erasing(image)
        with self._device.autocast():
            logits_NK = self._net.backbone(image.contiguous(memory_format=torch.channels_last))
        smoothing = self._config.training.label_smoothing if target.ndim == 1 else 0.0  # mixup smooths by itself
        loss = weighted_loss(logits_NK.float(), target, self._class_weights_K, smoothing)
        if self._accumulated == 0:
            self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss / self._config.training.accumulate).backward()
        self._accumulated = (self._accumulated + 1) % self._config.training.accumulate
        if self._accumulated:
            return loss.detach()
        if self._config.training.gradient_clip is not None:
            self._scaler.unscale_(self._optimizer)  # before clipping: the norm must be that of the true gradient
            torch.nn.utils.clip_grad_norm_(self._net.parameters(), self._config.training.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step_update(self._step + 1)
        if self._ema is not None:
            self._ema.update(self._net, step=self._step)
        return loss.detach()

    def _validate(self) -> dict[str, float]:
        """Loss, top-1 and top-5 on the whole validation split, and top-1 of each domain."""
        net = self._judged_net().eval()
        device = self._device.torch_device
        logits: list[Tensor] = []
        with torch.inference_mode(), self._device.autocast():
            for image_NHWC_u8, _ in plain_batches(self._data, self._data.val_indices, self._config.data.batch_size * 2):
                image = net.normalize(image_NHWC_u8.to(device)).contiguous(memory_format=torch.channels_last)
                logits.append(net.backbone(image).float().cpu())
        logits_NK = torch.cat(logits)
        logits_NK[:, list(self._data.manifest.catalog.retired_indices)] = RETIRED_LOGIT  # as in the bundle
        label_N = torch.from_numpy(self._data.labels_N[self._data.val_indices])
        is_real_N = torch.from_numpy(self._data.is_real_N[self._data.val_indices])
        correct_N = logits_NK.argmax(1) == label_N
        top5 = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices
        metrics = {
            "val_loss": float(F.cross_entropy(logits_NK, label_N)),
            "val_top1": float(correct_N.float().mean()),
            "val_top5": float((top5 == label_N[:, None]).any(1).float().mean()),
        }
        self._require_finite(metrics["val_loss"])
        for name, mask in (("val_real_top1", is_real_N), ("val_studio_top1", ~is_real_N)):
            if mask.any():
                metrics[name] = float(correct_N[mask].float().mean())
        return metrics

    def _judged_net(self) -> PillNet:
        net: Any = self._ema.module if self._ema is not None else self._net
        assert isinstance(net, PillNet)
        return net

    def _checkpoint(self, epoch: int, metrics: dict[str, float]) -> Checkpoint:
        state = {key: value.detach().cpu().contiguous() for key, value in self._judged_net().state_dict().items()}
        manifest = self._data.manifest
        return Checkpoint(self._config, manifest.catalog.kcodes, manifest.hash, epoch, metrics, state)

    def _log_step(self, losses: list[Tensor], images_per_s: float) -> None:
        loss = float(torch.stack(losses).mean())
        self._require_finite(loss)
        self._observer.on_step(
            self._step, {"step_loss": loss, "step_lr": self._lr(), "step_images_per_s": images_per_s}
        )

    def _lr(self) -> float:
        return base_rate(self._optimizer)

    def _require_finite(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} after {self._step} updates; lower training.base_lr, or set "
                "training.gradient_clip, or training.mixed_precision=false"
            )


def _create_ema(net: PillNet, config: ExperimentConfig) -> ModelEmaV3 | None:
    if config.training.ema_decay is None:
        return None
    return ModelEmaV3(net, decay=config.training.ema_decay, use_warmup=True)
