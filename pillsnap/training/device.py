"""Which device, and whether mixed precision pays there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """A device and the precision of its forward pass."""

    torch_device: torch.device
    autocast_dtype: torch.dtype | None
    """None: everything in float32."""

    @classmethod
    def choose(cls, mixed_precision: bool) -> Device:
        """CUDA where there is one. bf16 where the hardware computes in it, fp16 on older GPUs."""
        if torch.cuda.is_available():
            fast = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            return cls(torch.device("cuda"), fast if mixed_precision else None)
        bf16 = mixed_precision and torch.backends.mkldnn.is_available() and _cpu_computes_bf16()
        return cls(torch.device("cpu"), torch.bfloat16 if bf16 else None)

    @property
    def needs_scaler(self) -> bool:
        """fp16 gradients underflow without loss scaling; bf16 has float32's range."""
        return self.autocast_dtype == torch.float16

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=self.autocast_dtype)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.torch_device.type == "cuda" else "CPU"
        precision = str(self.autocast_dtype).removeprefix("torch.") if self.autocast_dtype else "float32"
        return f"{name}, {precision}"


def _cpu_computes_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
