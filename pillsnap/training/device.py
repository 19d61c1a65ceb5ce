"""Which device, and whether mixed precision pays there.

On a GPU it always does. A CPU that computes in bf16 gains from it where a net does much arithmetic for each value that
it writes: the products become faster, and everything between them pays for the conversions. So the rule of
``mixed_precision: auto`` counts multiplications, and times nothing: the same experiment takes the same way every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pillsnap.core.experiment import ExperimentConfig, ModelConfig
from pillsnap.training.eight_bits import EightBits

BF16_GAINS_FROM = 200.0
"""Multiply-accumulates per value that a layer writes, from which bf16 pays on a CPU.

Time of a step in float32 ÷ in bf16, at 64 to 224 px on an AVX-512 CPU with BF16: ResNet-18 and -50 (331 to 730) 1.4 to
2.8, ViT-Ti (261) 1.0 to 1.3, tf_efficientnetv2_s (234) 0.9 to 1.6, HGNetV2-B0 (151) 0.8 to 1.0, ConvNeXt-A (144) 0.5 to
1.0, MobileNetV4 and V3, EfficientNet-B0 (143 to 49) 0.5 to 1.1. Grouped convolutions gain more than is counted here:
RegNetY-400MF (103) 1.3."""


@dataclass(frozen=True)
class Device:
    """A device and the precision of its forward pass."""

    torch_device: torch.device
    autocast_dtype: torch.dtype | None
    """None: everything in float32."""
    eight_bits: bool = False
    """The net that learns computes on 8-bit grids (quantisation-aware training)."""

    @classmethod
    def choose(cls, mixed_precision: bool) -> Device:
        """CUDA where there is one. bf16 where the hardware computes in it, fp16 on older GPUs."""
        if torch.cuda.is_available():
            # emulated, bf16 would be slower than float32
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            fast = torch.bfloat16 if native else torch.float16
            return cls(torch.device("cuda"), fast if mixed_precision else None)
        bf16 = mixed_precision and torch.backends.mkldnn.is_available() and _cpu_computes_bf16()
        return cls(torch.device("cpu"), torch.bfloat16 if bf16 else None)

    @classmethod
    def of(cls, config: ExperimentConfig) -> Device:
        """The device of an experiment, ``mixed_precision: auto`` decided."""
        if config.training.quantisation_aware:  # bf16 has no more levels than the grids that it would hide
            return replace(cls.choose(False), eight_bits=True)
        wanted = config.training.mixed_precision
        if wanted == "auto":
            plain = cls.choose(True)
            wanted = plain.torch_device.type != "cpu" or (
                plain.autocast_dtype is not None
                and arithmetic_intensity(config.model, config.preprocessing.target_size) >= BF16_GAINS_FROM
            )
        return cls.choose(wanted)

    @property
    def needs_scaler(self) -> bool:
        """fp16 gradients underflow without loss scaling; bf16 has float32's range."""
        return self.autocast_dtype == torch.float16

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """The context in which the net that learns answers, in training and in validation."""
        with self.autocast(), EightBits() if self.eight_bits else nullcontext():
            yield

    def autocast(self) -> AbstractContextManager[object]:
        """The context of any other net's forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=self.autocast_dtype)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.torch_device.type == "cuda" else "CPU"
        precision = str(self.autocast_dtype).removeprefix("torch.") if self.autocast_dtype else "float32"
        return f"{name}, {precision}" + (", rounded to 8 bits" if self.eight_bits else "")


def _cpu_computes_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def arithmetic_intensity(model: ModelConfig, size_px: int) -> float:
    """Multiply-accumulates of a backbone's convolutions and linear layers per value that they write.

    Counted on one forward pass of a square image; the generators of random numbers stay as they are.
    """
    import timm  # takes seconds, and ``pillsnap doctor`` asks only for the device

    multiplications = values = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal multiplications, values
        multiplications += output.numel() * layer.get_parameter("weight")[0].numel()
        values += output.numel()

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        arguments: dict[str, Any] = model.kwargs
        net = timm.create_model(model.backbone, pretrained=False, **arguments).eval()
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        net(torch.zeros(1, 3, size_px, size_px))
    return multiplications / values if values else 0.0
