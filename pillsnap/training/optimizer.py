"""AdamW with its parameter groups, and the cosine schedule with its linear warm-up."""

from __future__ import annotations

from typing import Any

import timm.optim
import torch
from timm.scheduler import CosineLRScheduler

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.backbone import PillNet


def create_optimizer(net: PillNet, config: ExperimentConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay spares biases, norms and what the backbone itself names (position embeddings)."""
    training = config.training
    no_decay: set[str] = getattr(net.backbone, "no_weight_decay", set)()
    groups: list[dict[str, Any]]
    if training.layer_decay < 1:
        groups = timm.optim.param_groups_layer_decay(
            net.backbone,
            weight_decay=training.weight_decay,
            no_weight_decay_list=no_decay,
            layer_decay=training.layer_decay,
        )
    else:
        groups = timm.optim.param_groups_weight_decay(
            net.backbone, weight_decay=training.weight_decay, no_weight_decay_list=no_decay
        )
    return torch.optim.AdamW(
        groups,
        lr=training.base_lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the classifier: with layer_decay the other groups have a share of it."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def create_schedule(
    optimizer: torch.optim.Optimizer, config: ExperimentConfig, steps_per_epoch: int
) -> CosineLRScheduler:
    """A schedule to be stepped by ``step_update(update)`` after every update, counted from 1.

    The warm-up comes first and the cosine runs over the epochs that are left: it ends at min_lr exactly at the
    end of the training. timm multiplies the rate of a group by its ``lr_scale``, which layer_decay sets.
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
