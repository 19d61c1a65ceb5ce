"""AdamW with its parameter groups, and the cosine schedule with its linear warm-up."""

from __future__ import annotations

from typing import Any

import timm.optim
import torch
from timm.scheduler import CosineLRScheduler

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.backbone import PillNet, head_prefixes


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
    groups = _parted(groups, net, training.backbone_lr_scale)
    return torch.optim.AdamW(
        groups,
        lr=training.base_lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )


def _parted(groups: list[dict[str, Any]], net: PillNet, backbone_scale: float) -> list[dict[str, Any]]:
    """The same groups, each parted into classifier and backbone, whose rate is multiplied by ``backbone_scale``."""
    prefixes = head_prefixes(net.backbone)
    head = {id(parameter) for name, parameter in net.backbone.named_parameters() if name.startswith(prefixes)}
    parted = []
    for group in groups:
        for is_head, factor in ((True, 1.0), (False, backbone_scale)):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in head) == is_head]
            if parameters:
                lr_scale = group.get("lr_scale", 1.0) * factor
                parted.append({**group, "params": parameters, "lr_scale": lr_scale, "is_head": is_head})
    return parted


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


class BackboneWarmup:
    """After head-first epochs the backbone begins as a training does: its rates rise in a line, over as many updates.

    Without it, weights that have not moved would meet the full rate at once.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: ExperimentConfig, steps_per_epoch: int) -> None:
        self._groups = [group for group in optimizer.param_groups if not group["is_head"]]
        self._from = config.training.freeze_epochs * steps_per_epoch
        self._steps = round(config.training.warmup_epochs * steps_per_epoch) if config.training.freeze_epochs else 0
        self._factor = config.schedule.warmup_factor

    def apply(self, update: int) -> None:
        """Call after the schedule has set the rates of an update, counted from 0."""
        done = update - self._from
        if 0 <= done < self._steps:
            factor = self._factor + (1 - self._factor) * done / self._steps
            for group in self._groups:
                group["lr"] *= factor
