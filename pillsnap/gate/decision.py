"""The gate's judgement: pure, from evidence and policy to a decision. No files are looked at, no clock.

It fails closed: whatever is missing, not a number, impossible, or belongs to another file is never promoted.
A worse figure never gives a better verdict.
"""

from __future__ import annotations

from enum import StrEnum

from pillsnap.core.document import StoredDocument
from pillsnap.core.evidence import EVIDENCE_VERSION, Evidence
from pillsnap.gate import checks
from pillsnap.gate.champion_check import champion_checks
from pillsnap.gate.checks import Check, Status
from pillsnap.gate.policy import JudgeBy, Policy

__all__ = ["Check", "Decision", "Status", "Verdict", "decide", "manifest_reasons"]


class Verdict(StrEnum):
    """What the gate says."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"


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
    champion_sha256: str | None = None
    """Of the champion that it was compared with; None: there was none."""
    judged_by: JudgeBy = JudgeBy.POINT

    def figures(self) -> dict[str, str]:
        """What was measured as people read it: ``top1`` → ``92.5 %``; what is missing is left out."""
        return {check.metric: check.shown[0] for check in self.checks if check.value is not None}

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


def decide(
    evidence: Evidence,
    policy: Policy,
    *,
    bundle_sha256: str,
    manifest_hash: str,
    champion_sha256: str | None = None,
    trained_on: str | None = None,
) -> Decision:
    """Judge ``evidence`` by ``policy``.

    Args:
        evidence: what was measured.
        policy: what must be reached.
        bundle_sha256: digest of the file that is to be promoted, computed by the caller.
        manifest_hash: hash of the manifest that it must have been measured on.
        champion_sha256: digest of the champion of now; None: there is none. Where there is one, evidence without a
            comparison with it is rejected.
        trained_on: hash of the manifest that the bundle names. Where the policy trusts no manifest by its hash, it
            must be ``manifest_hash``; None: the caller has taken ``manifest_hash`` from the bundle.
    """
    strangers = (
        *_identity_reasons(evidence, bundle_sha256, manifest_hash),
        *manifest_reasons(policy, manifest_hash, trained_on),
    )
    done = (
        *checks.figure_checks(evidence, policy),
        *checks.worst_checks(evidence, policy),
        *checks.count_checks(evidence, policy),
        *checks.origin_checks(evidence, policy),
        *(
            ()
            if champion_sha256 in (None, bundle_sha256)  # the very same file is no rival of itself
            else champion_checks(evidence.comparison, policy, champion_sha256)
        ),
    )
    return Decision(
        verdict=_verdict(strangers, {check.status for check in done}),
        checks=done,
        reasons=(*strangers, *(check.text for check in done if check.status != Status.PASS)),
        policy_sha256=policy.sha256,
        bundle_sha256=bundle_sha256,
        manifest_hash=manifest_hash,
        champion_sha256=champion_sha256,
        judged_by=policy.judge_by,
    )


def manifest_reasons(policy: Policy, manifest_hash: str, trained_on: str | None) -> tuple[str, ...]:
    """Why figures of this manifest do not count for a bundle that was trained on ``trained_on``; empty: they do."""
    trusted = policy.test_manifest.trusted
    if trusted and manifest_hash not in trusted:
        known = ", ".join(f"{one[:12]}…" for one in trusted)
        return (
            f"manifest {manifest_hash[:12]}… is none of those that the policy trusts ({known}); evaluate on one of "
            "these, or have it added to test_manifest.trusted",
        )
    if not trusted and trained_on is not None and trained_on != manifest_hash:
        return (
            f"the model was trained on manifest {trained_on[:12]}…, so it may have seen the test images of "
            f"{manifest_hash[:12]}…; evaluate on its own, or name this one in test_manifest.trusted of the policy",
        )
    return ()


def _verdict(strangers: tuple[str, ...], statuses: set[Status]) -> Verdict:
    if strangers or Status.MISSING in statuses or Status.BELOW_MINIMUM in statuses:
        return Verdict.REJECT
    return Verdict.HOLD if Status.BELOW_TARGET in statuses else Verdict.PROMOTE


def _identity_reasons(evidence: Evidence, bundle_sha256: str, manifest_hash: str) -> tuple[str, ...]:
    reasons = []
    if evidence.evidence_version != EVIDENCE_VERSION:
        reasons.append(f"the evidence has version {evidence.evidence_version}, not {EVIDENCE_VERSION}; evaluate again")
    if not bundle_sha256 or evidence.bundle_sha256 != bundle_sha256:
        reasons.append(
            f"the evidence is of another bundle (sha256 {evidence.bundle_sha256[:12]}…, "
            f"this file is {bundle_sha256[:12]}…); evaluate this file"
        )
    if not manifest_hash or evidence.manifest_hash != manifest_hash:
        reasons.append(
            f"the evidence is of another manifest (hash {evidence.manifest_hash[:12]}…, "
            f"this one is {manifest_hash[:12]}…); evaluate on this manifest"
        )
    return tuple(reasons)
