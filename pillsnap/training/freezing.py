"""What keeps still in a fine-tuning: the backbone for the first epochs, and the statistics of its batch norms.

A new head starts from random weights, and its first gradients would spoil the pretrained ones below it. The statistics
of a few hundred pictures, of other lights and backgrounds than the test's, are worse than those of the pretraining; and
after few updates a net is neither here nor there (timm's ``tf_`` nets take 1 % of a batch's at each).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from pillsnap.core.errors import ConfigError
from pillsnap.training.backbone import PillNet, head_prefixes


def keeps_batch_norms(rule: Literal["auto", "train", "keep"], started_from_weights: bool) -> bool:
    """Whether batch norms keep their statistics, by ``training.batch_norm``."""
    return rule == "keep" or (rule == "auto" and started_from_weights)


class Freezer:
    """Freezes and unfreezes the backbone of a net by the epoch, and holds its batch norms where they are kept.

    Made after the optimizer (which takes the parameters that learn) and after whatever exchanges modules of the net.
    """

    def __init__(self, net: PillNet, epochs: int, *, keep_norms: bool = False) -> None:
        """Hold a net.

        Args:
            net: the net that learns.
            epochs: for so many epochs only its classifier learns.
            keep_norms: batch norms keep their statistics for the whole training; their weights learn.

        Raises:
            ConfigError: the backbone has no classifier that could learn alone.
        """
        self._epochs = epochs
        self._keep_norms = keep_norms
        head = head_prefixes(net.backbone)
        self._norms: list[nn.Module] = [
            module
            for name, module in net.backbone.named_modules()
            if getattr(module, "running_mean", None) is not None and not name.startswith(head)
        ]
        if epochs == 0:  # what a backbone itself keeps fixed is not to be touched
            return
        named = dict(net.backbone.named_parameters())
        if not any(name.startswith(head) for name in named):
            raise ConfigError(
                f"training.freeze_epochs: {type(net.backbone).__name__} does not say which layer is its classifier; "
                "set training.freeze_epochs=0"
            )
        self._parameters = [
            parameter for name, parameter in named.items() if parameter.requires_grad and not name.startswith(head)
        ]

    def enter(self, epoch: int) -> None:
        """Call at the start of each epoch (from 1), after ``net.train()``."""
        frozen = epoch <= self._epochs
        if self._epochs:
            for parameter in self._parameters:
                parameter.requires_grad_(not frozen)
        if frozen or self._keep_norms:
            for norm in self._norms:
                norm.eval()  # in training mode the statistics would follow the batches
