"""The section ``tuning`` of an experiment file: what a study may vary, how long, what it maximises.

Knows the kinds of ranges and what each may vary, and turns what was drawn into values of the file. Knows nothing of
how values are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Scalar = bool | int | float | str | None
Floored = Literal["val_top1", "val_top5", "val_real_top1", "val_studio_top1"]


class _Section(BaseModel):
    """As the sections of the experiment file, which imports this module."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FloatRange(_Section):
    """Numbers with decimals, both ends included."""

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    """Draw evenly over the orders of magnitude."""

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start above 0, not at {self.low}")
        return self

    def ends(self) -> tuple[Scalar, ...]:
        """What must be allowed, that all between may be drawn."""
        return self.low, self.high

    def holds(self, value: Scalar) -> bool:
        """Whether this value could be drawn."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


class IntRange(_Section):
    """Whole numbers, both ends included."""

    type: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1)
    log: bool = False

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("a logarithmic range of whole numbers must start at 1 or above, in steps of 1")
        if (self.high - self.low) % self.step:
            raise ValueError(f"high ({self.high}) cannot be reached from low ({self.low}) in steps of {self.step}")
        return self

    def ends(self) -> tuple[Scalar, ...]:
        """What must be allowed: all of them where they are few (a kernel must be odd)."""
        values = range(self.low, self.high + 1, self.step)
        return tuple(values) if len(values) <= 100 else (self.low, self.high)

    def holds(self, value: Scalar) -> bool:
        """Whether this value could be drawn."""
        return type(value) is int and value in range(self.low, self.high + 1, self.step)


class Choices(_Section):
    """A few values, in no order."""

    type: Literal["categorical"] = "categorical"
    choices: tuple[Scalar, ...]

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(self.choices) < 2:
            raise ValueError(f"choices must be two or more values, not {list(self.choices)}")
        if len({(type(choice), choice) for choice in self.choices}) < len(self.choices):
            raise ValueError(f"choices must differ, not {list(self.choices)}")
        return self

    def ends(self) -> tuple[Scalar, ...]:
        """What must be allowed, that all may be drawn."""
        return self.choices

    def holds(self, value: Scalar) -> bool:
        """Whether this value could be drawn."""
        return any(type(value) is type(choice) and value == choice for choice in self.choices)


def _kind(value: Any) -> str | None:
    if isinstance(value, _Section):
        return str(getattr(value, "type", ""))
    if not isinstance(value, dict):
        return None
    return str(value.get("type", "categorical" if "choices" in value else "float"))


SearchRange = Annotated[
    Annotated[FloatRange, Tag("float")] | Annotated[IntRange, Tag("int")] | Annotated[Choices, Tag("categorical")],
    Discriminator(
        _kind,
        custom_error_type="search_range",
        custom_error_message="a range is {low: …, high: …}, {type: int, low: …, high: …} or {choices: […]}",
    ),
]

STRENGTH = "augmentation.strength"
"""A factor for the whole augmentation: not a key of its own, what it scales is written out in the result."""
_SCALED = {  # key → the largest value that is allowed
    "augmentation.rotation_degrees": 180.0,
    "augmentation.color_jitter.brightness": 1.0,
    "augmentation.color_jitter.contrast": 1.0,
    "augmentation.color_jitter.saturation": 1.0,
    "augmentation.color_jitter.hue": 0.5,
    "augmentation.blur.probability": 1.0,
    "augmentation.random_erasing": 1.0,
}
_CROP = "augmentation.random_crop.scale"

TUNABLE = ("model.", "training.", "optimizer.", "schedule.", "augmentation.", "distillation.")
"""What a study may vary: the trials share their prepared images, their loader and their length."""
NOT_TUNABLE = frozenset({"training.epochs", "training.warmup_epochs", "distillation.teacher"})


class TuningConfig(_Section):
    """The Optuna study: what it may vary, how long, and what it maximises."""

    trials: int = Field(default=20, ge=1)
    """In all, over all workers and restarts: trials that came to an end, whole, pruned or failed of themselves."""
    epochs: int = Field(default=10, ge=1)
    """Epochs of one trial."""
    train_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the training images that a trial sees (the same ones in all trials)."""
    objective: Literal["val_top1", "val_real_top1"] = "val_real_top1"
    """Measured on the validation split; the test split is never touched by tuning."""
    floors: dict[Floored, Annotated[float, Field(ge=0, le=1)]] = {}
    """Metric → what it must reach: a trial below is not the best, whatever its objective. The gate's minimums, where
    trials are long enough to reach them."""
    pruning: bool = True
    """Cut trials off that stay below the median of the others at the same epoch."""
    pruning_warmup_epochs: int = Field(default=1, ge=0)
    """Epochs of each trial that are never cut off."""
    pruning_startup_trials: int = Field(default=5, ge=0)
    """Trials that run whole before the first comparison."""
    pruning_patience_epochs: int = Field(default=0, ge=0)
    """Below the median, a trial is cut off only after more than so many epochs that brought nothing better; 0: at
    once."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe learns from the trials before; random is there to compare with."""
    stalled_after_s: float = Field(default=1800.0, gt=0)
    """A trial that reports nothing (no epoch, no ``logging.every_steps`` updates) for so many seconds hangs, and is
    ended."""
    heartbeat_s: int = Field(default=30, ge=1)
    """A trial says so often that it lives; one that is silent for four times as long is lost, and tried again."""
    trials_per_process: int = Field(default=1, ge=1)
    """So many trials, one after another, share a process: short ones spend longer on its imports than on learning. One
    process for each keeps the trials of a night apart: what one leaks, the next does not have."""
    retries: int = Field(default=3, ge=0)
    """So often is a trial whose process was killed, or that hung, tried again, from its checkpoint."""
    space: dict[str, SearchRange] = {
        "training.base_lr": FloatRange(low=1e-4, high=3e-3, log=True),
        "model.drop_rate": FloatRange(low=0.0, high=0.5),
        "augmentation.mixup_alpha": FloatRange(low=0.0, high=0.4),
    }
    """Dotted key of this file → range: {low, high, log} (numbers), {type: int, low, high, step, log} (whole numbers)
    or {choices}."""


OPERATIONAL = frozenset({"trials", "stalled_after_s", "heartbeat_s", "retries", "trials_per_process"})
"""Keys of the section that may change while a study goes on: it stays the same study."""


def search_fault(key: str, space: FloatRange | IntRange | Choices, known: Mapping[str, Any]) -> str | None:
    """Why a key of the file cannot be varied over this range; None: it can.

    Args:
        key: dotted key.
        space: its range.
        known: the file's values by dotted key.
    """
    if key == STRENGTH:
        return None if isinstance(space, FloatRange) and space.low >= 0 else "is a factor: give low (from 0) and high"
    if not key.startswith(TUNABLE) or key in NOT_TUNABLE:
        return f"cannot be varied; only {', '.join(TUNABLE)} can (but not {', '.join(sorted(NOT_TUNABLE))})"
    if key not in known:
        return "is not a number of this file, nor any other key of it; check the spelling"
    value = known[key]
    if isinstance(value, list | dict):
        return "is not a number of this file but a list; only single values can be varied"
    if value is None or isinstance(space, Choices):
        return None
    if isinstance(space, IntRange):
        return None if type(value) is int else "takes no whole numbers; leave out type: int, or give choices"
    if type(value) is float:
        return None
    if type(value) is int:
        return "is not a number of this file (with decimals); for whole numbers add type: int"
    return "is not a number of this file; give choices"


def overrides_of(drawn: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What was drawn, as values of the file.

    Args:
        drawn: dotted key → value, with the factor ``augmentation.strength`` perhaps.
        known: the file's values by dotted key.
    """
    values = {key: value for key, value in drawn.items() if key != STRENGTH}
    if STRENGTH not in drawn:
        return values
    factor = float(drawn[STRENGTH])
    scaled: dict[str, Any] = {key: min(known[key] * factor, most) for key, most in _SCALED.items()}
    low, high = known[_CROP]
    scaled[_CROP] = [max(high - (high - low) * factor, 0.05), high]
    return {**scaled, **values}  # a key with a range of its own is not scaled
