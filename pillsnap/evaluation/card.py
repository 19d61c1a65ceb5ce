"""The model card: what a model is, what was measured of it, what it must not be used for, and where it came from.

Markdown for the registry's page of a version, short enough for it. Every name that comes out of a file is escaped: a
page shows it and does nothing else. After Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

from __future__ import annotations

import html

from pillsnap.core.bundle import BundleMetadata
from pillsnap.core.evidence import Evidence, Metric
from pillsnap.evaluation.metrics import SHARE_NAMES, interval_of
from pillsnap.gate.decision import Decision

LONGEST = 5000
"""Characters of a version's description that MLflow's page shows."""


def model_card(
    evidence: Evidence, metadata: BundleMetadata, decision: Decision | None, *, name: str = "", version: str = ""
) -> str:
    """The card as Markdown, at most `LONGEST` characters."""
    parts = [
        f"# {plain(name)} version {plain(version)}".rstrip() if name else "",
        f"**Gate: {decision.verdict}**" if decision else "",
        "".join(f"- {plain(reason)}\n" for reason in decision.reasons[:8]).rstrip() if decision else "",
        _what(evidence, metadata),
        _figures(evidence, decision),
        _limits(evidence),
        "**How to use:** `pillsnap identify PHOTO` answers with the champion; any ONNX Runtime takes uint8 images of "
        f"N×{metadata.preprocessing.target_size}×{metadata.preprocessing.target_size}×3 (RGB, preprocessed as the "
        "file's metadata say) and gives `probabilities`.",
        _origin(evidence, metadata, decision),
    ]
    card = "\n\n".join(part for part in parts if part) + "\n"
    return card if len(card) <= LONGEST else card[: LONGEST - 2].rstrip() + "…\n"


def plain(text: str) -> str:
    """A text that may come out of a stranger's file, without meaning for Markdown or HTML."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]()#!|~" else letter for letter in " ".join(text.split()))
    return html.escape(escaped, quote=False)


def _what(evidence: Evidence, metadata: BundleMetadata) -> str:
    used = sum(not entry.retired for entry in metadata.classes)
    real = evidence.metrics["real_top1"].images if "real_top1" in evidence.metrics else 0
    images = sum(result.images for result in evidence.classes)
    provenance = metadata.provenance
    known = {provenance.manifest_hash, *provenance.also_learned_from} == {evidence.manifest_hash}
    unseen = ", of sittings that the training never saw" if known else ""
    return (
        f"Names the drug on a photo of **one** pill out of {used} drugs ({plain(metadata.provenance.backbone)}, "
        f"{metadata.preprocessing.target_size} px). Measured on {images} test images, {real or 0} of them real photos"
        f"{unseen}."
    )


def _figures(evidence: Evidence, decision: Decision | None) -> str:
    judged = decision.figures() if decision else {}  # with as many digits as it takes not to look met
    rows = ["| | measured | 95 % interval over sittings | images |", "|---|---|---|---|"]
    for key, label in SHARE_NAMES.items():
        metric = evidence.metrics.get(key)
        if metric is not None:
            shown = judged.get(key, f"{metric.value * 100:.1f} %")
            rows.append(f"| {label} | **{shown}** | {_interval(metric)} | {metric.images} |")
    timed = evidence.latency
    where = f"{plain(timed.hardware)}, {timed.threads} threads"
    rows.append(f"| Latency p50 / p95 | {timed.p50_ms:.1f} / **{timed.p95_ms:.1f} ms** | {where} | {timed.runs} runs |")
    rows.append(f"| Size | {evidence.metrics['size_mb'].value:.1f} MB | | |")
    for name, (value, metric) in evidence.worst_slices.items():
        rows.append(
            f"| Worst {plain(name)} ({plain(value)}) | {metric.value:.1%} | {_interval(metric)} | {metric.images} |"
        )
    if "ece" in evidence.calibration:
        rows.append(f"| Calibration error | {evidence.calibration['ece']:.1%} | | |")
    if "right_when_sure" in evidence.calibration:
        sure = f"{evidence.calibration['sure_share']:.1%} of the answers"
        below = f"under {evidence.calibration['unsure_below']:.0%} it says: not sure"
        rows.append(f"| Right when sure | {evidence.calibration['right_when_sure']:.1%} | {sure} | {below} |")
    if "real_right_when_sure" in evidence.calibration:
        sure = f"{evidence.calibration['real_sure_share']:.1%} of the answers"
        right = f"{evidence.calibration['real_right_when_sure']:.1%}"
        rows.append(f"| Right when sure, real photos | **{right}** | {sure} | |")
    for name, agreement in evidence.agreements.items():
        rows.append(f"| Same answer: {plain(name)} | {agreement.top1:.1%} | | {agreement.images} |")
    if evidence.comparison is not None:
        for name, paired in evidence.comparison.metrics.items():
            span = f"{paired.low * 100:+.1f} to {paired.high * 100:+.1f}"
            difference = f"{paired.difference * 100:+.1f} points"
            rows.append(
                f"| {SHARE_NAMES.get(name, name)} against the champion | {difference} | {span} | {paired.images} |"
            )
    return "\n".join(rows)


def _limits(evidence: Evidence) -> str:
    lines = [
        "**Limits.** It always answers with a drug of its list, also for a pill that is not on it. It is no medical "
        "device: a person who knows the drug decides."
    ]
    if evidence.failures:
        shown = ", ".join(plain(kcode) for kcode in evidence.failures[:12])
        more = f" and {len(evidence.failures) - 12} more" if len(evidence.failures) > 12 else ""
        lines.append(f"Under 70 %: {shown}{more}.")
    if evidence.look_alikes:
        pairs = ", ".join(f"{plain(a)} and {plain(b)} ({share:.0%})" for a, b, share in evidence.look_alikes[:5])
        lines.append(f"Most often taken for each other: {pairs}.")
    lines += [plain(note) for note in evidence.notes[:5]]
    return "\n".join(f"- {line}" if index else f"{line}\n" for index, line in enumerate(lines))


def _origin(evidence: Evidence, metadata: BundleMetadata, decision: Decision | None) -> str:
    facts = {
        "bundle": evidence.bundle_sha256,
        "manifest": evidence.manifest_hash,
        "policy": decision.policy_sha256 if decision else "",
        "training run": metadata.provenance.run_id,
        "trained by commit": metadata.provenance.git_commit,
        "judged by commit": evidence.code.get("git_commit", ""),
    }
    origin = "**Origin:** " + ", ".join(f"{key} `{value[:40]}`" for key, value in facts.items() if value)
    first = metadata.provenance.first_weights
    if first is not None:
        terms = f"license {plain(first.license)}" if first.license else "license not known"
        origin += f". First weights: {plain(first.source)} ({terms}), sha256 `{first.sha256[:12]}`"
    return origin


def _interval(metric: Metric) -> str:
    found = interval_of(metric)
    return "" if found is None else f"{found[0]:.1%} to {found[1]:.1%}"
