"""The gate's policy: targets, minimums, and how many test images a judgement needs.

Knows how ``registry/policy.yaml`` is read and checked; knows nothing of evidence or models.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pillsnap.core.errors import ConfigError
from pillsnap.core.experiment import describe_validation_error, read_yaml_mapping
from pillsnap.core.files import sha256_json

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


class WorstOf(AtLeast):
    """The worst value of a condition of the real photos, e.g. of the lights."""

    images: Annotated[int, Field(ge=1)]
    """A value with fewer photos is not judged: its share is chance."""


class LatencyProfile(_Section):
    """Where a latency must have been measured to count."""

    provider: str
    """ONNX Runtime's execution provider."""
    most_threads: Annotated[int, Field(ge=1)]
    hardware: tuple[str, ...] = Field(min_length=1)
    """Patterns (``*``, ``?``) of the processor's name; one must fit."""

    @field_validator("hardware", mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class ChampionMargins(_Section):
    """How much worse than the champion a model may be at most, at the lower end of the paired interval."""

    top1: Share
    real_top1: Share


class TestManifest(_Section):
    """What may be measured on."""

    __test__ = False  # no test class, whatever its name says
    trusted: tuple[str, ...]
    """Hashes of manifests, the only ones that count; empty: the manifest that the model was trained from."""
    max_age_days: Annotated[int, Field(ge=1)] | None
    """Between the making of the manifest and the evaluation."""

    @field_validator("trusted", mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Policy(_Section):
    """What a model must reach. No threshold can be left out."""

    policy_version: Literal[2]
    at_least: ShareThresholds
    below: CostThresholds
    minimum_test_images: MinimumTestImages
    judge_by: Literal["point", "lower_bound"]
    """Which number of a share must reach the threshold: the measured one, or the lower end of its 95 % interval (that
    of the bootstrap over capture groups where there is one)."""
    worst_slice: dict[Literal["domain", "background", "light", "side"], WorstOf]
    latency_profile: LatencyProfile
    not_worse_than_champion: ChampionMargins
    test_manifest: TestManifest
    decision_max_age_days: Annotated[int, Field(ge=1)] | None
    """An older decision opens nothing; a version that was champion before needs no new one."""

    @property
    def decision_max_age(self) -> timedelta | None:
        """`decision_max_age_days` as a length of time."""
        return None if self.decision_max_age_days is None else timedelta(days=self.decision_max_age_days)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy. Raises ConfigError that names file and key."""
        if not path.is_file():
            raise ConfigError(
                f"{path}: no gate policy there (a relative path starts at {Path.cwd()}); call from the project's "
                "folder, or name the file with --policy"
            )
        document: dict[str, Any] = read_yaml_mapping(path)
        if document.get("policy_version") == 1:
            raise ConfigError(
                f"{path}: policy_version 1 is of a former PillSnap; version 2 also states judge_by, worst_slice, "
                "latency_profile, not_worse_than_champion, test_manifest and decision_max_age_days: take them from the "
                "project's registry/policy.yaml"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(describe_validation_error(error, str(path))) from error

    @property
    def sha256(self) -> str:
        """sha256 of the policy's canonical JSON: comments and layout of the file do not change it."""
        document: Any = self.model_dump(mode="json")
        return sha256_json(document)
