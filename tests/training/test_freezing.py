from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.training.backbone import PillNet, create_net
from pillsnap.training.freezing import Freezer, keeps_batch_norms
from pillsnap.training.trainer import _Trainer

Build = Callable[[dict[str, Any]], _Trainer]


def state(trainer: _Trainer) -> dict[str, torch.Tensor]:
    """Weights and statistics, copied."""
    return {name: value.clone() for name, value in trainer._net.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


HEAD = {"backbone.fc.weight", "backbone.fc.bias"}


def test_head_first_then_all(trainer: Build) -> None:
    """Weight decay and momentum are on: neither may move what is frozen. Norms keep their statistics too."""
    built = trainer({"training.epochs": 4, "training.freeze_epochs": 2, "training.weight_decay": 0.5})
    states = [state(built)]
    for epoch in (1, 2, 3):
        built._train_epoch(epoch)
        states.append(state(built))
    assert changed(states[0], states[1]) == HEAD
    assert changed(states[1], states[2]) == HEAD
    assert changed(states[2], states[3]) == states[0].keys()


def test_the_thawed_backbone_warms_up_by_itself(trainer: Build) -> None:
    """`BackboneWarmup` must be asked at every update, and for the one that comes."""
    built = trainer({"training.freeze_epochs": 1, "training.warmup_epochs": 1, "schedule.warmup_factor": 0.1})
    shares, step = [], built._optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        rates = {group["is_head"]: group["lr"] for group in built._optimizer.param_groups}
        shares.append(rates[False] / rates[True])
        return step(*args, **kwargs)

    built._optimizer.step = watched  # type: ignore[method-assign]
    for epoch in (1, 2):  # of six updates
        built._train_epoch(epoch)
    assert shares == pytest.approx([1] * 6 + [0.1, 0.25, 0.4, 0.55, 0.7, 0.85])


def test_validation_between_frozen_epochs_does_not_thaw(trainer: Build) -> None:
    built = trainer({"training.epochs": 3, "training.freeze_epochs": 2})
    before = state(built)
    for epoch in (1, 2):
        built._train_epoch(epoch)
        built._validate()
    assert changed(before, state(built)) == HEAD


def test_the_frozen_backbone_costs_no_backward_pass(trainer: Build) -> None:
    built = trainer({"training.freeze_epochs": 1})
    built._train_epoch(1)
    grads = {name for name, parameter in built._net.named_parameters() if parameter.grad is not None}
    assert grads == HEAD


def test_without_freezing_everything_learns_at_once(trainer: Build) -> None:
    built = trainer({})
    before = state(built)
    built._train_epoch(1)
    assert changed(before, state(built)) == before.keys()


def test_what_the_backbone_itself_keeps_fixed_stays_fixed(tiny_config: Callable[..., ExperimentConfig]) -> None:
    config = tiny_config()
    net = create_net(config.model, config.preprocessing, 6)
    fixed = net.get_parameter("backbone.conv1.weight").requires_grad_(False)
    freezer = Freezer(net, 1)
    for epoch in (1, 2):
        freezer.enter(epoch)
    assert not fixed.requires_grad
    assert net.get_parameter("backbone.layer1.0.conv1.weight").requires_grad


def test_dropout_of_the_head_stays_on(tiny_config: Callable[..., ExperimentConfig]) -> None:
    config = tiny_config({"model.drop_rate": 0.5, "model.drop_path_rate": 0})
    net = create_net(config.model, config.preprocessing, 6).train()
    Freezer(net, 1).enter(1)
    image = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    assert not torch.equal(net(image), net(image))


def test_a_net_without_a_named_classifier_cannot_be_frozen() -> None:
    net = PillNet(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), PreprocessingSpec())
    with pytest.raises(ConfigError, match=r"training\.freeze_epochs: Sequential does not say .*freeze_epochs=0"):
        Freezer(net, 1)
    Freezer(net, 0).enter(1)


def test_freezing_for_the_whole_training_is_misconfigured(tiny_config: Callable[..., ExperimentConfig]) -> None:
    with pytest.raises(ConfigError, match=r"freeze_epochs \(2\) must be fewer than epochs \(2\)"):
        tiny_config({"training.freeze_epochs": 2})


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(("rule", "kept"), [("keep", True), ("train", False), ("auto", False)])
def test_batch_norms_keep_their_statistics_where_asked(trainer: Build, rule: str, kept: bool) -> None:
    """From random weights ``auto`` trains them. Their weights and biases learn in any case."""
    built = trainer({"training.batch_norm": rule})
    before = state(built)
    built._train_epoch(1)
    moved = changed(before, state(built))
    statistics = {name for name in before if name.endswith(STATISTICS)}
    assert statistics
    assert moved == (before.keys() - statistics if kept else before.keys())


def test_a_training_that_starts_from_weights_keeps_their_batch_norms(trainer: Build, tmp_path: Path) -> None:
    """Of ``auto``, the default; also where it goes on after a kill, when the weights are not read again."""
    first = trainer({})
    first._keep(1, {"val_top1": 0.5, "val_loss": 1.0})
    started = {"model.pretrained": True, "model.weights": str(tmp_path / "checkpoints" / "best-001.pt")}
    built = trainer(started)
    before = state(built)
    built._train_epoch(1)
    assert not [name for name in changed(before, state(built)) if name.endswith(STATISTICS)]
    assert keeps_batch_norms("auto", started_from_weights=True)
    assert not keeps_batch_norms("train", started_from_weights=True)
