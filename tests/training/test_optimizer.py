from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.training.backbone import create_net
from pillsnap.training.optimizer import BackboneWarmup, base_rate, create_optimizer, create_schedule

Config = Callable[..., ExperimentConfig]


def rates(config: ExperimentConfig, steps_per_epoch: int) -> list[float]:
    """The learning rate of every update, and the one after the last."""
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=config.training.base_lr)
    schedule = create_schedule(optimizer, config, steps_per_epoch)
    found = [optimizer.param_groups[0]["lr"]]
    for update in range(1, config.training.epochs * steps_per_epoch + 1):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def schedule_of(tiny_config: Config, **training: float) -> ExperimentConfig:
    values = {"base_lr": 0.01, "min_lr": 1e-5, "epochs": 5, "warmup_epochs": 2, **training}
    return tiny_config({f"training.{key}": value for key, value in values.items()})


def test_weight_decay_spares_norms_and_biases(tiny_config: Config) -> None:
    config = tiny_config({"training.weight_decay": 0.5, "training.base_lr": 0.1})
    net = create_net(config.model, config.preprocessing, 6)
    optimizer = create_optimizer(net, config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    spared = {name for name, parameter in net.named_parameters() if torch.all(parameter == 1)}
    norms = {
        f"{name}.{part}"
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    assert norms
    assert spared == norms | {"backbone.fc.bias"}
    for name, parameter in net.named_parameters():
        if name not in spared:
            torch.testing.assert_close(parameter, torch.full_like(parameter, 0.95))  # 1 - lr · decay


def test_adamw_takes_its_values(tiny_config: Config) -> None:
    config = tiny_config({"optimizer.betas": [0.8, 0.9], "optimizer.eps": 1e-5, "training.base_lr": 0.02})
    net = create_net(config.model, config.preprocessing, 6)
    optimizer = create_optimizer(net, config)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-5, 0.02)
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in net.parameters()}


def test_warm_up_then_cosine_update_by_update(tiny_config: Config) -> None:
    config = schedule_of(tiny_config)
    found = rates(config, steps_per_epoch=10)
    assert found[0] == pytest.approx(0.01 * config.schedule.warmup_factor)
    steps = torch.tensor(found[:21], dtype=torch.float64).diff()
    torch.testing.assert_close(steps, steps[:1].expand(20))  # a straight line
    assert found[20] == pytest.approx(0.01)
    assert max(found) == found[20]
    assert found[35] == pytest.approx((0.01 + 1e-5) / 2)  # half way between warm-up and end: the warm-up is not in it
    assert found[50] == pytest.approx(1e-5)
    assert all(later < earlier for earlier, later in pairwise(found[20:]))


def test_without_warm_up_the_base_rate_comes_first(tiny_config: Config) -> None:
    found = rates(schedule_of(tiny_config, warmup_epochs=0, epochs=2), steps_per_epoch=4)
    assert found[0] == pytest.approx(0.01)
    assert found[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize("steps_per_epoch", [1, 4])
def test_a_warm_up_that_rounds_to_the_whole_training(tiny_config: Config, steps_per_epoch: int) -> None:
    found = rates(schedule_of(tiny_config, warmup_epochs=0.9, epochs=1), steps_per_epoch)
    assert len(found) == steps_per_epoch + 1
    assert found[-1] == pytest.approx(1e-5)


def test_each_layer_learns_at_its_share_of_the_rate(tiny_config: Config) -> None:
    config = tiny_config({"training.layer_decay": 0.5, "training.base_lr": 0.01, "training.weight_decay": 0.5})
    net = create_net(config.model, config.preprocessing, 6)
    optimizer = create_optimizer(net, config)
    schedule = create_schedule(optimizer, config, steps_per_epoch=4)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for update in range(1, 9):
        schedule.step_update(update)
        rate = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rate.keys() == set(names.values())
        head = rate["backbone.fc.weight"]
        assert base_rate(optimizer) == head
        assert rate["backbone.layer4.0.conv1.weight"] == pytest.approx(0.5 * head)
        assert rate["backbone.layer1.0.conv1.weight"] == pytest.approx(0.5**4 * head)
        assert rate["backbone.conv1.weight"] == pytest.approx(0.5**5 * head)
    assert head == pytest.approx(config.training.min_lr)


def test_layer_decay_spares_norms_and_biases_too(tiny_config: Config) -> None:
    config = tiny_config({"training.layer_decay": 0.5, "training.weight_decay": 0.5})
    optimizer = create_optimizer(create_net(config.model, config.preprocessing, 6), config)
    decays = {(group["weight_decay"], p.ndim > 1) for group in optimizer.param_groups for p in group["params"]}
    assert decays == {(0.5, True), (0.0, False)}


@pytest.mark.parametrize("layer_decay", [1, 0.9])
def test_what_the_backbone_names_is_not_decayed(tiny_config: Config, layer_decay: float) -> None:
    transformer = {
        "model.backbone": "vit_tiny_patch16_224",
        "model.kwargs": {"img_size": 32, "depth": 1, "embed_dim": 12},
        "training.layer_decay": layer_decay,
        "training.weight_decay": 0.5,
    }
    config = tiny_config(transformer)
    net = create_net(config.model, config.preprocessing, 6)
    decay = {id(p): g["weight_decay"] for g in create_optimizer(net, config).param_groups for p in g["params"]}
    assert decay[id(net.get_parameter("backbone.pos_embed"))] == 0
    assert decay[id(net.get_parameter("backbone.cls_token"))] == 0
    assert decay[id(net.get_parameter("backbone.head.weight"))] == 0.5


def rates_by_name(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_backbone_and_classifier_have_rates_of_their_own(tiny_config: Config) -> None:
    config = tiny_config({"training.backbone_lr_scale": 0.2, "training.layer_decay": 0.5, "training.base_lr": 0.01})
    net = create_net(config.model, config.preprocessing, 6)
    optimizer = create_optimizer(net, config)
    schedule = create_schedule(optimizer, config, steps_per_epoch=4)
    for update in range(1, 9):
        schedule.step_update(update)
        rate = rates_by_name(net, optimizer)
        assert base_rate(optimizer) == rate["backbone.fc.weight"] == rate["backbone.fc.bias"]
        assert rate["backbone.layer4.0.conv1.weight"] == pytest.approx(0.2 * 0.5 * rate["backbone.fc.weight"])
        assert rate["backbone.conv1.weight"] == pytest.approx(0.2 * 0.5**5 * rate["backbone.fc.weight"])


def test_after_head_first_epochs_the_backbone_warms_up_by_itself(tiny_config: Config) -> None:
    overrides = {
        "training.epochs": 4,
        "training.freeze_epochs": 2,
        "training.warmup_epochs": 1,
        "training.base_lr": 0.01,
        "schedule.warmup_factor": 0.1,
    }
    config = tiny_config(overrides)
    net = create_net(config.model, config.preprocessing, 6)
    optimizer = create_optimizer(net, config)
    schedule = create_schedule(optimizer, config, steps_per_epoch=4)
    warmup = BackboneWarmup(optimizer, config, steps_per_epoch=4)
    shares = []
    for update in range(1, 16):
        schedule.step_update(update)
        warmup.apply(update)
        rate = rates_by_name(net, optimizer)
        assert rate["backbone.conv1.weight"] == rate["backbone.layer4.0.bn1.bias"]
        shares.append(round(rate["backbone.conv1.weight"] / rate["backbone.fc.weight"], 4))
    assert shares[7:] == [0.1, 0.325, 0.55, 0.775, 1.0, 1.0, 1.0, 1.0]  # from the ninth update, the first of epoch 3
