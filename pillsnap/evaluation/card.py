"""The model card: what a model is, what was measured of it, what it must not be used for, and where it came from.

Markdown for the registry's page of a version, short enough for it. Every name that comes out of a file is escaped: a
page shows it and does nothing else. After Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

from __future__ import annotations

import html
import re

from pillsnap.core.bundle import ENGINE_NAMES, BundleMetadata
from pillsnap.core.evidence import Evidence, Metric
from pillsnap.evaluation.metrics import SHARE_NAMES, interval_of
from pillsnap.gate.decision import Decision, Status

_NOT_IN_CODE = re.compile(r"[^\w.+-]")


def headline(evidence: Evidence, metadata: BundleMetadata, decision: Decision, champion: str = "") -> str:
    """All that counts in one line of plain text: ``PROMOTE · top-1 86.9 % (≥ 85) · real 84.3 % (≥ 80) · 4.8 ms …``.

    ``champion``: the version that it was compared with.
    """
    checks = {check.metric: check for check in decision.checks}
    parts = [str(decision.verdict)]
    for metric, word in (("top1", "top-1 "), ("real_top1", "real "), ("latency_p95_ms", ""), ("size_mb", "")):
        check = checks[metric]
        asked = f" ({check.shown[2].removesuffix(' %')})" if word or check.status != Status.PASS else ""
        parts.append(f"{word}{check.shown[0]}{asked}")
    parts.append(metadata.numbers_and_engine)
    if evidence.comparison is not None and champion and "top1" in evidence.comparison.metrics:
        parts.append(f"{evidence.comparison.metrics['top1'].difference * 100:+.1f} against v{champion}")
    return " · ".join(parts)


def model_card(
    evidence: Evidence,
    metadata: BundleMetadata,
    decision: Decision | None,
    *,
    name: str = "",
    version: str = "",
    champion: str = "",
    longest: int,
) -> str:
    """The card as Markdown; the first line is plain text (`headline`).

    ``champion``: the version that it was compared with; ``longest``: characters that there is room for.
    """
    size = metadata.preprocessing.target_size
    parts = [
        headline(evidence, metadata, decision, champion) if decision else "",
        "".join(f"- {plain(reason)}\n" for reason in decision.reasons[:8]).rstrip() if decision else "",
        _what(evidence, metadata, f"**{plain(name)} version {plain(version)}** names" if name else "Names"),
        _figures(evidence, decision, champion),
        _limits(evidence),
        f"**How to use:** `pillsnap identify PHOTO` answers with the champion. {_engine(metadata)} takes uint8 images "
        f"of N×{size}×{size}×3 (RGB, preprocessed as the file's metadata say) and gives `probabilities`.",
        _origin(evidence, metadata, decision),
    ]
    card = "\n\n".join(part for part in parts if part) + "\n"
    return card if len(card) <= longest else card[: longest - 2].rstrip() + "…\n"


def plain(text: str) -> str:
    """A text that may come out of a stranger's file, without meaning for Markdown or HTML."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]()#!|~" else letter for letter in " ".join(text.split()))
    return html.escape(escaped, quote=False)


def _code(text: str) -> str:
    """An identifier out of a file, as code. A backslash escapes nothing there: what is no part of one becomes ``_``."""
    return f"`{_NOT_IN_CODE.sub('_', text)}`"


def _what(evidence: Evidence, metadata: BundleMetadata, names: str) -> str:
    used = sum(not entry.retired for entry in metadata.classes)
    real = evidence.metrics["real_top1"].images if "real_top1" in evidence.metrics else 0
    images = sum(result.images for result in evidence.classes)
    provenance = metadata.provenance
    known = {provenance.manifest_hash, *provenance.also_learned_from} == {evidence.manifest_hash}
    unseen = ", of sittings that the training never saw" if known else ""
    timed = evidence.latency
    return (
        f"{names} the drug on a photo of **one** pill out of {used} drugs ({plain(metadata.provenance.backbone)}, "
        f"{metadata.preprocessing.target_size} px, {metadata.numbers_and_engine}). Measured on {images} test images, "
        f"{real or 0} of them real photos{unseen}; times in {timed.runs} runs on {plain(timed.hardware)}, "
        f"{timed.threads} threads."
    )


def _engine(metadata: BundleMetadata) -> str:
    if metadata.engine == "onnxruntime":
        return "Any ONNX Runtime"
    return f"It is measured and served in {ENGINE_NAMES[metadata.engine]}, and its figures hold there alone. It"


def _figures(evidence: Evidence, decision: Decision | None, champion: str) -> str:
    checks = {check.metric: check for check in decision.checks if check.value is not None} if decision else {}
    rows = ["| | measured | target | minimum | 95 % interval over sittings | images |", "|---|---|---|---|---|---|"]

    def judged(label: str, metric: str, measured: str, interval: str = "", images: object = "") -> None:
        """With target and minimum; a decision shows as many digits as it takes not to look met."""
        shown = checks[metric].shown if metric in checks else (measured, "", "", "")
        rows.append(f"| {label} | **{shown[0]}** | {shown[2]} | {shown[3]} | {interval} | {images} |")

    def told(label: str, measured: str, interval: str = "", images: object = "") -> None:
        rows.append(f"| {label} | {measured} | | | {interval} | {images} |")

    for key, label in SHARE_NAMES.items():
        metric = evidence.metrics.get(key)
        if metric is not None:
            judged(label, key, f"{metric.value * 100:.1f} %", _interval(metric), metric.images)
    timed = evidence.latency
    judged("Latency, p95", "latency_p95_ms", f"{timed.p95_ms:.1f} ms", f"p50 {timed.p50_ms:.1f} ms")
    judged("Size", "size_mb", f"{evidence.metrics['size_mb'].value:.1f} MB")
    if evidence.comparison is not None:
        rival = f"version {plain(champion)}" if champion else "the champion"
        for name, paired in evidence.comparison.metrics.items():
            label = f"{SHARE_NAMES.get(name, name)} against {rival}"
            span = f"{paired.low * 100:+.1f} to {paired.high * 100:+.1f}"
            judged(label, f"champion_{name}", f"{paired.difference * 100:+.1f} points", span, paired.images)
    for name, (value, metric) in evidence.worst_slices.items():
        told(f"Worst {plain(name)} ({plain(value)})", f"{metric.value:.1%}", _interval(metric), metric.images)
    if "ece" in evidence.calibration:
        told("Calibration error", f"{evidence.calibration['ece']:.1%}")
    if "right_when_sure" in evidence.calibration:
        sure = f"{evidence.calibration['sure_share']:.1%} of the answers"
        below = f"under {evidence.calibration['unsure_below']:.0%} it says: not sure"
        told("Right when sure", f"{evidence.calibration['right_when_sure']:.1%}", sure, below)
    if "real_right_when_sure" in evidence.calibration:
        sure = f"{evidence.calibration['real_sure_share']:.1%} of the answers"
        told("Right when sure, real photos", f"**{evidence.calibration['real_right_when_sure']:.1%}**", sure)
    for name, agreement in evidence.agreements.items():
        told(f"Same answer: {plain(name)}", f"{agreement.top1:.1%}", "", agreement.images)
    return "\n".join(rows)


def _limits(evidence: Evidence) -> str:
    lines = [
        "**Limits.** It always answers with a drug of its list, also for a pill that is not on it. It is no medical "
        "device: a person who knows the drug decides."
    ]
    names = {result.kcode: f"{result.kcode} {result.drug_name}" for result in evidence.classes}

    def drug(kcode: str) -> str:
        return plain(names.get(kcode, kcode))

    if evidence.failures:
        shown = ", ".join(drug(kcode) for kcode in evidence.failures[:12])
        more = f" and {len(evidence.failures) - 12} more" if len(evidence.failures) > 12 else ""
        lines.append(f"Under 70 %: {shown}{more}.")
    if evidence.look_alikes:
        pairs = ", ".join(f"{drug(a)} and {drug(b)} ({share:.0%})" for a, b, share in evidence.look_alikes[:5])
        lines.append(f"Most often taken for each other: {pairs}.")
    codes = re.compile("|".join(map(re.escape, names)) or "(?!)")
    lines += [plain(codes.sub(lambda found: names[found[0]], note)) for note in evidence.notes[:5]]
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
    origin = "**Origin:** " + ", ".join(f"{key} {_code(value[:40])}" for key, value in facts.items() if value)
    first = metadata.provenance.first_weights
    if first is not None:
        terms = f"license {plain(first.license)}" if first.license else "license not known"
        origin += f". First weights: {plain(first.source)} ({terms}), sha256 {_code(first.sha256[:12])}"
    return origin


def _interval(metric: Metric) -> str:
    found = interval_of(metric)
    return "" if found is None else f"{found[0]:.1%} to {found[1]:.1%}"
