"""The network: a timm backbone behind the normalisation of the preprocessing spec.

`PillNet` takes what the preprocessor gives before normalisation (uint8 N,H,W,C), in training as in the
exported bundle, so that no caller can normalise wrongly. Legend: N batch, H height, W width, C channel,
K class.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pillsnap.core.errors import ConfigError, TrainingError
from pillsnap.core.experiment import ModelConfig
from pillsnap.core.preprocessing_spec import PreprocessingSpec

_log = logging.getLogger(__name__)


_RESERVED = frozenset({"num_classes", "in_chans", "drop_rate", "drop_path_rate", "pretrained"})
CLASSIFIER_STD = 0.01
"""Of the weights of a new classifier on a pretrained backbone, as in torchvision's MobileNetV2. timm starts them at
±1/sqrt(K): with few classes the first logits are as large as ±10, and the first updates tear the features apart. Where
the backbone starts from random weights too, timm's own start stands: small nets learned less from a small one."""


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


def check_net(model: ModelConfig, preprocessing: PreprocessingSpec, num_classes: int) -> None:
    """Asked before hours of preparation: one image goes through the net, with random weights.

    Raises:
        ConfigError: timm has no such backbone, or it does not take these arguments or an image of this size.
    """
    side = preprocessing.target_size
    random_start = model.model_copy(update={"pretrained": False, "weights": None})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        net = create_net(random_start, preprocessing, num_classes).eval()
        try:
            found = tuple(net(torch.zeros((1, side, side, 3), dtype=torch.uint8)).shape)
        except Exception as error:  # each backbone has errors of its own
            raise ConfigError(
                f"model.backbone: {model.backbone} does not take images of {side} px ({_line_of(error)}). Set "
                f"preprocessing.target_size to its own size or, for ViT and Swin, model.kwargs={{img_size: {side}}}; "
                "what else stands in model.kwargs must fit it, too"
            ) from error
    if found != (1, num_classes):
        raise ConfigError(
            f"model.kwargs: with {model.kwargs}, {model.backbone} answers {found} to one image, not {(1, num_classes)}"
        )


def _check_backbone(model: ModelConfig) -> None:
    if not timm.is_model(model.backbone):
        close = ", ".join(difflib.get_close_matches(model.backbone, timm.list_models(), n=3))
        raise ConfigError(
            f"model.backbone: timm has no model {model.backbone!r} (similar: {close or 'see timm.list_models()'})"
        )


def create_net(model: ModelConfig, preprocessing: PreprocessingSpec, num_classes: int) -> PillNet:
    """Build the network, with pretrained weights where the configuration asks for them.

    Raises:
        ConfigError: a backbone that timm does not have, or arguments that it does not take.
        TrainingError: the pretrained weights cannot be had, or do not fit. Never silently random.
    """
    _check_backbone(model)
    reserved = sorted(_RESERVED & set(model.kwargs))
    if reserved:
        raise ConfigError(f"model.kwargs: {', '.join(reserved)} cannot stand there; they have own keys or are fixed")
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "drop_rate": model.drop_rate,
        **model.kwargs,
    }
    if model.drop_path_rate:  # a fifth of timm's families has none
        arguments["drop_path_rate"] = model.drop_path_rate
    if model.weights is not None:
        _require_file(model.weights)
        arguments["pretrained_cfg_overlay"] = {"file": model.weights}
    rng_state = torch.get_rng_state()
    try:
        backbone = timm.create_model(model.backbone, pretrained=model.pretrained, **arguments)
    except TypeError as error:
        if "'drop_path_rate'" in str(error):
            raise ConfigError(f"model.drop_path_rate: {model.backbone} has none; set it to 0") from error
        raise ConfigError(f"model.kwargs: {model.backbone} does not take this argument ({error})") from error
    except Exception as error:  # timm and the hub raise many kinds; all mean: no weights
        if not model.pretrained:
            raise ConfigError(f"model.backbone: {model.backbone} cannot be built ({_line_of(error)})") from error
        raise TrainingError(
            f"the pretrained weights of {model.backbone} cannot be loaded ({type(error).__name__}: {error}). "
            "Give a local file with model.weights, or train from random weights with model.pretrained=false"
        ) from error
    if model.pretrained:
        torch.set_rng_state(rng_state)
        _require_loaded(backbone, timm.create_model(model.backbone, pretrained=False, **arguments), model)
        trained_with: dict[str, Any] = getattr(backbone, "pretrained_cfg", {}) or {}
        note_other_statistics(trained_with.get("mean"), trained_with.get("std"), preprocessing)
    return PillNet(backbone, preprocessing)


def keeps_classifier(backbone: nn.Module) -> bool:
    """Whether timm takes over the classifier of its weights: by position, where the number of classes is the same."""
    published: dict[str, Any] = getattr(backbone, "pretrained_cfg", {}) or {}
    return published.get("num_classes") == getattr(backbone, "num_classes", None)


@torch.no_grad()
def start_classifier_small(backbone: nn.Module) -> None:
    """Give a new classifier small weights and no bias (`CLASSIFIER_STD`)."""
    head = head_prefixes(backbone)
    for name, parameter in backbone.named_parameters():
        if name.startswith(head) and name.endswith(".weight") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=CLASSIFIER_STD)
        elif name.startswith(head) and name.endswith(".bias"):
            nn.init.zeros_(parameter)


def _line_of(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def head_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    """How the names of the classifier's tensors start; none where the backbone does not say."""
    config: dict[str, Any] = getattr(backbone, "pretrained_cfg", {}) or {}
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def note_other_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, ours: PreprocessingSpec) -> None:
    """Say in the log that weights were made with another normalisation than that of this experiment."""
    if mean and std and (tuple(mean) != ours.mean or tuple(std) != ours.std):
        _log.warning(
            "the pretrained weights were made with mean %s and std %s; this experiment normalises with %s and %s "
            "(preprocessing.mean, preprocessing.std): the start is worse than it could be",
            tuple(mean), tuple(std), ours.mean, ours.std,
        )  # fmt: skip


def _require_file(weights: str) -> None:
    if weights.startswith(("models:", "runs:")) or weights.endswith(".onnx"):
        raise TrainingError(
            f"model.weights: {weights} stands for a checkpoint that the commands fetch (pillsnap train, run, tune); "
            "called as a function, the training takes the .pt file itself"
        )
    if not Path(weights).is_file():
        raise TrainingError(f"model.weights: {weights}: no such file (a relative path starts at {Path.cwd()})")


def _require_loaded(backbone: nn.Module, random_start: nn.Module, model: ModelConfig) -> None:
    """timm skips what a file lacks when the number of classes differs: another net's weights would change nothing."""
    head = head_prefixes(backbone)
    started_with = dict(random_start.named_parameters())
    kernels = {k: v for k, v in backbone.named_parameters() if v.ndim > 1 and not k.startswith(head)}
    untouched = [name for name, kernel in kernels.items() if torch.equal(kernel, started_with[name])]
    if untouched:
        raise TrainingError(
            f"the pretrained weights of {model.weights or model.backbone} do not fit {model.backbone}: "
            f"{len(untouched)} of {len(kernels)} kernels would stay random ({listed(untouched)}). Give weights that "
            "timm saved for this very backbone, or train from random weights with model.pretrained=false"
        )


def listed(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many there are beside."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
