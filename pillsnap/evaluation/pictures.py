"""The pictures of a report, as PNG files. Knows how to draw; measures nothing that ``metrics`` does not.

Matplotlib's own fonts have no Korean glyphs, so drugs are named by K-CODE. Nothing global of matplotlib is used.
Legend: N images, K classes, H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pillsnap.core.evidence import ClassResult, Evidence, Metric
from pillsnap.core.manifest import Manifest
from pillsnap.evaluation import metrics
from pillsnap.evaluation.examples import example_of, mistakes_in_order, thumbnails
from pillsnap.evaluation.predict import Predictions

_DPI = 110
_INK, _FAINT, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_GOOD, _BAD, _REAL, _ABSENT = "#2f7d5b", "#c8442d", "#d9902f", "#eef0f3"
_GOOD_MAP = LinearSegmentedColormap.from_list("good", ["#f1f7f4", _GOOD])
_BAD_MAP = LinearSegmentedColormap.from_list("bad", ["#ffffff", "#f6c1b5", _BAD, "#7a1f10"])
_COUNTS_UP_TO = 24
"""Classes up to which the counts are written into the confusion matrix."""
_MISTAKES_SHOWN = 24
_MISTAKE_COLUMNS = 4
_THUMB = 150
"""Side of a thumbnail on the sheet of mistakes, in pixels."""


def draw_all(evidence: Evidence, predictions: Predictions, manifest: Manifest, folder: Path) -> list[str]:
    """Draw every picture that there is something for. Returns the names of the files, in reading order."""
    kcodes = manifest.catalog.kcodes
    right_N = predictions.predicted_N == predictions.labels_N
    figures: dict[str, Figure | None] = {
        "classes.png": draw_classes(evidence.classes),
        "confusion.png": draw_confusion(
            metrics.confusion_matrix(predictions.labels_N, predictions.predicted_N, len(kcodes)), kcodes
        ),
        "slices.png": draw_slices(evidence),
        "reliability.png": draw_reliability(metrics.reliability(predictions.confidences_N, right_N)),
        "mistakes.png": draw_mistakes(predictions, manifest),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(folder / name, format="png")
    return list(drawn)


def draw_classes(classes: Sequence[ClassResult]) -> Figure:
    """Top-1 per class, the worst first, with the 70 % line; classes without test images stand grey at the end."""
    judged = sorted((c for c in classes if c.top1 is not None), key=lambda c: (c.top1 or 0.0, c.kcode))
    absent = [c for c in classes if c.top1 is None]
    count = len(classes)
    figure, axes = _figure(max(8.0, 2.5 + 0.155 * count), 5.4)
    tops = np.asarray([c.top1 or 0.0 for c in judged])
    colors = [_BAD if top1 < metrics.FAILURE_BELOW else _GOOD for top1 in tops]
    axes.bar(np.arange(len(judged)), np.maximum(tops * 100, 0.8), width=0.78, color=colors, zorder=2)
    axes.bar(
        np.arange(len(judged), count), 100, width=0.78, color=_ABSENT, hatch="///", edgecolor="#cbd2d9", linewidth=0
    )
    real = [(place, c.real_top1 * 100) for place, c in enumerate(judged) if c.real_top1 is not None]
    if real:
        axes.scatter(
            *zip(*real, strict=True),
            s=26 if count <= 40 else 12,
            color=_REAL,
            edgecolor="white",
            linewidth=0.6,
            zorder=4,
            clip_on=False,
        )
    axes.axhline(metrics.FAILURE_BELOW * 100, color=_INK, linewidth=1, linestyle=(0, (5, 3)), zorder=3)
    size = 9.0 if count <= 40 else 6.5
    names = [f"{c.kcode} ({c.images})" for c in (*judged, *absent)]
    axes.set_xticks(np.arange(count), names, rotation=0 if count <= 8 else 90, fontsize=size)
    axes.set_xlim(-0.7, count - 0.3)
    _percent_axis(axes, "y")
    failed = sum(color == _BAD for color in colors)
    title = f"Top-1 per class: {failed} of {count} under {metrics.FAILURE_BELOW * 100:.0f} %"
    parts = ["in brackets: test images"]
    parts += ["dots: real photos only"] if real else []
    parts += [f"hatched: {len(absent)} without test images"] if absent else []
    _titles(axes, title, "; ".join(parts))
    return figure


def draw_confusion(counts_KK: metrics.Ints, kcodes: Sequence[str]) -> Figure:
    """The confusion matrix, each row in shares of its images; right answers green, mistakes red."""
    count = len(kcodes)
    side = max(6.4, min(16.0, 2.6 + 0.115 * count)) if count > _COUNTS_UP_TO else 4.6 + 0.42 * count
    figure, axes = _figure(side, side)
    images_K = counts_KK.sum(axis=1)
    shares_KK = counts_KK / np.maximum(images_K, 1)[:, np.newaxis]
    axes.imshow(_confusion_colors(shares_KK, images_K), interpolation="nearest", aspect="equal")
    if count <= _COUNTS_UP_TO:
        for row, column in np.argwhere(counts_KK):
            dark = shares_KK[row, column] > 0.45
            axes.text(
                column,
                row,
                str(counts_KK[row, column]),
                ha="center",
                va="center",
                fontsize=11 if count < 13 else 9,
                color="white" if dark else _INK,
            )
    for row in np.flatnonzero(images_K == 0):
        if count <= _COUNTS_UP_TO:
            axes.text((count - 1) / 2, row, "no test images", ha="center", va="center", color=_FAINT, fontsize=9)
    size = 9.5 if count <= _COUNTS_UP_TO else 6.0
    axes.set_xticks(np.arange(count), kcodes, rotation=90, fontsize=size)
    axes.set_yticks(np.arange(count), kcodes, fontsize=size)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_GRID, linewidth=0.8 if count <= _COUNTS_UP_TO else 0.35)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    images, right = int(counts_KK.sum()), int(np.trace(counts_KK))
    below = "darker: a larger share of the row" + ("; grey rows: no test images" if (images_K == 0).any() else "")
    _titles(axes, f"Confusion matrix: {images - right} of {images} answers wrong", below)
    return figure


def draw_slices(evidence: Evidence) -> Figure | None:
    """Top-1 with its 95 % interval by domain and by the conditions of the real photos; None without any."""
    domains = {"studio pictures": evidence.metrics.get("studio_top1"), "real photos": evidence.metrics.get("real_top1")}
    measured = {name: metric for name, metric in domains.items() if metric is not None}
    groups: dict[str, dict[str, Metric]] = {"": measured, **evidence.slices}
    bars = [(group, value, metric) for group, values in groups.items() for value, metric in values.items()]
    if not bars:
        return None
    figure, axes = _figure(8.4, 1.9 + 0.36 * (len(bars) + 0.8 * len(groups)))
    place = 0.0
    places = []
    for index, (group, name, metric) in enumerate(bars):
        place += 1.0 if index == 0 or bars[index - 1][0] == group else 1.8
        places.append(place)
        low, high = (100 * end for end in metrics.interval_of(metric) or (metric.value, metric.value))
        value = metric.value * 100
        axes.barh(place, value, height=0.7, color=_GOOD if name == "studio pictures" else _REAL, alpha=0.85, zorder=2)
        axes.errorbar(
            value,
            place,
            xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            color=_INK,
            capsize=3,
            linewidth=1.2,
            zorder=3,
        )
        axes.text(102, place, f"{value:.0f} %", va="center", fontsize=9, color=_INK)
        axes.text(110, place, f"n = {metric.images}", va="center", fontsize=9, color=_FAINT)
    axes.set_yticks(places, [f"{group} {_slice_name(group, value)}".strip() for group, value, _ in bars], fontsize=9.5)
    axes.set_ylim(place + 0.8, 0.2)
    _percent_axis(axes, "x")
    below = "whiskers: 95 % interval over sittings; orange: real photos"
    _titles(axes, "Top-1 by condition", below + (", below by how they were taken" if evidence.slices else ""))
    return figure


def draw_reliability(bins: Sequence[metrics.ReliabilityBin]) -> Figure:
    """How often the model is right when it is so sure; on the diagonal it can be taken at its word."""
    figure, axes = _figure(6.4, 6.6)
    images = sum(item.images for item in bins)
    axes.plot([0, 100], [0, 100], color=_FAINT, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    for item in bins:
        center, width = 50 * (item.low + item.high), 92 * (item.high - item.low)
        axes.bar(center, item.accuracy * 100, width=width, color=_GOOD, alpha=0.35, zorder=2)
    axes.scatter(
        [item.confidence * 100 for item in bins],
        [item.accuracy * 100 for item in bins],
        s=[24 + 420 * item.images / images for item in bins],
        color=_GOOD,
        edgecolor="white",
        zorder=4,
        clip_on=False,
    )
    axes.set_xlim(0, 100)
    _percent_axis(axes, "x")
    _percent_axis(axes, "y")
    axes.set_xlabel("confidence")
    axes.set_ylabel("right")
    axes.set_aspect("equal")
    error = metrics.expected_calibration_error(bins) * 100
    _titles(
        axes,
        f"Confidence against truth: off by {error:.1f} points",
        f"{images} test images; larger dots: more images; under the line: too sure",
    )
    return figure


def draw_mistakes(predictions: Predictions, manifest: Manifest) -> Figure:
    """Wrong answers: the test image, and beside it one of the drug that it was taken for."""
    wrong = mistakes_in_order(predictions)
    shown = wrong[:_MISTAKES_SHOWN]
    tile_W, tile_H, margin = 2 * _THUMB + 6, _THUMB + 44, 26
    columns = min(_MISTAKE_COLUMNS, max(2, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    width, height = columns * (tile_W + margin) + margin, lines * (tile_H + margin) + 84
    figure, axes = _sheet(width, height)
    images = len(predictions.labels_N)
    axes.text(margin, 32, f"{len(wrong)} of {images} answers wrong", fontsize=14, color=_INK, weight="bold")
    if len(wrong) == 0:
        axes.text(margin, 100, "Nothing to show: every test image was answered right.", fontsize=11, color=_FAINT)
        return figure
    note = "left: the test image; right: a test image of the drug that it was taken for"
    note += f" ({len(shown)} mistakes: the surest one of each kind, then the next)" if len(shown) < len(wrong) else ""
    axes.text(margin, 54, note, fontsize=9, color=_FAINT)
    open_thumb = thumbnails(predictions, manifest, _THUMB)
    for place, index in enumerate(shown):
        left = margin + (place % columns) * (tile_W + margin)
        top = 74 + (place // columns) * (tile_H + margin)
        _mistake(axes, predictions, manifest.catalog.kcodes, int(index), (left, top), open_thumb)
    return figure


def _mistake(
    axes: Any,
    predictions: Predictions,
    kcodes: Sequence[str],
    index: int,
    corner: tuple[int, int],
    open_thumb: Callable[[int], NDArray[np.uint8]],
) -> None:
    left, top = corner
    answered, domain = int(predictions.predicted_N[index]), predictions.rows["domain"][index].as_py()
    _paste(axes, open_thumb(index), left, top)
    example = example_of(predictions, answered, domain)
    beside = left + _THUMB + 6
    if example is None:
        _paste(axes, np.full((_THUMB, _THUMB, 3), 238, np.uint8), beside, top)
        axes.text(beside + _THUMB / 2, top + _THUMB / 2, "no test image", ha="center", fontsize=8, color=_FAINT)
    else:
        _paste(axes, open_thumb(example), beside, top)
    below = top + _THUMB + 17
    sure, rank = predictions.confidences_N[index] * 100, int(predictions.ranks_N[index])
    axes.text(left, below, kcodes[int(predictions.labels_N[index])], fontsize=9, color=_INK, weight="bold")
    axes.text(left, below + 19, f"{domain}, ranked {rank}", fontsize=8, color=_FAINT)
    axes.text(beside, below, kcodes[answered], fontsize=9, color=_BAD, weight="bold")
    axes.text(beside, below + 19, f"answered, {sure:.0f} % sure", fontsize=8, color=_FAINT)


def _confusion_colors(shares_KK: NDArray[np.float64], images_K: metrics.Ints) -> NDArray[np.float64]:
    """``colors_KKC``: mistakes on a steeper scale than right answers, so that a single one is seen."""
    colors_KKC = np.asarray(_BAD_MAP(np.sqrt(shares_KK)))[..., :3]
    diagonal = np.arange(len(shares_KK))
    colors_KKC[diagonal, diagonal] = np.asarray(_GOOD_MAP(np.diag(shares_KK)))[..., :3]
    colors_KKC[images_K == 0] = to_rgb(_ABSENT)
    return colors_KKC


def _slice_name(group: str, value: str) -> str:
    return {"0": "front", "1": "back"}.get(value, value) if group == "side" else value


def _figure(width_in: float, height_in: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa5b1")
    axes.tick_params(colors=_INK, labelsize=9.5, length=0)
    return figure, axes


def _sheet(width_px: int, height_px: int) -> tuple[Figure, Any]:
    """A white sheet that is drawn on in pixels, from the top left."""
    figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width_px)
    axes.set_ylim(height_px, 0)
    axes.set_axis_off()
    return figure, axes


def _paste(axes: Any, image_HWC_u8: NDArray[np.uint8], left: int, top: int) -> None:
    height, width = image_HWC_u8.shape[:2]
    axes.imshow(image_HWC_u8, extent=(left, left + width, top + height, top), interpolation="nearest", aspect="auto")


def _percent_axis(axes: Any, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(0, 100)
    axis.set_ticks(range(0, 101, 10), [f"{value} %" for value in range(0, 101, 10)])
    axes.grid(axis=which, color=_GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)


def _titles(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, color=_INK, weight="bold", pad=24)
    axes.annotate(
        below, (0, 1), xytext=(0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=9, color=_FAINT
    )
