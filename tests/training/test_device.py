from __future__ import annotations

import pytest
import torch

from pillsnap.training import device as module
from pillsnap.training.device import Device


@pytest.mark.parametrize(
    ("cuda", "cuda_bf16", "cpu_bf16", "mixed", "expected"),
    [
        (True, True, False, True, ("cuda", torch.bfloat16, False)),
        (True, False, True, True, ("cuda", torch.float16, True)),
        (True, True, True, False, ("cuda", None, False)),
        (False, True, True, True, ("cpu", torch.bfloat16, False)),
        (False, True, False, True, ("cpu", None, False)),
        (False, True, True, False, ("cpu", None, False)),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch,
    cuda: bool,
    cuda_bf16: bool,
    cpu_bf16: bool,
    mixed: bool,
    expected: tuple[str, torch.dtype | None, bool],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: cuda_bf16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(module, "_cpu_computes_bf16", lambda: cpu_bf16)
    chosen = Device.choose(mixed)
    assert (chosen.torch_device.type, chosen.autocast_dtype, chosen.needs_scaler) == expected


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast_is_what_it_says(dtype: torch.dtype | None) -> None:
    device = Device(torch.device("cpu"), dtype)
    with device.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)
    assert str(device) == ("CPU, bfloat16" if dtype else "CPU, float32")


def test_this_machine_is_asked_without_an_error() -> None:
    assert isinstance(Device.choose(mixed_precision=True), Device)
