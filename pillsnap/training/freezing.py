"""Head first, then all: a backbone that keeps still for the first epochs of a fine-tuning.

A new head starts from random weights, and its first large gradients would spoil the pretrained ones below it.
"""

from __future__ import annotations

from torch import nn

from pillsnap.core.errors import ConfigError
from pillsnap.training.backbone import PillNet, head_prefixes


class Freezer:
    """Freezes and unfreezes the backbone of a net by the epoch.

    Made after the optimizer (which takes the parameters that learn) and after whatever exchanges modules of the net.
    """

    def __init__(self, net: PillNet, epochs: int) -> None:
        """Args: net, and for how many epochs only its classifier learns.

        Raises:
            ConfigError: the backbone has no classifier that could learn alone.
        """
        self._epochs = epochs
        if epochs == 0:  # what a backbone itself keeps fixed is not to be touched
            return
        head = head_prefixes(net.backbone)
        named = dict(net.backbone.named_parameters())
        if not any(name.startswith(head) for name in named):
            raise ConfigError(
                f"training.freeze_epochs: {type(net.backbone).__name__} does not say which layer is its classifier; "
                "set training.freeze_epochs=0"
            )
        self._parameters = [
            parameter for name, parameter in named.items() if parameter.requires_grad and not name.startswith(head)
        ]
        self._norms: list[nn.Module] = [
            module
            for name, module in net.backbone.named_modules()
            if getattr(module, "running_mean", None) is not None and not name.startswith(head)
        ]

    def enter(self, epoch: int) -> None:
        """Call at the start of each epoch (from 1), after ``net.train()``."""
        if self._epochs == 0:
            return
        frozen = epoch <= self._epochs
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
        if frozen:
            for norm in self._norms:
                norm.eval()  # in training mode the statistics would follow the batches
