"""The third waist: evidence is what the evaluation measured of one bundle on one manifest.

The gate judges evidence and never looks elsewhere. Shares are 0..1, times milliseconds, sizes megabytes
(10^6 bytes). A figure that could not be measured is absent, never 0.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from pillsnap.core.document import StoredDocument

EVIDENCE_VERSION = "2"
EVIDENCE_FILE = "evidence.json"
EVALUATION_FOLDER = "evaluation"
"""Among a run's artifacts: holds the evidence and its report."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(_Frozen):
    """One figure. A share of images has its 95 % Wilson interval and the number of images.

    Photos of one sitting are not independent: ``group_low`` and ``group_high`` are the 95 % interval of a bootstrap
    over capture groups, which does not pretend that they are.
    """

    value: float
    low: float | None = None
    high: float | None = None
    images: int | None = None
    group_low: float | None = None
    group_high: float | None = None
    groups: int | None = None


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


class PairedDifference(_Frozen):
    """Candidate minus champion on the same images."""

    difference: float
    low: float
    """Ends of the two-sided 95 % interval, by a bootstrap over capture groups."""
    high: float
    images: int
    groups: int
    only_candidate: int
    """Images that only the candidate answers right."""
    only_champion: int
    p_value: float
    """McNemar's exact test, two-sided."""


class Comparison(_Frozen):
    """The candidate beside the champion on the images of drugs that both know."""

    champion_sha256: str
    metrics: dict[str, PairedDifference]
    """``top1`` and ``real_top1``."""


class Agreement(_Frozen):
    """How often another way to the answer gives the same first answer."""

    images: int
    top1: float
    """Share of images, 0..1."""
    largest_difference: float | None = None
    """Of the probabilities."""


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
    manifest_date: str = ""
    """ISO 8601: the date that the manifest states of its data."""
    worst_slices: dict[str, tuple[str, Metric]] = Field(default_factory=dict)
    """The worst value of each condition that has enough photos to tell: ``light`` → (``2``, metric)."""
    look_alikes: tuple[tuple[str, str, float], ...] = ()
    """(K-CODE, K-CODE, share of the photos of both that are taken for the other), the most confusable first."""
    calibration: dict[str, float] = Field(default_factory=dict)
    """``temperature`` (fitted on validation), ``ece``, ``ece_uncalibrated``. Where the bundle says under which
    confidence it is not sure (``unsure_below``): the share of the test answers that are sure (``sure_share``), and of
    these the share that is right (``right_when_sure``). Of the real photos apart: ``real_ece``, ``real_sure_share``,
    ``real_right_when_sure``."""
    agreements: dict[str, Agreement] = Field(default_factory=dict)
    """``pytorch``, ``client`` (the phone's crop, 512 pixels and JPEG), ``quantised``: as far as they were measured."""
    comparison: Comparison | None = None
    """None: there was no champion, or none was given."""
    code: dict[str, str] = Field(default_factory=dict)
    """``pillsnap`` (version), ``git_commit``, ``uncommitted`` (yes, no)."""
    notes: tuple[str, ...] = Field(default=())
    """What limits these figures, in words."""
