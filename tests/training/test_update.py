"""How one update is made: of how many batches, in which memory format, compiled or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from pillsnap.core.errors import DataError
from pillsnap.training.trainer import _Trainer

Build = Callable[[dict[str, Any]], _Trainer]
NO_BATCH_NORM = {"model.kwargs.norm_layer": "groupnorm1"}


def weights(trainer: _Trainer) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer._judged_net().parameters()])


@pytest.mark.parametrize(("clip", "taught"), [(None, False), (0.05, False), (0.05, True)])
def test_accumulated_batches_equal_one_large_batch(
    trainer: Build, trained: SimpleNamespace, clip: float | None, taught: bool
) -> None:
    """Schedule, clipping, EMA, class weights and the teacher's answers included: only the memory differs."""
    common = {**NO_BATCH_NORM, "training.gradient_clip": clip, "training.ema_decay": 0.5, "training.warmup_epochs": 0.5}
    if taught:
        common |= {"distillation.teacher": str(trained.result.best_checkpoint), "distillation.weight": 0.7}
    found = {}
    for batch_size, accumulate in ((32, 1), (8, 4), (8, 1)):
        built = trainer({**common, "data.batch_size": batch_size, "training.accumulate": accumulate})
        start = weights(built).clone()
        metrics = [built._train_epoch(epoch) for epoch in (1, 2)]
        found[batch_size, accumulate] = weights(built), metrics[-1], built._step
    large, small, other = found.values()
    way = (large[0] - start).norm()  # AdamW divides by a gradient's own size: a tiny one of another rounding moves
    assert (small[0] - large[0]).norm() < 0.01 * way
    assert (other[0] - large[0]).norm() > 0.2 * way
    assert small[1]["train_loss"] == pytest.approx(large[1]["train_loss"], rel=1e-3)
    assert small[1]["lr"] == large[1]["lr"]
    assert (small[2], large[2], other[2]) == (6, 6, 24)  # 96 images, 2 epochs


def test_the_gradient_of_an_update_is_the_mean_of_its_batches(trainer: Build) -> None:
    built = trainer({**NO_BATCH_NORM, "data.batch_size": 16, "training.accumulate": 2})
    image, label_N = (part[:32] for part in next(iter_rows(built)))
    before = weights(built).clone()
    built._update(image[:16], label_N[:16])
    assert torch.equal(weights(built), before)  # in the middle of an update nothing moves
    built._update(image[16:], label_N[16:])
    assert not torch.equal(weights(built), before)
    found = {name: p.grad.clone() for name, p in built._net.named_parameters() if p.grad is not None}
    whole = trainer({**NO_BATCH_NORM, "data.batch_size": 32})
    whole._update(image, label_N)
    for name, parameter in whole._net.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def iter_rows(trainer: _Trainer) -> Any:
    """All training images, classes in turn, and their labels."""
    data = trainer._data
    rows = data.train_indices.reshape(6, -1).T.flatten()
    yield torch.from_numpy(data.cache.images_NHWC_u8[rows]), torch.from_numpy(data.labels_N[rows])


def test_the_seed_decides_the_first_weights_and_all_that_is_drawn(trainer: Build) -> None:
    def drawn(seed: int) -> tuple[torch.Tensor, float, float, float]:
        built = trainer({"seed": seed})
        return weights(built).clone(), float(torch.rand(1)), float(np.random.rand()), random.random()  # noqa: NPY002

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert first[1:] == again[1:]
    assert all(ours != theirs for ours, theirs in zip(first[1:], other[1:], strict=True))


def test_batches_that_fill_no_update_are_left_out(trainer: Build) -> None:
    built = trainer({"data.batch_size": 16, "training.accumulate": 4})  # six batches: one update
    built._train_epoch(1)
    assert (built._step, built._accumulated) == (1, 0)


def test_fewer_images_than_one_update_are_refused(trainer: Build) -> None:
    with pytest.raises(DataError, match=r"96 training images are fewer than the 112 of one training step"):
        trainer({"data.batch_size": 16, "training.accumulate": 7})


def test_pixels_weights_and_average_lie_channels_last(trainer: Build) -> None:
    built = trainer({"training.ema_decay": 0.9})
    seen: list[bool] = []
    for net in (built._net, built._judged_net()):
        net.backbone.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        kernels = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert kernels
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    built._train_epoch(1)
    built._validate()
    assert len(seen) == 8  # six updates, one batch of validation for the average and for the net itself
    assert all(seen)


def test_a_compiled_backbone_learns_the_same_under_the_same_names(
    trainer: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is captured and differentiated as always; only its code is not generated, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    common = {"training.ema_decay": 0.5, "training.base_lr": 1e-3, "training.epochs": 2, "training.freeze_epochs": 1}
    found = {}
    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        built = trainer({**common, "training.compile": compiled})
        for epoch in (1, 2):  # the backbone frozen, then not
            built._train_epoch(epoch)
        assert bool(counters["frames"]["ok"]) == compiled
        found[compiled] = built._net.state_dict(), built._validate()["val_loss"]
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-3, atol=2e-3)
    assert found[True][1] == pytest.approx(found[False][1], rel=0.02)
    assert not [name for name in found[True][0] if "_orig_mod" in name]
