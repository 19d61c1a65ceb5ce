"""The training loop: from batches to checkpoints, telling an observer what happens.

A training that ended early goes on from its last epoch, with the very weights that it would have had. Knows nothing of
MLflow, Optuna or files other than its checkpoints. Legend: N batch, H height, W width,
C channel, K class.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from pillsnap.core.bundle import FirstWeights
from pillsnap.core.errors import TrainingError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training import distributed
from pillsnap.training.backbone import PillNet, create_net
from pillsnap.training.batches import TrainingData, train_loader
from pillsnap.training.checkpoint import Checkpoint, CheckpointKeeper
from pillsnap.training.device import Device
from pillsnap.training.distillation import Teacher
from pillsnap.training.freezing import Freezer, keeps_batch_norms
from pillsnap.training.mixing import create_erasing, create_mixup, mix_in_epoch
from pillsnap.training.optimizer import BackboneWarmup, base_rate, create_optimizer, create_schedule
from pillsnap.training.state import find_state, random_state, restore_random_state, training_identity
from pillsnap.training.validation import answers, score
from pillsnap.training.weights import StartWeights, create_started_net

_log = logging.getLogger(__name__)


class TrainingObserver(Protocol):
    """Told what happens, in the training process. An exception from it ends the training (pruning does that)."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """After every ``logging.every_steps`` updates; ``step`` counts updates from 1."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """After the validation of every epoch, before its checkpoint; ``epoch`` counts from 1.

        A training that was killed between the two tells the epoch again when it goes on.
        """

    def on_resume(self, epoch: int, step: int) -> None:
        """Once, before the first new update, where a training goes on; ``epoch`` epochs, ``step`` updates are done."""


class Nobody:
    """An observer that tells nobody: that of all processes but the first."""

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Nothing."""

    def on_resume(self, epoch: int, step: int) -> None:
        """Nothing."""


@dataclass(frozen=True)
class FitResult:
    """What a training left behind."""

    best_checkpoint: Path
    best_epoch: int
    best_metrics: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch, with the key ``epoch``; of the whole training, also where it went on."""
    stopped: str = ""
    """Why the training ended before its last epoch; empty: it did not."""
    weights: StartWeights | None = None
    """What the training started from."""


def fit(
    config: ExperimentConfig,
    data: TrainingData,
    folder: Path,
    observer: TrainingObserver,
    *,
    resume: bool = True,
    deadline: float | None = None,
) -> FitResult:
    """Train and keep the best; a training that ended early goes on after its last epoch.

    Args:
        config: the experiment.
        data: what trains and validates.
        folder: of the checkpoints. What is there of another experiment is replaced.
        observer: told what happens, in the first process alone.
        resume: go on from the newest sound checkpoint in ``folder``, where it belongs to the same experiment and
            data. False: start anew.
        deadline: of `time.monotonic`; no epoch is begun that would not be done by then (the first one always is).

    Raises:
        TrainingError: the loss is not a finite number, pretrained weights or the teacher cannot be had, the teacher
            knows other drugs, disk or memory are full, or another process (torchrun's, or one that prepares images) has
            failed.
        DataError: fewer training images than one batch.
        ConfigError: the backbone does not exist or cannot be frozen, cutmix_minmax leaves no box at this size, or the
            batch cannot be shared by the processes of torchrun.
    """
    with distributed.failing_together():
        here = distributed.ranks()
        try:
            trainer = _Trainer(config, data, folder, observer if here.is_first else Nobody(), resume=resume)
            return trainer.fit(deadline)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise TrainingError(
                f"out of memory ({' '.join(str(error).split())[:200]}): a smaller model or image fits, or a smaller "
                "data.batch_size with training.accumulate"
            ) from error


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
    def __init__(
        self,
        config: ExperimentConfig,
        data: TrainingData,
        folder: Path,
        observer: TrainingObserver,
        resume: bool = False,
    ) -> None:
        self._config = config
        self._data = data
        self._observer = observer
        self._ranks = distributed.ranks()
        distributed.require_shares(config.data.batch_size)
        self._device = Device.of(config)
        self._teacher = Teacher.of(config, data.manifest, self._device)
        teacher_sha256 = self._teacher.record.sha256 if self._teacher else ""
        distributed.require_same(teacher_sha256, "distillation.teacher: the sha256 of the checkpoint")
        self._identity = training_identity(config, data, teacher_sha256)
        state = self._find_state(folder) if resume else None
        # torch's dropout, timm's mixup (numpy) and random erasing (random) draw from the global generators.
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        np.random.seed(config.seed)  # noqa: NPY002
        catalog = data.manifest.catalog
        device = self._device.torch_device
        net, self._started_with = self._start(catalog.kcodes, state)
        net.backbone = distributed.synchronize_batch_norm(net.backbone, device)
        self._net: PillNet = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._loader, self._sampler = train_loader(data, config, cuda=device.type == "cuda")
        self._optimizer = create_optimizer(self._net, config)
        self._schedule = create_schedule(self._optimizer, config, len(self._loader) // config.training.accumulate)
        self._backbone_warmup = BackboneWarmup(self._optimizer, config, len(self._loader) // config.training.accumulate)
        keep_norms = keeps_batch_norms(config.training.batch_norm, started_from_weights=bool(self._started_with.sha256))
        self._freezer = Freezer(self._net, config.training.freeze_epochs, keep_norms=keep_norms)
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
        self._history: list[dict[str, float]] = []
        if state:
            self._restore(state)
        elif self._ranks.world > 1:
            self._draw_apart()
        self._averaged = distributed.Averaged(self._net.backbone, device)

    def _draw_apart(self) -> None:
        """Dropout and erasing draw other numbers in each process, and after each epoch; mixup's are those of all."""
        seed = self._config.seed + self._ranks.rank + self._ranks.world * len(self._history)
        torch.manual_seed(seed)
        random.seed(seed)

    def _find_state(self, folder: Path) -> dict[str, Any] | None:
        """What a former process left; the first one reads it for all."""
        return distributed.from_first(find_state(folder, self._identity) if self._ranks.is_first else None)

    def _start(self, kcodes: Sequence[str], state: dict[str, Any] | None) -> tuple[PillNet, StartWeights]:
        """The net; a training that goes on does not need the weights any more that it started from."""
        if state is None:
            return create_started_net(self._config, kcodes, self._data.manifest.hash)
        random_start = self._config.model.model_copy(update={"pretrained": False, "weights": None})
        return create_net(random_start, self._config.preprocessing, len(kcodes)), StartWeights(**state["weights"])

    def fit(self, deadline: float | None = None) -> FitResult:
        epochs = self._config.training.epochs
        done = len(self._history)
        if 0 < done < epochs:
            _log.info("the training goes on after epoch %d of %d (%d updates)", done, epochs, self._step)
            self._observer.on_resume(done, self._step)
        longest_s = max((entry["train_s"] + entry.get("val_s", 0.0) for entry in self._history), default=0.0)
        for epoch in range(done + 1, epochs + 1):
            started = time.monotonic()
            over = deadline is not None and started + longest_s > deadline
            if epoch > 1 and distributed.from_first(over):  # asked of all: only the first one has the deadline
                return self._result(f"time budget: {epoch - 1} of {epochs} epochs")
            try:
                trained, validating = self._train_epoch(epoch), time.perf_counter()
                metrics = {**trained, **self._validate(), "val_s": time.perf_counter() - validating}
                self._history.append({"epoch": epoch, **metrics})
                self._observer.on_epoch(epoch, metrics)
                self._keep(epoch, metrics)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise TrainingError(
                    f"the disk is full in epoch {epoch} ({error.filename or error}); {self._keeper.last_good}: free "
                    "some space and start again, the training goes on from there"
                ) from error
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                raise TrainingError(
                    f"a process that prepares images ended in epoch {epoch} ({' '.join(str(error).split())[:200]}); "
                    f"{self._keeper.last_good}. Mostly the machine's memory, or a container's /dev/shm, was full: "
                    "lower data.workers, or give more of it"
                ) from error
            longest_s = max(longest_s, time.monotonic() - started)
        return self._result("")

    def _result(self, stopped: str) -> FitResult:
        best_epoch = distributed.from_first(next(iter(self._keeper.best_epochs), 0))
        if best_epoch == 0:
            raise TrainingError(f"the training is complete but its best checkpoint is gone; {self._keeper.last_good}")
        best = {key: value for key, value in self._history[best_epoch - 1].items() if key != "epoch"}
        return FitResult(
            self._keeper.path_of_best(best_epoch), best_epoch, best, list(self._history), stopped, self._started_with
        )

    def _keep(self, epoch: int, metrics: dict[str, float]) -> None:
        """Save this epoch. The first process writes; the others give it what only they know."""
        random_states = distributed.from_all(random_state())
        if self._ranks.is_first:
            self._keeper.add(
                self._checkpoint(epoch, metrics), {**self._state(), "random": random_states, "step": self._step}
            )
        distributed.from_first(None)  # nobody goes on before the checkpoint is on the disk

    def _state(self) -> dict[str, Any]:
        """What `_restore` takes; weights that the checkpoint holds too are the same tensors, and saved once."""
        return {
            "identity": self._identity,
            "history": self._history,
            "weights": asdict(self._started_with),
            "net": _on_cpu(self._net.state_dict()),
            "ema": _on_cpu(self._ema.module.state_dict()) if self._ema is not None else None,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._net.load_state_dict(state["net"])
        if self._ema is not None:
            self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self._step = state["step"]
        self._history = state["history"]
        self._keeper.restore(state["best_epochs"], self._history)
        states = state["random"]
        if len(states) == self._ranks.world:
            restore_random_state(states[self._ranks.rank])
        else:
            _log.warning(
                "the training goes on with %d processes instead of %d: dropout and erasing draw other numbers",
                self._ranks.world, len(states),
            )  # fmt: skip
            self._draw_apart()

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self._net.train()
        self._freezer.enter(epoch)
        mix_in_epoch(self._mixup, self._config, epoch)
        self._sampler.epoch = epoch
        started = time.perf_counter()
        images = 0
        of_epoch: dict[str, Tensor] = {}
        since_log: list[dict[str, Tensor]] = []
        for image_NHWC_u8, label_N in self._loader:
            losses = self._update(image_NHWC_u8, label_N)
            images += len(label_N) * self._ranks.world
            since_log.append(losses)
            of_epoch = {key: of_epoch.get(key, 0.0) + loss for key, loss in losses.items()}
            if self._accumulated:
                continue
            self._step += 1
            if self._step % self._config.logging.every_steps == 0:
                self._log_step(since_log, images / (time.perf_counter() - started))
                since_log = []
        means = {
            f"train_{key}": float(distributed.mean_over_all(total)) / len(self._loader)
            for key, total in of_epoch.items()
        }
        self._require_finite(means["train_loss"])
        seconds = time.perf_counter() - started
        return {**means, "lr": self._lr(), "images_per_s": images / seconds, "train_s": seconds}

    def _update(self, image_NHWC_u8: Tensor, label_N: Tensor) -> dict[str, Tensor]:
        """The ``loss`` of one batch, with a teacher its parts too; the weights change where it ends an update."""
        device = self._device.torch_device
        label_N = label_N.to(device, non_blocking=True)
        image = self._net.normalize(image_NHWC_u8.to(device, non_blocking=True))
        target: Tensor = label_N
        if self._mixup is not None:
            image, target = self._mixup(image, label_N)
        if self._erasing is not None:
            image = self._erasing(image)
        with self._device.forward_pass():
            logits_NK = self._averaged.module()(image.contiguous(memory_format=torch.channels_last))
        smoothing = self._config.training.label_smoothing if target.ndim == 1 else 0.0  # mixup smooths by itself
        loss = weighted_loss(logits_NK.float(), target, self._class_weights_K, smoothing)
        losses = self._teacher.losses(loss, logits_NK.float(), image) if self._teacher is not None else {"loss": loss}
        if self._accumulated == 0:
            self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(losses["loss"] / self._config.training.accumulate).backward()
        self._accumulated = (self._accumulated + 1) % self._config.training.accumulate
        told = {key: loss.detach() for key, loss in losses.items()}
        if self._accumulated:
            return told
        if self._config.training.gradient_clip is not None:
            self._scaler.unscale_(self._optimizer)  # before clipping: the norm must be that of the true gradient
            torch.nn.utils.clip_grad_norm_(self._net.parameters(), self._config.training.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step_update(self._step + 1)
        self._backbone_warmup.apply(self._step + 1)
        if self._ema is not None:
            self._ema.update(self._net, step=self._step)
        return told

    def _validate(self) -> dict[str, float]:
        """Figures of the net that is judged on the whole validation split; with an average, also without it."""
        metrics = self._score(self._judged_net())
        self._require_finite(metrics["val_loss"])
        if self._ema is not None:
            plain = self._score(self._net)
            metrics.update(val_plain_top1=plain["val_top1"], val_plain_loss=plain["val_loss"])
        return metrics

    def _score(self, net: PillNet) -> dict[str, float]:
        distributed.share_buffers(net)
        batch = max(1, 2 * self._config.data.batch_size // self._ranks.world)
        return score(answers(net, self._data, self._device, batch), self._data)

    def _judged_net(self) -> PillNet:
        net: Any = self._ema.module if self._ema is not None else self._net
        assert isinstance(net, PillNet)
        return net

    def _checkpoint(self, epoch: int, metrics: dict[str, float]) -> Checkpoint:
        state = _on_cpu(self._judged_net().state_dict())
        manifest = self._data.manifest
        taught_by = self._teacher.record.sha256 if self._teacher else ""
        others = (*self._started_with.learned_from, *(self._teacher.learned_from if self._teacher else ()))
        others = tuple(dict.fromkeys(other for other in others if other != manifest.hash))
        first = self._started_with.first_weights
        return Checkpoint(
            self._config,
            manifest.catalog.kcodes,
            manifest.hash,
            epoch,
            metrics,
            state,
            taught_by,
            others,
            FirstWeights.model_validate(first) if first is not None else None,
        )

    def _log_step(self, losses: list[dict[str, Tensor]], images_per_s: float) -> None:
        means = {
            f"step_{key}": float(distributed.mean_over_all(torch.stack([batch[key] for batch in losses]).mean()))
            for key in losses[0]
        }
        self._require_finite(means["step_loss"])
        self._observer.on_step(self._step, {**means, "step_lr": self._lr(), "step_images_per_s": images_per_s})

    def _lr(self) -> float:
        return base_rate(self._optimizer)

    def _require_finite(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} after {self._step} updates; lower training.base_lr, or set "
                f"training.gradient_clip, or training.mixed_precision=false; {self._keeper.last_good}"
            )


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def _create_ema(net: PillNet, config: ExperimentConfig) -> ModelEmaV3 | None:
    if config.training.ema_decay is None:
        return None
    return ModelEmaV3(net, decay=config.training.ema_decay, use_warmup=True)
