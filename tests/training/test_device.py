from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pillsnap.core.experiment import ExperimentConfig, ModelConfig
from pillsnap.training import device as module
from pillsnap.training.device import BF16_GAINS_FROM, Device, arithmetic_intensity

DENSE = {"model.kwargs": {}}  # a whole ResNet-18
MOBILE = {"model.backbone": "mobilenetv3_small_050", "model.kwargs": {}}


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
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16 or including_emulation)
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


@pytest.mark.parametrize(
    ("cuda", "cpu_bf16", "mixed", "net", "expected"),
    [
        (False, True, "auto", DENSE, torch.bfloat16),
        (False, True, "auto", MOBILE, None),
        (False, True, True, MOBILE, torch.bfloat16),
        (False, False, "auto", DENSE, None),
        (False, True, False, DENSE, None),
        (True, False, "auto", MOBILE, torch.bfloat16),
    ],
)
def test_auto_takes_bf16_where_it_pays(
    monkeypatch: pytest.MonkeyPatch,
    tiny_config: Callable[..., ExperimentConfig],
    cuda: bool,
    cpu_bf16: bool,
    mixed: bool | str,
    net: dict[str, Any],
    expected: torch.dtype | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(module, "_cpu_computes_bf16", lambda: cpu_bf16)
    assert Device.of(tiny_config({**net, "training.mixed_precision": mixed})).autocast_dtype == expected


def test_the_rule_is_counted_not_timed() -> None:
    resnet = ModelConfig(backbone="resnet18", pretrained=False)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    counted = arithmetic_intensity(resnet, 64)
    assert torch.equal(torch.rand(2), expected)  # the training's generator stands where it stood
    assert counted == arithmetic_intensity(resnet, 64) > BF16_GAINS_FROM


def test_intensity_by_hand() -> None:
    """The smallest of timm's nets would not be counted by hand; a single patch embedding can be."""
    kwargs: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 0, "num_heads": 1}
    one_layer = ModelConfig(backbone="vit_tiny_patch16_224", pretrained=False, kwargs=kwargs)
    patches, width, head = 4, 8, 1000
    multiplications = patches * width * (3 * 16 * 16) + head * width
    assert arithmetic_intensity(one_layer, 32) == pytest.approx(multiplications / (patches * width + head))
