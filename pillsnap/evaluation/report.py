"""The report of an evaluation: evidence, predictions, pictures and one page of text, as one folder.

Knows how the folder is laid out and replaced as a whole; the pictures are drawn by ``pictures``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from pillsnap.core.errors import ConfigError
from pillsnap.core.evidence import EVIDENCE_FILE, Evidence, Metric
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation.evidence import EvaluationResult
from pillsnap.evaluation.html_report import HTML_FILE, html_report
from pillsnap.evaluation.metrics import SHARE_NAMES, interval_of
from pillsnap.evaluation.pictures import draw_all

PREDICTIONS_FILE = "predictions.parquet"
REPORT_FILE = "report.md"
_WORST_CONFUSIONS = 15


def write_report(result: EvaluationResult, manifest: Manifest, folder: Path) -> Path:
    """Write the report; a former one in ``folder`` is replaced when the new one is whole.

    Returns:
        ``folder``.

    Raises:
        ConfigError: ``folder`` holds something that is not a report.
        TamperedError: an image of the sheet of mistakes was changed meanwhile.
    """
    check_folder(folder)
    with _replacing(folder) as temporary:
        result.evidence.save(temporary / EVIDENCE_FILE)
        pq.write_table(result.predictions.table(manifest.catalog.kcodes), temporary / PREDICTIONS_FILE)
        pictures = draw_all(result.evidence, result.predictions, manifest, temporary)
        (temporary / REPORT_FILE).write_text(report_text(result.evidence, pictures), encoding="utf-8")
        page = html_report(result.evidence, result.predictions, manifest)
        (temporary / HTML_FILE).write_text(page, encoding="utf-8")
    return folder


def check_folder(folder: Path) -> None:
    """Refuse to replace what is not a report. Raises ConfigError."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder for the report")
    if any(folder.iterdir()) and not (folder / EVIDENCE_FILE).is_file():
        raise ConfigError(f"{folder}: holds other files (no {EVIDENCE_FILE}) and would be replaced; name a new folder")


def figures_table(evidence: Evidence) -> str:
    """The main figures as plain text, a line each."""
    lines = [f"{label:<24}{_describe_share(evidence.metrics.get(name))}" for name, label in SHARE_NAMES.items()]
    timed = evidence.latency
    lines.append(f"{'Latency p50 / p95':<24}{timed.p50_ms:.1f} / {timed.p95_ms:.1f} ms ({timed.threads} threads)")
    lines.append(f"{'Size':<24}{evidence.metrics['size_mb'].value:.1f} MB")
    lines.append(f"{'Calibration error':<24}{evidence.metrics['ece'].value * 100:.1f} %")
    lines.append(f"{'Classes under 70 %':<24}{len(evidence.failures)} of {len(evidence.classes)}")
    return "\n".join(lines)


def report_text(evidence: Evidence, pictures: list[str]) -> str:
    """One page of Markdown."""
    timed = evidence.latency
    parts = [
        "# Evaluation",
        f"Bundle `{evidence.bundle_sha256[:12]}…` on the test split of manifest `{evidence.manifest_hash[:12]}…`, "
        f"{evidence.created}.",
        _table(("metric", "measured", "95 % interval over sittings", "images"), _figure_rows(evidence)),
        f"Latency: one image at a time, {timed.runs} runs, {timed.image}; {timed.hardware}, {timed.threads} threads, "
        f"{timed.provider}{_library(evidence)}.",
        "".join(f"- {note}\n" for note in evidence.notes).rstrip(),
        _failures_section(evidence),
        _confusions_section(evidence),
        *(f"![{Path(name).stem}]({name})" for name in pictures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _library(evidence: Evidence) -> str:
    """The package that computed, with its version."""
    for package, name in {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}.items():
        if package in evidence.environment:
            return f", {name} {evidence.environment[package]}"
    return ""


def _describe_share(metric: Metric | None) -> str:
    if metric is None:
        return "not measured"
    sittings = f" over {metric.groups} sittings" if metric.groups else ""
    return f"{metric.value * 100:5.1f} %  ({_interval(metric)}{sittings}, {metric.images} images)"


def _interval(metric: Metric) -> str:
    found = interval_of(metric)
    return "" if found is None else f"{found[0] * 100:.1f}–{found[1] * 100:.1f} %"


def _figure_rows(evidence: Evidence) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, label in SHARE_NAMES.items():
        metric = evidence.metrics.get(name)
        if metric is None:
            rows.append((label, "not measured", "", "0"))
        else:
            rows.append((label, f"{metric.value * 100:.1f} %", _interval(metric), str(metric.images)))
    rows.append(("Latency p50", f"{evidence.latency.p50_ms:.1f} ms", "", ""))
    rows.append(("Latency p95", f"{evidence.latency.p95_ms:.1f} ms", "", ""))
    rows.append(("Size", f"{evidence.metrics['size_mb'].value:.1f} MB", "", ""))
    rows.append(("Calibration error (ECE)", f"{evidence.metrics['ece'].value * 100:.1f} %", "", ""))
    return rows


def _failures_section(evidence: Evidence) -> str:
    results = {result.kcode: result for result in evidence.classes}
    if not evidence.failures:
        return "## Classes under 70 %\n\nNone."
    rows: list[tuple[str, ...]] = []
    for kcode in evidence.failures:
        result = results[kcode]
        top1 = "" if result.top1 is None else f"{result.top1 * 100:.0f} %"
        real = "no photos" if result.real_top1 is None else f"{result.real_top1 * 100:.0f} %"
        rows.append((kcode, _cell(result.drug_name), str(result.images), top1, real, result.confused_with or ""))
    header = ("K-CODE", "drug", "images", "Top-1", "Top-1, real", "most often taken for")
    return f"## Classes under 70 % ({len(rows)} of {len(results)})\n\n{_table(header, rows)}"


def _confusions_section(evidence: Evidence) -> str:
    if not evidence.confusions:
        return ""
    rows: list[tuple[str, ...]] = [
        (true, answered, str(n)) for true, answered, n in evidence.confusions[:_WORST_CONFUSIONS]
    ]
    return "## Most frequent mistakes\n\n" + _table(("is", "taken for", "images"), rows)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; put it in its place when the block ends well."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        fresh, former = workshop / "fresh", workshop / "former"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            os.replace(folder, former)
        try:
            os.replace(fresh, folder)
        except OSError:
            if former.exists():
                os.replace(former, folder)
            raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
