"""The single checks of the gate: one figure against its thresholds, with its words. Pure.

Whatever is missing, not a number or impossible has status MISSING, which is never promoted. Each check is monotone: a
worse figure, fewer images or a stricter threshold never give a better status.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict

from pillsnap.core.evidence import Evidence, Metric
from pillsnap.gate.policy import AtLeast, Below, JudgeBy, Policy, WorstOf


class Status(StrEnum):
    """How one figure did."""

    PASS = "PASS"  # noqa: S105 - not a password
    BELOW_TARGET = "BELOW_TARGET"
    BELOW_MINIMUM = "BELOW_MINIMUM"
    MISSING = "MISSING"


class Check(BaseModel):
    """One figure against its thresholds. Shares are 0..1; a missing or impossible value is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    value: float | None
    target: float
    minimum: float
    status: Status
    text: str
    """The figure and the threshold in words."""
    shown: tuple[str, str, str, str]
    """Value, 95 % interval, target and minimum as a person reads them."""


_UNITS = {"latency_p95_ms": "ms", "size_mb": "MB"}
_DATES_DIFFER = timedelta(days=1)
"""A manifest is dated by its day, and in its own time zone."""


def figure_checks(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    """The shares and costs of the whole test split."""
    found, by = evidence.metrics, policy.judge_by
    shares = {"top1": policy.at_least.top1, "top5": policy.at_least.top5, "real_top1": policy.at_least.real_top1}
    costs = {"latency_p95_ms": policy.below.latency_p95_ms, "size_mb": policy.below.size_mb}
    return (
        *(_check_share(name, found.get(name), limits, by) for name, limits in shares.items()),
        *(_check_cost(name, found.get(name), limits, evidence) for name, limits in costs.items()),
    )


def worst_checks(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    """The worst value of each condition that the policy names, and the worst class; each needs enough images."""
    checks: list[Check] = []
    for condition, limits in policy.slices.items():
        name, values = f"worst_{condition}", evidence.slices.get(condition, {})
        checks += _check_worst(name, values, limits, policy.judge_by, f"{condition} ")
        needed = policy.minimum_test_images
        known = sum(metric.images or 0 for metric in values.values())
        enough = needed.total if condition == "domain" else needed.real
        checks.append(_check_count(f"{name}_known", known, enough, f"test photos whose {condition} is known"))
    if policy.worst_class is not None:
        classes = {
            result.kcode: Metric(value=result.top1 or 0.0, images=0 if result.top1 is None else result.images)
            for result in evidence.classes
        }
        # A class has so few photos that the lower end of its interval would tell only how many they are.
        checks += _check_worst("worst_class", classes, policy.worst_class, JudgeBy.POINT, "")
    return tuple(checks)


def _check_worst(name: str, values: dict[str, Metric], limits: WorstOf, by: JudgeBy, what: str) -> tuple[Check, ...]:
    judged = {value: _check_share(name, metric, limits, by, f" ({what}{value})") for value, metric in values.items()}
    worst = min(judged.values(), key=_badness, default=_check_share(name, None, limits, by))
    fewest = min(values, key=lambda value: values[value].images or 0, default="")
    images = values[fewest].images or 0 if values else 0
    return worst, _check_count(
        f"{name}_images", images, limits.images, f"photos of each; {what}{fewest} has the fewest"
    )


def _badness(check: Check) -> tuple[int, float]:
    """Sorts the worst check first."""
    order = (Status.MISSING, Status.BELOW_MINIMUM, Status.BELOW_TARGET, Status.PASS)
    return order.index(check.status), math.inf if check.value is None else check.value


def count_checks(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    """Whether there are enough test images to judge by."""
    needed = policy.minimum_test_images
    smallest = min(evidence.classes, key=lambda result: result.images, default=None)
    worst = f"; {smallest.kcode} has the fewest" if smallest else ""
    return (
        _check_count("test_images", _images(evidence, "top1"), needed.total, "test images"),
        _check_count("real_test_images", _images(evidence, "real_top1"), needed.real, "real test photos"),
        _check_count("real_sittings", _sittings(evidence), needed.sittings, "sittings of the real test photos"),
        _check_count(
            "images_per_class", smallest.images if smallest else 0, needed.per_class, f"test images a class{worst}"
        ),
    )


def origin_checks(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    """Where the latency was measured, and how old the test manifest was."""
    return (_check_profile(evidence, policy), *_check_age(evidence, policy))


def _check_profile(evidence: Evidence, policy: Policy) -> Check:
    profile, timed = policy.latency_profile, evidence.latency
    faults = []
    if not fnmatchcase(timed.provider.casefold(), profile.provider.casefold()):
        faults.append(f"by {timed.provider or 'an unknown provider'}, not {profile.provider}")
    if not 1 <= timed.threads <= profile.most_threads:
        faults.append(f"with {timed.threads} threads, not 1 to {profile.most_threads}")
    if not any(fnmatchcase(timed.hardware.casefold(), pattern.casefold()) for pattern in profile.hardware):
        faults.append(f"on {timed.hardware or 'unknown hardware'}, not {' or '.join(profile.hardware)}")
    if timed.runs < 1:
        faults.append(f"in {timed.runs} runs")
    measured = "; ".join(faults) if faults else f"on {timed.hardware}, {timed.threads} threads, {timed.provider}"
    end = "; such a latency does not count: evaluate where the policy's latency_profile says" if faults else ""
    return Check(
        metric="latency_threads",
        value=None if faults else timed.threads,
        target=profile.most_threads,
        minimum=profile.most_threads,
        status=Status.MISSING if faults else Status.PASS,
        text=f"latency_profile: measured {measured}{end}",
        shown=(str(timed.threads), "", f"≤ {profile.most_threads}", ""),
    )


def _check_age(evidence: Evidence, policy: Policy) -> tuple[Check, ...]:
    most = policy.test_manifest.max_age_days
    if most is None:
        return ()
    made, measured = _date(evidence.manifest_date), _date(evidence.created)
    value, status = None, Status.MISSING
    if made is None or measured is None:
        text = f"is not known (made {evidence.manifest_date or '?'}, evidence of {evidence.created or '?'})"
    elif made - measured > _DATES_DIFFER:
        text = f"cannot be: the manifest is dated {evidence.manifest_date}, after the evidence ({evidence.created})"
    else:
        age = max(measured - made, timedelta(0))
        fresh = age <= timedelta(days=most)
        value, status = age / timedelta(days=1), Status.PASS if fresh else Status.BELOW_MINIMUM
        text = f"{value:.1f}, at most {most} days; {'fresh enough' if fresh else 'evaluate on newer photos'}"
    shown = "-" if value is None else f"{value:.1f}"
    return (
        Check(
            metric="manifest_age_days",
            value=value,
            target=most,
            minimum=most,
            status=status,
            text=f"manifest_age_days {text}",
            shown=(shown, "", f"≤ {most}", f"≤ {most}"),
        ),
    )


def _date(text: str) -> datetime | None:
    try:
        date = datetime.fromisoformat(text)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _check_share(name: str, metric: Metric | None, limits: AtLeast, by: JudgeBy, which: str = "") -> Check:
    shown_limits = (f"≥ {limits.target * 100:g} %", f"≥ {limits.minimum * 100:g} %")
    if metric is None:
        return _missing(name, "was not measured", limits, shown_limits)
    if not 0 <= metric.value <= 1:  # NaN compares false
        return _missing(name, f"is {metric.value}{which}, which cannot be", limits, shown_limits)
    if metric.images is not None and metric.images < 1:
        return _missing(name, f"is of {metric.images} images{which}, which tells nothing", limits, shown_limits)
    judged, end = metric.value, ""
    if by == JudgeBy.LOWER_BOUND:
        kind, low = ("Wilson", metric.low) if metric.group_low is None else ("group", metric.group_low)
        if low is None or not 0 <= low <= 1:
            fault = f"has no lower end of its interval{which} (found {low}), by which it is judged"
            return _missing(name, fault, limits, shown_limits)
        judged, end = min(low, metric.value), f", the lower end of its {kind} interval,"
    value, target, minimum = _percent(judged, limits), f"{limits.target * 100:g} %", f"{limits.minimum * 100:g} %"
    if judged < limits.minimum:
        status, verb = Status.BELOW_MINIMUM, f"is under the minimum {minimum} (target {target})"
    elif judged < limits.target:
        status, verb = Status.BELOW_TARGET, f"is under the target {target} (minimum {minimum})"
    else:
        status, verb = Status.PASS, f"reaches the target {target}"
    interval = _interval(metric)
    text = f"{name}{which} {value}{end} {verb}, {metric.images or 0} images"
    text += f", 95 % interval {interval}" if interval else ""
    return _check(name, judged, limits, status, text, (f"{value}{which}", interval, *shown_limits))


def _check_cost(name: str, metric: Metric | None, limits: Below, evidence: Evidence) -> Check:
    unit = _UNITS[name]
    shown_limits = (f"< {limits.target:g} {unit}", f"< {limits.minimum:g} {unit}")
    if metric is None:
        return _missing(name, "was not measured", limits, shown_limits)
    if not 0 < metric.value < math.inf:
        return _missing(name, f"is {metric.value}, which cannot be", limits, shown_limits)
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


def _sittings(evidence: Evidence) -> int:
    metric = evidence.metrics.get("real_top1")
    return metric.groups or 0 if metric else 0


def _missing(name: str, fault: str, limits: AtLeast | Below, shown_limits: tuple[str, str]) -> Check:
    return _check(name, None, limits, Status.MISSING, f"{name} {fault}; evaluate again", ("-", "", *shown_limits))


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
    if metric.group_low is not None and metric.group_high is not None:
        return f"{metric.group_low * 100:.1f}–{metric.group_high * 100:.1f} % (by groups)"
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
