"""Quantisation-aware training: the net learns with the rounding that its 8-bit variant will compute with.

In the forward pass every 2-D convolution and linear layer sees its weights and its input on the grids that ``pillsnap
quantise`` makes for OpenVINO: weights by channel around zero, inputs on 256 levels from their smallest to their largest
value, but at most three times what the median image has. The backward pass takes the rounding for the identity
(straight-through estimator; Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"); what is cut off has no gradient. Batch norms need no folding here: a factor by
channel scales a channel's grid with its weights. The weights that are learned stay float32, under the same names.

Not as in the variant: the range of an input is that of the batch, not of the calibration's images, so what is validated
depends a little on the batch size and the number of processes; where a backbone folds windows or positions into the
batch (Swin, MaxViT), these count as images; the net's own input may be cut; last maps of a single pixel (a small input)
look like squeeze-and-excitation. ``nn.MultiheadAttention`` (timm's backbones have linear layers in its place) and 1-D
convolutions stay in float.
Legend: N batch, O output channel, C channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pillsnap.core.bundle import LARGEST_8_BIT_WEIGHT, MOST_OVER_MEDIAN

_LEVELS = 255
_TINY = 1e-12
"""Least step of a grid: a map or channel of zeros has none of its own."""


class EightBits(TorchFunctionMode):
    """A context in which 2-D convolutions and linear layers compute on 8-bit grids; all else, and gradients, in float.

    A pointwise convolution over a single pixel is left alone: behind a global pooling, as in squeeze-and-excitation,
    the 8-bit variant computes in float too. Without state.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Torch's hook: called for every function of torch within the context."""
        if func is not F.conv2d and func is not F.linear:
            return func(*args, **(kwargs or {}))
        return _rounded(func, *args, **(kwargs or {}))


def _rounded(func: Callable[..., Any], input: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Any:
    if func is F.conv2d and input.shape[2:].numel() == weight.shape[2:].numel() == 1:
        return func(input, weight, *rest, **options)
    return func(round_activations(input), round_weights(weight), *rest, **options)


def round_activations(values: Tensor) -> Tensor:
    """``values_N...``, each on the nearest of 256 levels; zero is one of them, as padding needs it."""
    with torch.no_grad():
        low_N, high_N = torch.aminmax(torch.atleast_2d(values).flatten(1), dim=1)
        low, high = -_capped(-low_N), _capped(high_N)
        scale = ((high - low) / _LEVELS).clamp(min=_TINY)
        zero_point = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, _LEVELS)


def _capped(end_N: Tensor) -> Tensor:
    """The largest of the images' ends, at most a multiple of the median one where that is positive; never negative."""
    largest, median = end_N.amax().clamp(min=0), end_N.quantile(0.5)
    return torch.where(median > 0, torch.minimum(largest, MOST_OVER_MEDIAN * median), largest)


def round_weights(weight_OC: Tensor) -> Tensor:
    """``weight_OC`` or ``weight_OCHW``, each output channel on 129 levels around zero (``LARGEST_8_BIT_WEIGHT``)."""
    with torch.no_grad():
        largest_O = weight_OC.abs().flatten(1).amax(dim=1)
        scale_O = (largest_O / LARGEST_8_BIT_WEIGHT).clamp(min=_TINY)
        zero_O = torch.zeros_like(scale_O, dtype=torch.int32)
    largest = LARGEST_8_BIT_WEIGHT
    return torch.fake_quantize_per_channel_affine(weight_OC, scale_O, zero_O, 0, -largest, largest)
