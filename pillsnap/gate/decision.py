"""The gate's judgement: pure, from evidence and policy to a decision. No files are looked at, no clock.

It fails closed: whatever is missing, not a number, impossible, or belongs to another file is never promoted.
A worse figure never gives a better verdict.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from enum import StrEnum
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict

from pillsnap.core.document import StoredDocument
from pillsnap.core.evidence import EVIDENCE_VERSION, Evidence, Latency, Metric, PairedDifference
from pillsnap.gate.policy import AtLeast, Below, LatencyProfile, Policy, TestManifest, WorstOf


class Verdict(StrEnum):
    """What the gate says."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"


class Status(StrEnum):
    """How one figure did."""

    PASS = "PASS"  # noqa: S105 - not a password
    BELOW_TARGET = "BELOW_TARGET"
    BELOW_MINIMUM = "BELOW_MINIMUM"
    MISSING = "MISSING"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Frozen):
    """One figure against its thresholds. Shares are 0..1; a missing or impossible value is None."""

    metric: str
    value: float | None
    target: float
    minimum: float
    status: Status
    text: str
    """The figure and the threshold in words."""
    shown: tuple[str, str, str, str]
    """Value, 95 % interval, target and minimum as a person reads them."""


class Decision(StoredDocument):
    """The verdict on one bundle (by digest) on one manifest (by hash) under one policy (by digest)."""

    what = "a decision"
    remedy = "run: pillsnap gate"

    verdict: Verdict
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    """Why it is not PROMOTE; empty when it is."""
    policy_sha256: str
    bundle_sha256: str
    manifest_hash: str

    def figures(self) -> dict[str, str]:
        """What was measured as a person reads it, by metric."""
        return {check.metric: check.shown[0] for check in self.checks}

    def table(self) -> str:
        """The checks as a plain text table."""
        rows = [_HEADER, *self._cells()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        rows.insert(1, tuple("-" * width for width in widths))
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def markdown(self) -> str:
        """Verdict, table and reasons as Markdown."""
        rows = [_HEADER, tuple("---" for _ in _HEADER), *self._cells()]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        reasons = "".join(f"- {reason}\n" for reason in self.reasons)
        digests = f"bundle `{self.bundle_sha256}`, manifest `{self.manifest_hash}`, policy `{self.policy_sha256}`"
        parts = [f"**Gate: {self.verdict}**", table, reasons.rstrip(), digests]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _cells(self) -> list[tuple[str, ...]]:
        return [(check.metric, *check.shown, _STATUS_WORDS[check.status]) for check in self.checks]


_HEADER = ("metric", "measured", "95 % interval", "target", "minimum", "result")
_STATUS_WORDS = {
    Status.PASS: "pass",
    Status.BELOW_TARGET: "target missed",
    Status.BELOW_MINIMUM: "MINIMUM MISSED",
    Status.MISSING: "MISSING",
}
_UNITS = {"latency_p95_ms": "ms", "size_mb": "MB"}


def decide(
    evidence: Evidence,
    policy: Policy,
    *,
    bundle_sha256: str,
    manifest_hash: str,
    champion_sha256: str | None = None,
) -> Decision:
    """Judge ``evidence`` by ``policy``.

    Args:
        evidence: what was measured.
        policy: what must be reached.
        bundle_sha256: digest of the file that is to be promoted, computed by the caller.
        manifest_hash: hash of the manifest that it must have been measured on, unless the policy names trusted ones.
        champion_sha256: digest of the present champion's file, which the evidence must compare with; None: there is
            none.
    """
    strangers = (
        *_identity_reasons(evidence, bundle_sha256, manifest_hash, policy.test_manifest),
        *_age_reasons(evidence, policy.test_manifest),
    )
    shares = {"top1": policy.at_least.top1, "top5": policy.at_least.top5, "real_top1": policy.at_least.real_top1}
    costs = {"latency_p95_ms": policy.below.latency_p95_ms, "size_mb": policy.below.size_mb}
    checks = (
        *(_check_share(name, evidence.metrics.get(name), limits, policy.judge_by) for name, limits in shares.items()),
        *(_check_slice(name, evidence.slices.get(name), limits) for name, limits in policy.worst_slice.items()),
        *(_check_cost(name, evidence.metrics.get(name), limits, evidence, policy) for name, limits in costs.items()),
        *_check_counts(evidence, policy),
        *(_check_champion(evidence, policy, champion_sha256) if champion_sha256 is not None else ()),
    )
    return Decision(
        verdict=_verdict(strangers, {check.status for check in checks}),
        checks=checks,
        reasons=(*strangers, *(check.text for check in checks if check.status != Status.PASS)),
        policy_sha256=policy.sha256,
        bundle_sha256=bundle_sha256,
        manifest_hash=evidence.manifest_hash if policy.test_manifest.trusted else manifest_hash,
    )


def _verdict(strangers: tuple[str, ...], statuses: set[Status]) -> Verdict:
    if strangers or Status.MISSING in statuses or Status.BELOW_MINIMUM in statuses:
        return Verdict.REJECT
    return Verdict.HOLD if Status.BELOW_TARGET in statuses else Verdict.PROMOTE


def _identity_reasons(
    evidence: Evidence, bundle_sha256: str, manifest_hash: str, test_manifest: TestManifest
) -> tuple[str, ...]:
    reasons = []
    if evidence.evidence_version != EVIDENCE_VERSION:
        reasons.append(f"the evidence has version {evidence.evidence_version}, not {EVIDENCE_VERSION}; evaluate again")
    if not bundle_sha256 or evidence.bundle_sha256 != bundle_sha256:
        reasons.append(
            f"the evidence is of another bundle (sha256 {evidence.bundle_sha256[:12]}…, "
            f"this file is {bundle_sha256[:12]}…); evaluate this file"
        )
    if test_manifest.trusted:
        if evidence.manifest_hash not in test_manifest.trusted:
            reasons.append(
                f"the evidence is of manifest {evidence.manifest_hash[:12]}…, which is none of the "
                f"{len(test_manifest.trusted)} that the policy trusts; evaluate on one of them"
            )
    elif not manifest_hash or evidence.manifest_hash != manifest_hash:
        reasons.append(
            f"the evidence is of another manifest (hash {evidence.manifest_hash[:12]}…, "
            f"this one is {manifest_hash[:12]}…); evaluate on this manifest"
        )
    return tuple(reasons)


def _age_reasons(evidence: Evidence, test_manifest: TestManifest) -> tuple[str, ...]:
    most = test_manifest.max_age_days
    if most is None:
        return ()
    try:
        made, measured = (_moment(text) for text in (evidence.manifest_date, evidence.created))
    except ValueError:
        return (f"the age of the manifest is not known ({evidence.manifest_date!r}), at most {most} days are allowed",)
    age = (measured - made).days
    if not 0 <= age <= most:
        return (f"the manifest was {age} days old when it was evaluated, 0 to {most} are allowed; take newer ones",)
    return ()


def _moment(text: str) -> datetime:
    """Without a zone it is taken as UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _check_share(name: str, metric: Metric | None, limits: AtLeast, judge_by: str) -> Check:
    shown_limits = (f"≥ {limits.target * 100:g} %", f"≥ {limits.minimum * 100:g} %")
    if metric is None or not 0 <= metric.value <= 1:  # NaN compares false
        return _missing(name, metric.value if metric else None, limits, shown_limits)
    judged = metric.value if judge_by == "point" else _lower_end(metric)
    if judged is None or not 0 <= judged <= metric.value:
        return _missing(f"the lower bound of {name}", judged, limits, shown_limits)
    value, target, minimum = _percent(judged, limits), f"{limits.target * 100:g} %", f"{limits.minimum * 100:g} %"
    status = _status_of_share(judged, limits)
    text = f"{name if judge_by == 'point' else f'the lower bound of {name}'} {value} "
    text += {
        Status.BELOW_MINIMUM: f"is under the minimum {minimum} (target {target})",
        Status.BELOW_TARGET: f"is under the target {target} (minimum {minimum})",
    }.get(status, f"reaches the target {target}")
    text += f", {metric.images or 0} images"
    interval = _interval(metric)
    text += f", 95 % interval {interval}" if interval else ""
    return _check(name, judged, limits, status, text, (value, interval, *shown_limits))


def _status_of_share(value: float, limits: AtLeast) -> Status:
    if value < limits.minimum:
        return Status.BELOW_MINIMUM
    return Status.BELOW_TARGET if value < limits.target else Status.PASS


def _lower_end(metric: Metric) -> float | None:
    return metric.low if metric.group_low is None else metric.group_low


def _check_slice(name: str, values: dict[str, Metric] | None, limits: WorstOf) -> Check:
    shown_limits = (f"≥ {limits.target * 100:g} %", f"≥ {limits.minimum * 100:g} %")
    key = f"worst_{name}"
    if not values or any(not 0 <= metric.value <= 1 for metric in values.values()):
        return _missing(key, None, limits, shown_limits)
    judged = {value: metric for value, metric in values.items() if (metric.images or 0) >= limits.images}
    if not judged:
        text = f"{key}: no value has {limits.images} photos, too few to judge"
        return _check(key, None, limits, Status.BELOW_TARGET, text, ("-", "", *shown_limits))
    worst, metric = min(judged.items(), key=lambda item: (item[1].value, item[0]))
    value = _percent(metric.value, limits)
    status = _status_of_share(metric.value, limits)
    text = f"{key} ({worst}) {value}, target {limits.target * 100:g} %, minimum {limits.minimum * 100:g} %"
    text += f", {metric.images} images"
    return _check(key, metric.value, limits, status, text, (f"{value} ({worst})", _interval(metric), *shown_limits))


def _check_champion(evidence: Evidence, policy: Policy, champion_sha256: str) -> tuple[Check, ...]:
    comparison = evidence.comparison
    fits = comparison is not None and comparison.champion_sha256 == champion_sha256
    margins = {
        "top1": policy.not_worse_than_champion.top1,
        "real_top1": policy.not_worse_than_champion.real_top1,
    }
    return tuple(
        _check_difference(name, comparison.metrics.get(name) if fits and comparison else None, margin)
        for name, margin in margins.items()
    )


def _check_difference(name: str, paired: PairedDifference | None, margin: float) -> Check:
    key = f"{name}_against_champion"
    allowed = f"≥ {-margin * 100:g} points"
    shown_limits = (allowed, "")
    if paired is None or not -1 <= paired.low <= paired.difference <= 1:
        what = "was not measured" if paired is None else f"is {paired.difference} ({paired.low}), which cannot be"
        text = f"{key} {what}; evaluate beside the champion"
        return Check(
            metric=key, value=None, target=-margin, minimum=-margin, status=Status.MISSING, text=text,
            shown=("-", "", *shown_limits),
        )  # fmt: skip
    enough = paired.low >= -margin
    value = f"{paired.difference * 100:+.1f} points"
    interval = f"{paired.low * 100:+.1f} to {paired.high * 100:+.1f}"
    verb = "is not worse than the champion" if enough else "may be worse than the champion"
    text = (
        f"{key} {value} {verb}: 95 % interval {interval}, allowed down to {-margin * 100:g}; of {paired.images} images "
        f"{paired.only_candidate} only the candidate, {paired.only_champion} only the champion answers right"
    )
    status = Status.PASS if enough else Status.BELOW_TARGET
    return Check(
        metric=key, value=paired.difference, target=-margin, minimum=-margin, status=status, text=text,
        shown=(value, interval, *shown_limits),
    )  # fmt: skip


def _check_cost(name: str, metric: Metric | None, limits: Below, evidence: Evidence, policy: Policy) -> Check:
    unit = _UNITS[name]
    shown_limits = (f"< {limits.target:g} {unit}", f"< {limits.minimum:g} {unit}")
    if metric is None or not 0 < metric.value < math.inf:
        return _missing(name, metric.value if metric else None, limits, shown_limits)
    elsewhere = _measured_elsewhere(evidence.latency, policy.latency_profile) if name == "latency_p95_ms" else ""
    if elsewhere:
        return _check(name, None, limits, Status.MISSING, f"{name} {elsewhere}", ("-", "", *shown_limits))
    value, target, minimum = (
        f"{_cost(metric.value, limits)} {unit}",
        f"{limits.target:g} {unit}",
        f"{limits.minimum:g} {unit}",
    )
    if metric.value >= limits.minimum:
        status, verb = Status.BELOW_MINIMUM, f"is not under {minimum}, the minimum (target: under {target})"
    elif metric.value >= limits.target:
        status, verb = Status.BELOW_TARGET, f"is not under {target}, the target (minimum: under {minimum})"
    else:
        status, verb = Status.PASS, f"is under {target}, the target"
    timed = evidence.latency
    where = f", {timed.runs} runs on {timed.hardware}, {timed.threads} threads" if name == "latency_p95_ms" else ""
    return _check(name, metric.value, limits, status, f"{name} {value} {verb}{where}", (value, "", *shown_limits))


def _measured_elsewhere(latency: Latency, profile: LatencyProfile) -> str:
    """Why a latency does not count; empty: it does."""
    if latency.provider != profile.provider:
        return f"was measured with {latency.provider}, only {profile.provider} counts; evaluate there"
    if latency.threads > profile.most_threads:
        return f"was measured with {latency.threads} threads, at most {profile.most_threads} count; evaluate with fewer"
    if not any(fnmatchcase(latency.hardware, pattern) for pattern in profile.hardware):
        return f"was measured on {latency.hardware!r}, only {', '.join(profile.hardware)} counts; evaluate there"
    return ""


def _check_counts(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    needed = policy.minimum_test_images
    smallest = min(evidence.classes, key=lambda result: result.images, default=None)
    worst = f"; {smallest.kcode} has the fewest" if smallest else ""
    return (
        _check_count("test_images", _images(evidence, "top1"), needed.total, "test images"),
        _check_count("real_test_images", _images(evidence, "real_top1"), needed.real, "real test photos"),
        _check_count(
            "images_per_class", smallest.images if smallest else 0, needed.per_class, f"test images a class{worst}"
        ),
    )


def _check_count(name: str, images: int, needed: int, what: str) -> Check:
    enough = images >= needed
    verb = "are enough" if enough else "are too few to judge"
    return Check(
        metric=name,
        value=images,
        target=needed,
        minimum=0,
        status=Status.PASS if enough else Status.BELOW_TARGET,
        text=f"{name}: {images} {verb}, {needed} needed ({what})",
        shown=(str(images), "", f"≥ {needed}", ""),
    )


def _images(evidence: Evidence, name: str) -> int:
    metric = evidence.metrics.get(name)
    return metric.images or 0 if metric else 0


def _missing(name: str, value: float | None, limits: AtLeast | Below, shown_limits: tuple[str, str]) -> Check:
    what = "was not measured" if value is None else f"is {value}, which cannot be"
    text = f"{name} {what}; evaluate again"
    return _check(name, None, limits, Status.MISSING, text, ("-", "", *shown_limits))


def _check(
    name: str, value: float | None, limits: AtLeast | Below, status: Status, text: str, shown: tuple[str, str, str, str]
) -> Check:
    return Check(
        metric=name,
        value=value,
        target=limits.target,
        minimum=limits.minimum,
        status=status,
        text=text,
        shown=shown,
    )


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    return f"{metric.low * 100:.1f}–{metric.high * 100:.1f} %"


def _percent(share: float, limits: AtLeast) -> str:
    """With as many digits as it takes that a missed threshold does not look met (84.96 %, not 85.0 %)."""
    missed = [limit * 100 for limit in (limits.target, limits.minimum) if share < limit]
    for digits in range(1, 12):
        text = f"{share * 100:.{digits}f}"
        if all(float(text) < limit for limit in missed):
            return f"{text} %"
    return f"{share * 100!r} %"


def _cost(cost: float, limits: Below) -> str:
    """With as many digits as it takes that a limit that is kept does not look reached (49.98, not 50.0)."""
    kept = [limit for limit in (limits.target, limits.minimum) if cost < limit]
    for digits in range(1, 12):
        text = f"{cost:.{digits}f}"
        if float(text) > 0 and all(float(text) < limit for limit in kept):
            return text
    return repr(cost)
