"""The network: a timm backbone behind the normalisation of the preprocessing spec.

`PillNet` takes what the preprocessor gives before normalisation (uint8 N,H,W,C), in training as in the
exported bundle, so that no caller can normalise wrongly. Legend: N batch, H height, W width, C channel,
K class.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ModelConfig
from pillsnap.core.preprocessing import PreprocessingSpec

_log = logging.getLogger(__name__)


_RESERVED = frozenset({"num_classes", "in_chans", "drop_rate", "drop_path_rate", "pretrained"})


class PillNet(nn.Module):
    """``image_NHWC_u8`` → ``logits_NK``."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, preprocessing: PreprocessingSpec) -> None:
        super().__init__()
        self.backbone = backbone
        # On the scale of the pixels (0..255): one subtraction and one multiplication an image.
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1) * 255.0, persistent=False)

    def normalize(self, image_NHWC_u8: Tensor) -> Tensor:
        """``image_NCHW_f32``, normalised."""
        image_NCHW = image_NHWC_u8.permute(0, 3, 1, 2).float()
        return (image_NCHW - self.mean) / self.std

    def forward(self, image_NHWC_u8: Tensor) -> Tensor:
        """``logits_NK``."""
        logits: Tensor = self.backbone(self.normalize(image_NHWC_u8))
        return logits


def create_net(model: ModelConfig, preprocessing: PreprocessingSpec, num_classes: int) -> PillNet:
    """Build the network, with pretrained weights where the configuration asks for them.

    Raises:
        ConfigError: a backbone that timm does not have, or arguments that it does not take.
        TrainingError: the pretrained weights cannot be had, or do not fit. Never silently random.
    """
    if not timm.is_model(model.backbone):
        close = ", ".join(timm.list_models(f"*{model.backbone[:8]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"model.backbone: timm has no model {model.backbone!r} (similar: {close})")
    reserved = sorted(_RESERVED & set(model.kwargs))
    if reserved:
        raise ConfigError(f"model.kwargs: {', '.join(reserved)} cannot stand there; they have own keys or are fixed")
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "drop_rate": model.drop_rate,
        "drop_path_rate": model.drop_path_rate,
        **model.kwargs,
    }
    if model.weights is not None:
        if not Path(model.weights).is_file():
            raise TrainingError(f"model.weights: {model.weights}: no such file")
        arguments["pretrained_cfg_overlay"] = {"file": model.weights}
    rng_state = torch.get_rng_state()
    try:
        backbone = timm.create_model(model.backbone, pretrained=model.pretrained, **arguments)
    except TypeError as error:
        raise ConfigError(f"model.kwargs: {model.backbone} does not take these arguments ({error})") from error
    except Exception as error:  # timm and the hub raise many kinds; all mean: no weights
        if not model.pretrained:
            raise ConfigError(f"model.backbone: {model.backbone} cannot be built ({error})") from error
        raise TrainingError(
            f"the pretrained weights of {model.backbone} cannot be loaded ({type(error).__name__}: {error}). "
            "Give a local file with model.weights, or train from random weights with model.pretrained=false"
        ) from error
    if model.pretrained:
        torch.set_rng_state(rng_state)
        _require_loaded(backbone, timm.create_model(model.backbone, pretrained=False, **arguments), model)
        _note_other_statistics(backbone, preprocessing)
    return PillNet(backbone, preprocessing)


def _require_loaded(backbone: nn.Module, random_start: nn.Module, model: ModelConfig) -> None:
    """timm skips what a file lacks when the number of classes differs: another net's weights would change nothing."""
    config: dict[str, Any] = getattr(backbone, "pretrained_cfg", {}) or {}
    names = config.get("classifier") or ()
    head = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    started_with = dict(random_start.named_parameters())
    kernels = {k: v for k, v in backbone.named_parameters() if v.ndim > 1 and not k.startswith(head)}
    untouched = [name for name, kernel in kernels.items() if torch.equal(kernel, started_with[name])]
    if untouched:
        raise TrainingError(
            f"the pretrained weights of {model.weights or model.backbone} do not fit {model.backbone}: "
            f"{len(untouched)} of {len(kernels)} kernels would stay random ({untouched[0]}, ...). Give weights that "
            "timm saved for this very backbone, or train from random weights with model.pretrained=false"
        )


def _note_other_statistics(backbone: nn.Module, preprocessing: PreprocessingSpec) -> None:
    trained_with: dict[str, Any] = getattr(backbone, "pretrained_cfg", {}) or {}
    mean, std = trained_with.get("mean"), trained_with.get("std")
    if mean and std and (tuple(mean) != preprocessing.mean or tuple(std) != preprocessing.std):
        _log.warning(
            "the pretrained weights were made with mean %s and std %s; this experiment normalises with %s and %s "
            "(preprocessing.mean, preprocessing.std): the start is worse than it could be",
            mean, std, preprocessing.mean, preprocessing.std,
        )  # fmt: skip
