"""Whether a candidate is not worse than the champion on the same images (non-inferiority, paired). Pure.

The lower end of the paired interval must reach minus the margin. Missing it holds the candidate back; a comparison
that is missing, of another champion or impossible rejects it.
"""

from __future__ import annotations

from pillsnap.core.evidence import Comparison, PairedDifference
from pillsnap.gate.checks import Check, Status
from pillsnap.gate.policy import Policy

_WORSE = "may be worse than"


def is_missing_comparison(reason: str) -> bool:
    """Whether a reason says that a comparison with the champion is missing, so that another champion may bring one."""
    return reason.startswith("champion_") and _WORSE not in reason


def champion_checks(comparison: Comparison | None, policy: Policy, champion_sha256: str) -> tuple[Check, ...]:
    """One check a metric. ``champion_sha256`` is the champion of now."""
    margins = {"top1": policy.champion.margin.top1, "real_top1": policy.champion.margin.real_top1}
    now = f"the champion (sha256 {champion_sha256[:12]}…)"
    if comparison is None:
        fault = f"was not compared with {now}; evaluate with --champion"
    elif not champion_sha256 or comparison.champion_sha256 != champion_sha256:
        fault = f"was compared with sha256 {comparison.champion_sha256[:12]}…, not with {now}; evaluate again"
    else:
        found = comparison.metrics
        return tuple(_check_paired(name, found.get(name), margin, now) for name, margin in margins.items())
    return tuple(_missing(name, margin, fault) for name, margin in margins.items())


def _check_paired(name: str, paired: PairedDifference | None, margin: float, now: str) -> Check:
    if paired is None:
        return _missing(name, margin, f"was not compared with {now}: no test image of a drug that both know")
    numbers = f"{_points(paired.difference)} points, 95 % interval {_points(paired.low)} to {_points(paired.high)}"
    ends = (paired.low, paired.difference, paired.high)
    if not all(-1 <= end <= 1 for end in ends) or paired.images < 1 or paired.groups < 1:  # NaN compares false
        return _missing(name, margin, f"against {now} is {numbers} on {paired.images} images, which cannot be")
    judged = min(ends)  # an interval that does not hold its point is taken at its worst
    passed = judged >= -margin
    verb = "is not worse than" if passed else _WORSE
    return Check(
        metric=f"champion_{name}",
        value=judged,
        target=-margin,
        minimum=-1,
        status=Status.PASS if passed else Status.BELOW_TARGET,
        text=f"champion_{name} {verb} {now}: {numbers}, the lower end must reach {-margin * 100:g} points "
        f"({paired.images} images; only the candidate is right on {paired.only_candidate}, only the champion on "
        f"{paired.only_champion})",
        shown=(
            f"{_points(paired.difference)} points",
            f"{_points(paired.low)} to {_points(paired.high)}",
            f"≥ {-margin * 100:g} (lower end)",
            "",
        ),
    )


def _missing(name: str, margin: float, fault: str) -> Check:
    return Check(
        metric=f"champion_{name}",
        value=None,
        target=-margin,
        minimum=-1,
        status=Status.MISSING,
        text=f"champion_{name} {fault}",
        shown=("-", "", f"≥ {-margin * 100:g} (lower end)", ""),
    )


def _points(share: float) -> str:
    return f"{share * 100:+.2f}"
