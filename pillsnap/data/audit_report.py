"""``audit.html``: what a person looks at before believing a data set. One file, with its pictures inside.

Numbers first (what was found, used, left out), then what is missing and what to photograph next, then the findings
with thumbnails, distributions, and a studio picture and a real photo of every class (a wrong label shows there).
Knows the report and the scan; decides nothing.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from numpy.typing import NDArray

from pillsnap.core.boxes import Box, box_of_row, crop_to_box
from pillsnap.core.errors import ImageError
from pillsnap.core.files import write_bytes
from pillsnap.core.images import decode_rgb, read_image_bytes
from pillsnap.core.manifest import SPLITS, Manifest
from pillsnap.data.audit import NOTES, QUARANTINE
from pillsnap.data.coverage import in_words
from pillsnap.data.names import DOMAINS, Domain
from pillsnap.data.scan import ScanStore
from pillsnap.data.sources import OVERLOOKED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AUDIT_FILE = "audit.html"
_THUMB_PX = 128
_THUMBS_PER_CODE = 12
_CLASSES_SHOWN = 200
_LISTED = 500
"""Notes and copies whose paths are listed at most; what is quarantined is listed wholly."""
_SIZES_SHOWN = 5
_COLORS = {"train": "#4c78a8", "val": "#f2a541", "test": "#c0504d", "studio": "#8a8f98", "real": "#3a8f6b"}


@dataclass(frozen=True)
class _Thumb:
    path: str
    detail: str
    data: str
    """A data URL, or empty where the picture cannot be shown."""


def write_audit_report(path: Path, manifest: Manifest, report: Mapping[str, Any], store: ScanStore) -> None:
    """Write the page as a whole or not at all.

    Args:
        path: the file.
        manifest: the data set that was made.
        report: what was found, left out and is short (``report.json``).
        store: what was read of each picture.
    """
    root = manifest.root
    page = _template().render(
        summary=manifest.summary,
        report=report,
        splits=SPLITS,
        domains=DOMAINS,
        meanings={**QUARANTINE, **NOTES, **OVERLOOKED},
        overlooked=sum(found["count"] for by_code in report["overlooked"].values() for found in by_code.values()),
        quarantined=sum(len(paths) for paths in report["left_out"].values()),
        left_out=_with_thumbs(root, report["left_out"]),
        notes=_with_thumbs(root, report["notes"]),
        plans={kcode: in_words(entry["photograph_next"]) for kcode, entry in report["classes"].items()},
        listed=_LISTED,
        charts=_charts(manifest, store),
        sizes={domain: Counter(sizes).most_common(_SIZES_SHOWN) for domain, sizes in store.usual_sizes().items()},
        classes=_class_thumbs(manifest),
        classes_in_all=len(manifest.catalog.active),
    )
    write_bytes(path, page.encode("utf-8"))


def _with_thumbs(root: Path, findings: Mapping[str, Mapping[str, str]]) -> dict[str, list[_Thumb]]:
    return {
        code: [_Thumb(path, detail, _thumb(root / path)) for path, detail in list(by_path.items())[:_THUMBS_PER_CODE]]
        for code, by_path in findings.items()
    }


def _class_thumbs(manifest: Manifest) -> list[tuple[str, str, list[_Thumb]]]:
    """K-CODE, drug name and one picture a domain, of the first classes."""
    is_real_N = np.asarray(manifest.rows["domain"].to_pylist()) == "real"
    _, first_N = np.unique(2 * manifest.labels(manifest.rows) + is_real_N, return_index=True)
    rows = manifest.rows.take(first_N).to_pylist()
    first = {(row["kcode"], row["domain"]): row for row in rows}
    shown = []
    for drug in manifest.catalog.active[:_CLASSES_SHOWN]:
        thumbs = []
        for domain in DOMAINS:
            found = first.get((drug.kcode, domain))
            if found is not None:
                thumbs.append(_Thumb(found["path"], domain, _thumb(manifest.root / found["path"], box_of_row(found))))
        shown.append((drug.kcode, drug.drug_name, thumbs))
    return shown


def _thumb(path: Path, box: Box | None = None) -> str:
    try:
        # Only a whole picture is decoded at less than its size: the box counts its pixels.
        image_HWC_u8 = decode_rgb(read_image_bytes(path), str(path), None if box else _THUMB_PX)
        if box is not None:
            image_HWC_u8 = crop_to_box(image_HWC_u8, box)
    except ImageError:
        return ""
    height, width = image_HWC_u8.shape[:2]
    scale = _THUMB_PX / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = cv2.cvtColor(cv2.resize(image_HWC_u8, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return _data_url("image/jpeg", cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


@cache
def _template() -> Template:
    """Compiled once: that takes longer than to fill it."""
    loader = PackageLoader("pillsnap.data", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(
        "audit.html"
    )


def _charts(manifest: Manifest, store: ScanStore) -> list[tuple[str, str]]:
    """Title and data URL of each distribution."""
    return [
        ("Images a class, by split", _png(_draw_classes(manifest, "split", SPLITS))),
        ("Images a class, by domain", _png(_draw_classes(manifest, "domain", DOMAINS))),
        ("Brightness", _png(_draw_histogram(store.figure_histogram("mean"), "mean grey level, 0 to 255"))),
        (
            "Sharpness",
            _png(_draw_histogram(store.figure_histogram("sharpness", log=True), "log10 of the Laplacian's variance")),
        ),
    ]


def _new_figure() -> Figure:
    from matplotlib.figure import Figure  # slow to import, and needed only here

    return Figure(figsize=(5.6, 2.4), layout="constrained")


def _draw_classes(manifest: Manifest, column: str, values: Iterable[str]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure()
    axes = figure.add_subplot()
    label_N = manifest.labels(manifest.rows)
    value_N = np.asarray(manifest.rows[column].to_pylist())
    classes = len(manifest.catalog.drugs)
    bottom_K = np.zeros(classes)
    for value in values:
        count_K = np.bincount(label_N[value_N == value], minlength=classes)
        axes.bar(np.arange(classes), count_K, width=1.0, bottom=bottom_K, label=value, color=_COLORS[value])
        bottom_K += count_K
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("class index")
    axes.set_ylabel("images")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    axes.set_ylim(0, float(bottom_K.max()) * 1.25)
    axes.margins(x=0.01)
    return figure


def _draw_histogram(histogram: Mapping[Domain, tuple[NDArray[np.float64], NDArray[np.int64]]], label: str) -> Figure:
    figure = _new_figure()
    axes = figure.add_subplot()
    for domain, (edges, counts) in histogram.items():
        axes.stairs(counts, edges, label=domain, color=_COLORS[domain], fill=True, alpha=0.6)
    axes.set_xlabel(label)
    axes.set_ylabel("pictures")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return _data_url("image/png", buffer.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
