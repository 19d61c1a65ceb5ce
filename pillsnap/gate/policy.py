"""The gate's policy: targets and minimums, what a figure must rest on to count, and how long a decision holds.

Knows how ``registry/policy.yaml`` is read and checked; knows nothing of evidence or models.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pillsnap.core.errors import ConfigError
from pillsnap.core.files import sha256_json
from pillsnap.core.yaml_mapping import describe_validation_error, read_yaml_mapping

POLICY_VERSION = 2
DEFAULT_PATH = Path("registry/policy.yaml")

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
SomeImages = Annotated[int, Field(ge=1)]
Days = Annotated[int, Field(ge=1, le=36_500)]
ConditionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
ManifestHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Glob = Annotated[str, Field(min_length=1)]


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


class WorstOf(AtLeast):
    """The threshold for the worst value of a condition, or the worst class.

    Each value is judged, and each needs so many images: a value with fewer holds the model back. It is not left out,
    or a test set could get rid of a bad value by having fewer photos of it.
    """

    images: SomeImages


class MinimumTestImages(_Section):
    """With fewer test images nothing is promoted."""

    total: SomeImages
    real: SomeImages
    """Real photos among them."""
    per_class: Count
    """Of the class that has the fewest."""
    sittings: Count = 0
    """Of the real photos: a hundred photos of three sittings say little more than three."""


class LatencyProfile(_Section):
    """Where a latency must have been measured to count. Patterns are shell globs, in any case of letters."""

    provider: Glob
    """Of ONNX Runtime."""
    most_threads: SomeImages
    hardware: Annotated[tuple[Glob, ...], Field(strict=False, min_length=1)]
    """One of them must fit the processor's name."""


class Margins(_Section):
    """How far the lower end of the paired 95 % interval may lie under zero, as a share of the images."""

    top1: Share
    real_top1: Share


class ChampionTerms(_Section):
    """What is asked beside the champion, on the same images of the drugs that both know."""

    margin: Margins


class TestManifestTerms(_Section):
    """Which test images count."""

    trusted: Annotated[tuple[ManifestHash, ...], Field(strict=False)]
    """Hashes of the manifests that count; none: that which the bundle was trained on, whose split it respects."""
    max_age_days: Days | None
    """Of the manifest when the evidence was made; None: any."""


class JudgeBy(StrEnum):
    """Which end of a measured share must meet its threshold."""

    POINT = "point"
    LOWER_BOUND = "lower_bound"


class Policy(_Section):
    """What a model must reach. No threshold can be left out, but for those of slices and of the worst class."""

    policy_version: Literal[2]
    judge_by: Annotated[JudgeBy, Field(strict=False)] = JudgeBy.POINT
    at_least: ShareThresholds
    below: CostThresholds
    slices: dict[ConditionName, WorstOf] = Field(default_factory=dict)
    """Condition → threshold for its worst value."""
    worst_class: WorstOf | None = None
    minimum_test_images: MinimumTestImages
    latency_profile: LatencyProfile
    champion: ChampionTerms
    test_manifest: TestManifestTerms
    decision_max_age_days: Days | None
    """None: a decision holds as long as policy and champion stay."""

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a policy. Raises ConfigError that names file and key."""
        path = Path(path)
        if not path.is_file():
            raise ConfigError(
                f"{path}: no gate policy there (a relative path starts at {Path.cwd()}); call from the project's "
                "folder, or name the file with --policy"
            )
        document: dict[str, Any] = read_yaml_mapping(path)
        _refuse_repeated_keys(path)
        if document.get("policy_version") == 1:
            raise ConfigError(
                f"{path}: policy_version: 1 is no longer read; set {POLICY_VERSION} and add latency_profile, champion, "
                "test_manifest and decision_max_age_days, as the project's registry/policy.yaml has them"
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(describe_validation_error(error, str(path))) from error

    @property
    def decision_max_age(self) -> timedelta | None:
        """How long a decision opens doors; None: without end."""
        return None if self.decision_max_age_days is None else timedelta(days=self.decision_max_age_days)

    @property
    def sha256(self) -> str:
        """sha256 of the policy's canonical JSON: comments and layout of the file do not change it."""
        document: Any = self.model_dump(mode="json")
        return sha256_json(document)


def _refuse_repeated_keys(path: Path) -> None:
    """YAML silently keeps the last of two: a loose threshold under a strict one would be overlooked."""

    def walk(node: yaml.Node, where: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        seen: set[str] = set()
        for key, value in node.value:
            name = f"{where}{key.value}"
            if name in seen:
                raise ConfigError(f"{path}: {name}: stands twice (line {key.start_mark.line + 1}); keep one of them")
            seen.add(name)
            walk(value, f"{name}.")

    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    if root is not None:
        walk(root, "")
