"""AdamW, and the cosine schedule with its linear warm-up."""

from __future__ import annotations

import timm.optim
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from pillsnap.core.experiment import ExperimentConfig


def create_optimizer(net: nn.Module, config: ExperimentConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay spares biases and norms (timm's parameter groups)."""
    groups = timm.optim.param_groups_weight_decay(net, weight_decay=config.training.weight_decay)
    return torch.optim.AdamW(
        groups,
        lr=config.training.base_lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )


def create_schedule(
    optimizer: torch.optim.Optimizer, config: ExperimentConfig, steps_per_epoch: int
) -> CosineLRScheduler:
    """A schedule to be stepped by ``step_update(update)`` after every update, counted from 1.

    The warm-up comes first and the cosine runs over the epochs that are left: it ends at min_lr exactly at the
    end of the training.
    """
    steps = config.training.epochs * steps_per_epoch
    # a warm-up that rounds to the whole training leaves one update to the cosine
    warmup_steps = min(round(config.training.warmup_epochs * steps_per_epoch), steps - 1)
    return CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup_steps,
        lr_min=config.training.min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=config.training.base_lr * config.schedule.warmup_factor,
        warmup_prefix=True,
        t_in_epochs=False,
    )
