"""The third waist: evidence is what the evaluation measured of one bundle on one manifest.

The gate judges evidence and never looks elsewhere. Shares are 0..1, times milliseconds, sizes megabytes
(10^6 bytes). A figure that could not be measured is absent, never 0.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pillsnap.core.document import StoredDocument

EVIDENCE_VERSION = "1"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(_Frozen):
    """One figure. A share of images has its 95 % Wilson interval and the number of images."""

    value: float
    low: float | None = None
    high: float | None = None
    images: int | None = None


class ClassResult(_Frozen):
    """Top-1 of one class on the test split."""

    kcode: str
    drug_name: str
    images: int
    top1: float | None
    """None where the test split has no image of it."""
    real_top1: float | None
    """Top-1 on its real photos; None where the test split has none."""
    confused_with: str | None
    """K-CODE of the most frequent wrong answer."""


class Latency(_Frozen):
    """One image, from the bytes of its file to the answer, batch 1."""

    p50_ms: float
    p95_ms: float
    runs: int
    image: str
    """What was timed, e.g. the size of the pictures."""
    threads: int
    provider: str
    hardware: str


class Evidence(StoredDocument):
    """Everything that was measured of one bundle (by digest) on one manifest (by hash)."""

    what = "evidence"
    remedy = "evaluate again"

    evidence_version: str = EVIDENCE_VERSION
    bundle_sha256: str
    manifest_hash: str
    run_id: str
    created: str
    """ISO 8601, UTC."""
    metrics: dict[str, Metric]
    """``top1``, ``top5``, ``real_top1``, ``studio_top1``, ``latency_p50_ms``, ``latency_p95_ms``, ``size_mb``,
    ``ece``."""
    slices: dict[str, dict[str, Metric]]
    """Top-1 per value of a condition, e.g. ``background`` → ``0`` → metric (real photos only)."""
    classes: tuple[ClassResult, ...]
    """Of the drugs in use, by index; retired ones are left out."""
    failures: tuple[str, ...]
    """K-CODEs of the classes under 70 % top-1."""
    confusions: tuple[tuple[str, str, int], ...]
    """(true K-CODE, answered K-CODE, images), the most frequent first."""
    latency: Latency
    environment: dict[str, str]
    notes: tuple[str, ...] = Field(default=())
    """What limits these figures, in words."""
