"""The search space: three kinds of ranges, each checked against the key that it varies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.core.search import STRENGTH, Choices, FloatRange, IntRange

FLOAT = {"low": 0.1, "high": 0.2}


def with_space(space: dict[str, Any]) -> ExperimentConfig:
    return ExperimentConfig.build({"tuning": {"space": space}}, None, "x.yaml")


def test_each_kind_is_read_as_what_it_is_and_written_back() -> None:
    config = with_space(
        {
            "training.base_lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "augmentation.blur.kernel": {"type": "int", "low": 3, "high": 7, "step": 2},
            "model.backbone": {"choices": ["resnet18", "resnet34"]},
            "training.mixed_precision": {"choices": [True, False]},
            STRENGTH: {"low": 0, "high": 2},
        }
    )
    kinds = [type(space) for space in config.tuning.space.values()]
    assert kinds == [FloatRange, IntRange, Choices, Choices, FloatRange]
    config.check_search_ends("x.yaml")
    assert with_space(config.model_dump(mode="json")["tuning"]["space"]) == config
    assert config.tuning.space["training.mixed_precision"].ends() == (True, False), "no number is made of them"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"model.backbone": FLOAT}, "'model.backbone' is not a number of this file; give choices"),
        ({"model.pretrained": FLOAT}, "give choices"),
        ({"augmentation.blur.kernel": {"low": 3, "high": 7}}, "add type: int"),
        ({"training.base_lr": {"type": "int", "low": 1, "high": 2}}, "leave out type: int"),
        ({"training.epochs": {"type": "int", "low": 1, "high": 2}}, "cannot be varied"),
        ({"data.batch_size": {"choices": [8, 16]}}, "cannot be varied"),
        ({"distillation.teacher": {"choices": ["a.pt", "b.pt"]}}, "cannot be varied"),
        ({"distillation.weight": FLOAT}, "is not a number of this file"),  # without a teacher there is no weight
        ({"optimizer.betas": {"choices": [0.9, 0.8]}}, "but a list"),
        ({"model.drop_rat": {"choices": [0.1, 0.2]}}, "check the spelling"),
        ({STRENGTH: {"choices": [1, 2]}}, "is a factor"),
        ({STRENGTH: {"low": -1, "high": 2}}, "is a factor"),
        ({"model.drop_rate": {"type": "int", "low": 1, "high": 1}}, "must be below high"),
        ({"model.drop_rate": {"type": "int", "low": 0, "high": 8, "log": True}}, "must start at 1"),
        ({"model.drop_rate": {"type": "int", "low": 1, "high": 8, "step": 2}}, "cannot be reached"),
        ({"model.drop_rate": {"choices": [0.1]}}, "two or more"),
        ({"model.drop_rate": {"choices": [0.1, 0.1]}}, "must differ"),
        ({"model.drop_rate": {"low": 0.0, "high": 0.2, "log": True}}, "must start above 0"),
        ({"model.drop_rate": {"type": "real", "low": 0.0, "high": 0.2}}, "a range is {low"),
        ({"model.drop_rate": [0.1, 0.2]}, "a range is {low"),
        ({"model.drop_rate": {"low": 0.1}}, "Field required"),
    ],
)
def test_what_is_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"x.yaml: tuning.space") as caught:
        with_space(space)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"model.drop_rate": {"low": 0.0, "high": 1.5}}, "tuning.space: model.drop_rate=1.5"),
        ({"model.drop_rate": {"low": -0.5, "high": 0.5}}, "tuning.space: model.drop_rate=-0.5"),
        ({"augmentation.blur.kernel": {"type": "int", "low": 3, "high": 7}}, "kernel must be odd"),
        ({"augmentation.blur.kernel": {"choices": [3, 5, 4]}}, "augmentation.blur.kernel=4"),
        ({"optimizer.name": {"choices": ["adamw", "sgd"]}}, "optimizer.name=sgd"),
    ],
)
def test_both_ends_and_all_choices_must_be_allowed(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_space(space).check_search_ends("x.yaml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("space", "inside", "outside"),
    [
        (FloatRange(low=0, high=1), (0, 0.5, 1), (-0.1, 1.1, None, True, "0.5")),
        (IntRange(type="int", low=1, high=7, step=2), (1, 3, 7), (2, 9, 3.0, None)),
        (Choices(choices=(1, True, "a", None)), (1, True, "a", None), (1.0, False, "b")),
    ],
)
def test_whether_a_value_could_be_drawn(space: Any, inside: tuple[Any, ...], outside: tuple[Any, ...]) -> None:
    assert all(space.holds(value) for value in inside)
    assert not any(space.holds(value) for value in outside)


@given(st.floats(0, 50))
def test_any_strength_gives_an_experiment_that_is_allowed(factor: float) -> None:
    config = ExperimentConfig().with_drawn({STRENGTH: factor}, "trial")
    assert ExperimentConfig.build(config.model_dump(mode="json"), None, "again") == config


def test_strength_scales_what_the_file_says() -> None:
    config = ExperimentConfig()
    same = config.with_drawn({STRENGTH: 1.0}, "trial").augmentation
    assert same == config.augmentation
    none = config.with_drawn({STRENGTH: 0.0}, "trial").augmentation
    assert (none.rotation_degrees, none.color_jitter.hue, none.blur.probability, none.random_erasing) == (0, 0, 0, 0)
    assert none.random_crop.scale == (1.0, 1.0)
    drawn = {STRENGTH: 0.5, "augmentation.random_erasing": 0.9, "model.drop_rate": 0.25}
    half = config.with_drawn(drawn, "trial", {"seed": 5})
    assert (half.augmentation.rotation_degrees, half.augmentation.random_erasing) == (15, 0.9)
    assert half.augmentation.random_crop.scale == pytest.approx((0.9, 1.0))
    assert (half.model.drop_rate, half.seed, half.augmentation.mixup_alpha) == (
        0.25,
        5,
        config.augmentation.mixup_alpha,
    )
