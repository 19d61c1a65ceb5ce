"""The gate's policy: targets, minimums, and how many test images a judgement needs.

Knows how ``registry/policy.yaml`` is read and checked; knows nothing of evidence or models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import describe_validation_error, read_yaml_mapping
from pillsnap.core.files import sha256_json

POLICY_VERSION = 1
DEFAULT_PATH = Path("registry/policy.yaml")

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AtLeast(_Section):
    """A share that must be reached: ``value >= threshold``."""

    target: Share
    minimum: Share

    @model_validator(mode="after")
    def _minimum_is_looser(self) -> Self:
        if self.minimum > self.target:
            raise ValueError(f"minimum ({self.minimum:g}) must not be over target ({self.target:g})")
        return self


class Below(_Section):
    """A cost that must stay under a limit: ``value < threshold``."""

    target: Positive
    minimum: Positive

    @model_validator(mode="after")
    def _minimum_is_looser(self) -> Self:
        if self.minimum < self.target:
            raise ValueError(f"minimum ({self.minimum:g}) must not be under target ({self.target:g}): less is better")
        return self


class ShareThresholds(_Section):
    """The shares that are judged."""

    top1: AtLeast
    top5: AtLeast
    real_top1: AtLeast


class CostThresholds(_Section):
    """The costs that are judged."""

    latency_p95_ms: Below
    """Milliseconds."""
    size_mb: Below
    """Megabytes, 10^6 bytes."""


class MinimumTestImages(_Section):
    """With fewer test images nothing is promoted."""

    total: Count
    real: Count
    """Real photos among them."""
    per_class: Count = 0
    """Of the class that has the fewest."""


class Policy(_Section):
    """What a model must reach. No threshold can be left out."""

    policy_version: Literal[1]
    at_least: ShareThresholds
    below: CostThresholds
    minimum_test_images: MinimumTestImages

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy. Raises ConfigError that names file and key."""
        if not path.is_file():
            raise ConfigError(
                f"{path}: no gate policy there (a relative path starts at {Path.cwd()}); call from the project's "
                "folder, or name the file with --policy"
            )
        document: dict[str, Any] = read_yaml_mapping(path)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(describe_validation_error(error, str(path))) from error

    @property
    def sha256(self) -> str:
        """sha256 of the policy's canonical JSON: comments and layout of the file do not change it."""
        document: Any = self.model_dump(mode="json")
        return sha256_json(document)
