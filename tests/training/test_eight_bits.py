"""Quantisation-aware training: the grids, which layers compute on them, and what is left of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from timm.layers import SqueezeExcite
from torch import nn

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.device import Device
from pillsnap.training.eight_bits import EightBits, round_activations, round_weights
from pillsnap.training.trainer import _Trainer

Build = Callable[[dict[str, Any]], _Trainer]
FLOATS = st.floats(-1e3, 1e3, width=32)
AWARE = {"training.quantisation_aware": True}


def largest_end(values: np.ndarray) -> float:
    """At most three times the median image's."""
    end_N = np.sort(values.reshape(len(values), -1).max(axis=1))
    median = np.median(end_N)
    return max(min(end_N[-1], 3 * median) if median > 0 else end_N[-1], 0.0)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FLOATS))
def test_activations_lie_on_256_levels_with_zero_among_them(values: np.ndarray) -> None:
    rounded = round_activations(torch.from_numpy(values)).numpy()
    low, high = -largest_end(-values), largest_end(values)
    step = max((high - low) / 255, 1e-12)  # of least size where the map is nearly nothing: wider then than the map
    zero = np.rint(-low / step)
    assert np.abs(rounded - values.clip(-zero * step, (255 - zero) * step)).max() <= step * 0.52
    levels = rounded / step
    np.testing.assert_allclose(levels, np.rint(levels), atol=0.02)
    assert np.ptp(levels) <= 255.01
    assert (rounded[values == 0] == 0).all()


def test_one_wild_image_does_not_take_the_steps_of_all_others() -> None:
    values = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    wild = values.clone()
    wild[2] *= 1000
    kept = [0, 1, 3, 4]
    assert (round_activations(wild)[kept] - values[kept]).abs().max() <= 3 / 255 / 2 * 1.01
    assert round_activations(wild)[2].max() <= 3


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=FLOATS))
def test_each_output_channel_has_its_own_grid_around_zero(weight_OC: np.ndarray) -> None:
    rounded_OC = round_weights(torch.from_numpy(weight_OC)).numpy()
    step_O1 = np.maximum(np.abs(weight_OC).max(axis=1, keepdims=True) / 64, 1e-12)
    assert (np.abs(rounded_OC - weight_OC) <= step_O1 * 0.51).all()
    np.testing.assert_allclose(rounded_OC / step_O1, np.rint(rounded_OC / step_O1), atol=0.02)


def test_a_factor_by_channel_scales_the_grid_so_batch_norms_need_no_folding() -> None:
    weight_OC, factor_O1 = torch.randn(8, 20, generator=torch.Generator().manual_seed(0)), torch.arange(1.0, 9)[:, None]
    torch.testing.assert_close(round_weights(weight_OC * factor_O1), round_weights(weight_OC) * factor_O1)


def test_what_is_cut_off_learns_nothing() -> None:
    values = torch.tensor([[1.0, -1.0], [1.0, -1.0], [50.0, -1.0]], requires_grad=True)
    round_activations(values).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]))


def test_a_single_vector_is_one_image() -> None:
    vector, weight_OC = torch.tensor([1.0, 50.0]), torch.ones(3, 2)
    with EightBits():
        torch.testing.assert_close(F.linear(vector, weight_OC), torch.full((3,), 51.0), atol=0.2, rtol=0)


def test_the_gradient_passes_as_if_nothing_were_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    values, weight_OC = torch.randn(7, 5, generator=generator), torch.randn(3, 5, generator=generator)
    values.requires_grad_()
    weight_OC.requires_grad_()
    with EightBits():
        F.linear(values, weight_OC).sum().backward()
    torch.testing.assert_close(values.grad, round_weights(weight_OC).detach().sum(0).expand(7, 5))
    torch.testing.assert_close(weight_OC.grad, round_activations(values).detach().sum(0).expand(3, 5))


def test_convolutions_and_linear_layers_round_and_nothing_else() -> None:
    torch.manual_seed(0)
    image, features = torch.randn(2, 4, 6, 6), torch.randn(2, 4)
    conv, grouped = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(4, 4, 3, groups=4)
    linear, norm = nn.Linear(4, 3), nn.BatchNorm2d(4)
    with torch.no_grad():
        plain = [conv(image), grouped(image), linear(features), norm(image)]
        with EightBits():
            found = [conv(image), grouped(image), linear(features), norm(image)]
        fine = round_activations(image)
        expected = [
            F.conv2d(fine, round_weights(conv.weight), conv.bias, 2, 1),
            F.conv2d(fine, round_weights(grouped.weight), grouped.bias, groups=4),
            F.linear(round_activations(features), round_weights(linear.weight), linear.bias),
        ]
    for ours, theirs, unrounded in zip(found[:3], expected, plain[:3], strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, unrounded)
    torch.testing.assert_close(found[3], plain[3])
    with torch.no_grad():
        assert torch.equal(conv(image), plain[0]), "only within the context"


def test_squeeze_and_excitation_stays_in_float() -> None:
    torch.manual_seed(0)
    gate, image = SqueezeExcite(8), torch.randn(2, 8, 5, 5)
    with torch.no_grad(), EightBits():
        found = gate(image)
    torch.testing.assert_close(found, gate(image))


def test_a_training_learns_and_is_validated_on_the_grids_and_keeps_float_weights(trainer: Build) -> None:
    seen: list[bool] = []
    found = {}

    def is_plain(layer: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        product = args[0] @ layer.get_parameter("weight").T + layer.get_parameter("bias")  # no function that rounds
        seen.append(torch.allclose(output, product, atol=1e-6))

    for aware in (False, True):
        built = trainer({"training.quantisation_aware": aware, "training.ema_decay": 0.9})
        for net in (built._net, built._judged_net()):
            net.backbone.get_submodule("fc").register_forward_hook(is_plain)
        built._train_epoch(1)
        built._validate()
        found[aware] = built._judged_net().state_dict(), seen[:]
        seen.clear()
    assert found[False][1] == [True] * 8  # six updates, and validation of the average and of the net itself
    assert found[True][1] == [False] * 8
    assert found[True][0].keys() == found[False][0].keys()
    kernel = found[True][0]["backbone.conv1.weight"]
    assert len(kernel[0].unique()) == kernel[0].numel(), "learned in float: no two weights on one level"


def test_the_teacher_answers_in_float(trainer: Build, trained: Any) -> None:
    teacher = {"distillation.teacher": str(trained.result.best_checkpoint)}
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = []
    for aware in (False, True):
        built = trainer({**teacher, "training.quantisation_aware": aware})
        assert built._teacher is not None
        answers.append(built._teacher.answers(image))
    assert torch.equal(*answers)


def test_mixed_precision_is_off_and_what_would_not_be_applied_is_refused(
    tiny_config: Callable[..., ExperimentConfig],
) -> None:
    device = Device.of(tiny_config({**AWARE, "training.mixed_precision": "auto"}))
    assert (device.autocast_dtype, device.eight_bits) == (None, True)
    assert str(device).endswith("float32, rounded to 8 bits")
    assert not Device.of(tiny_config()).eight_bits
    for key in ("training.mixed_precision", "training.compile"):
        with pytest.raises(ConfigError, match="quantisation_aware computes in float32 and uncompiled"):
            tiny_config({**AWARE, key: True})
