"""Whether a signed statement opens a door for a model version: pure, no files, no registry, no clock of its own.

The same rules where an alias is set (the registry store) and where a champion is loaded (serving). Everything that is
not shown is refused, with a sentence that says what is missing and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pillsnap.core.errors import GateRefusedError
from pillsnap.gate.decision import Verdict
from pillsnap.gate.envelope import ChampionRef, Statement

CHAMPION = "champion"
CHALLENGER = "challenger"
CANDIDATE = "candidate"
"""The mark by which people ask the gate to judge a version: an alias or a tag. It opens nothing."""
NEEDED: dict[str, frozenset[Verdict]] = {
    CHAMPION: frozenset({Verdict.PROMOTE}),
    CHALLENGER: frozenset({Verdict.PROMOTE, Verdict.HOLD}),
}
CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass(frozen=True)
class VersionFacts:
    """What the registry knows of a version, and the digests of its files as computed now."""

    name: str
    version: str
    created_at_ms: int
    bundle_sha256: str
    artifact_sha256: str


@dataclass(frozen=True)
class Terms:
    """What holds now, at the place that asks."""

    policy_sha256: str
    now_ms: int
    max_age: timedelta | None
    """Of a statement; None: any."""
    champion: ChampionRef | None
    """The champion of now, with the digest that its statement was signed for."""


def facts_of(statement: Statement) -> VersionFacts:
    """The version and the files that a statement is about."""
    return VersionFacts(
        name=statement.model_name,
        version=statement.model_version,
        created_at_ms=statement.created_at_ms,
        bundle_sha256=statement.bundle_sha256,
        artifact_sha256=statement.artifact_sha256,
    )


def check_bound(statement: Statement, facts: VersionFacts) -> None:
    """The statement is about this very version and these very bytes. Raises GateRefusedError."""
    what = f"{facts.name} version {facts.version}"
    if (statement.model_name, statement.model_version) != (facts.name, facts.version):
        raise GateRefusedError(
            f"{what}: its envelope was signed for {statement.model_name} version {statement.model_version}; "
            "ask the gate to judge this version"
        )
    if statement.created_at_ms != facts.created_at_ms:
        raise GateRefusedError(
            f"{what}: its envelope was signed for a version of this number that was made at another time (it was "
            "deleted and made again); ask the gate to judge this one"
        )
    if statement.bundle_sha256 != facts.bundle_sha256:
        raise GateRefusedError(
            f"{what}: its file (sha256 {facts.bundle_sha256[:12]}…) is not the one that was judged "
            f"({statement.bundle_sha256[:12]}…): it was changed afterwards; register the run again"
        )
    if statement.artifact_sha256 != facts.artifact_sha256:
        raise GateRefusedError(
            f"{what}: the files beside its model.onnx (MLmodel, requirements …) are not those that were judged: they "
            "were changed afterwards; register the run again"
        )


def check_verdict(statement: Statement, alias: str) -> None:
    """The verdict suffices for this alias. Raises GateRefusedError with the gate's reasons."""
    if statement.verdict not in NEEDED[alias]:
        reasons = "".join(f"\n  - {reason}" for reason in statement.reasons)
        raise GateRefusedError(
            f"{statement.model_name} version {statement.model_version} does not become {alias}: "
            f"{statement.verdict}{reasons}"
        )


def check_fresh(statement: Statement, terms: Terms) -> None:
    """The statement was made under the policy, against the champion and in the time of now. Raises GateRefusedError.

    Not asked of a version that has been champion before: going back must be possible at once, whatever has changed.
    """
    what = f"{statement.model_name} version {statement.model_version}"
    age = timedelta(milliseconds=terms.now_ms - statement.issued_at_ms)
    if -age > CLOCK_TOLERANCE:
        raise GateRefusedError(f"{what}: its envelope is dated {-age} from now; set the clocks, then judge again")
    if terms.max_age is not None and age > terms.max_age:
        raise GateRefusedError(f"{what}: judged {age.days} days ago, more than {terms.max_age.days}; judge again")
    if statement.policy_sha256 != terms.policy_sha256:
        raise GateRefusedError(
            f"{what}: judged by another policy ({statement.policy_sha256[:12]}…, now {terms.policy_sha256[:12]}…); "
            "judge again"
        )
    if statement.champion != terms.champion:
        then = "no champion" if statement.champion is None else f"champion version {statement.champion.version}"
        now = "there is none" if terms.champion is None else f"it is version {terms.champion.version}"
        raise GateRefusedError(f"{what}: compared with {then}, now {now}; judge again")
