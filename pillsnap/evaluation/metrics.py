"""Figures out of labels and probabilities: pure functions, no files, no models.

Shares are 0..1 with their 95 % Wilson interval; a share of no images is None, never 0.
Legend: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from pillsnap.core.evidence import ClassResult, Metric
from pillsnap.evaluation.bootstrap import mean_interval

FAILURE_BELOW = 0.70
"""A class with a lower top-1 is listed as a failure (specification, part D)."""
ECE_BINS = 15
SHARE_NAMES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "real_top1": "Top-1, real photos",
    "studio_top1": "Top-1, studio pictures",
}
"""What people call the shares of the evidence."""
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence falls into one range."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean confidence."""
    accuracy: float


def interval_of(metric: Metric) -> tuple[float, float] | None:
    """The interval that is shown: over sittings where it was measured, else Wilson's."""
    if metric.group_low is not None and metric.group_high is not None:
        return metric.group_low, metric.group_high
    return None if metric.low is None or metric.high is None else (metric.low, metric.high)


def true_ranks(labels_N: Ints, probabilities_NK: NDArray[np.float32], retired: Sequence[int] = ()) -> Ints:
    """Rank of the true class in each answer, 1 is right.

    Of equal probabilities the lower index ranks first, as in the answers that are served (scikit-learn's
    ``top_k_accuracy_score`` ranks the higher one first, which would make a model that answers the same to
    everything right on the last class). ``retired`` classes are never answered, so they take no rank from another.
    """
    true_N1 = np.take_along_axis(probabilities_NK, labels_N[:, np.newaxis], axis=1)
    higher_N = (probabilities_NK > true_N1).sum(axis=1)
    earlier_NK = np.arange(probabilities_NK.shape[1]) < labels_N[:, np.newaxis]
    earlier_NK[:, list(retired)] = False
    tied_N = ((probabilities_NK == true_N1) & earlier_NK).sum(axis=1)
    return np.asarray(1 + higher_N + tied_N, np.int64)


def share(hits_N: Bools, groups_N: Sequence[str] | None = None) -> Metric | None:
    """Share of hits with its 95 % Wilson interval, and that over capture groups if they are given; None: no images."""
    images = int(hits_N.size)
    if images == 0:
        return None
    hits = int(np.count_nonzero(hits_N))
    interval = binomtest(hits, images).proportion_ci(confidence_level=0.95, method="wilson")
    metric = Metric(value=hits / images, low=float(interval.low), high=float(interval.high), images=images)
    if groups_N is None:
        return metric
    by_group = mean_interval(hits_N.astype(np.float64), groups_N)
    return metric.model_copy(update={"group_low": by_group.low, "group_high": by_group.high, "groups": by_group.groups})


def top_metrics(ranks_N: Ints, real_N: Bools, groups_N: Sequence[str] | None = None) -> dict[str, Metric]:
    """``top1``, ``top5``, ``real_top1`` and ``studio_top1``, as far as there are images for them."""
    right_N = ranks_N == 1
    everywhere_N = np.ones(len(ranks_N), np.bool_)
    figures = {
        "top1": (right_N, everywhere_N),
        "top5": (ranks_N <= 5, everywhere_N),
        "real_top1": (right_N, real_N),
        "studio_top1": (right_N, ~real_N),
    }
    found = {name: share(hits_N[among_N], _among(groups_N, among_N)) for name, (hits_N, among_N) in figures.items()}
    return {name: metric for name, metric in found.items() if metric is not None}


def _among(groups_N: Sequence[str] | None, among_N: Bools) -> Sequence[str] | None:
    return None if groups_N is None else [group for group, among in zip(groups_N, among_N, strict=True) if among]


def confusion_matrix(labels_N: Ints, predicted_N: Ints, classes: int) -> Ints:
    """``counts_KK``: rows are the true classes, columns the answers."""
    if labels_N.size == 0:  # scikit-learn refuses it
        return np.zeros((classes, classes), np.int64)
    return np.asarray(sklearn_confusion_matrix(labels_N, predicted_N, labels=np.arange(classes)), np.int64)


def confusions(counts_KK: Ints, kcodes: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    """(true, answered, images) of every wrong pair, the most frequent first."""
    wrong_KK = counts_KK - np.diag(np.diag(counts_KK))
    pairs = [(kcodes[i], kcodes[j], int(wrong_KK[i, j])) for i, j in np.argwhere(wrong_KK)]
    return tuple(sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1])))


def class_results(counts_KK: Ints, real_counts_KK: Ints, names: Sequence[tuple[str, str]]) -> tuple[ClassResult, ...]:
    """One result a class, by index; ``names`` are (K-CODE, drug name). No images: no figure."""
    return tuple(
        ClassResult(
            kcode=kcode,
            drug_name=drug_name,
            images=int(counts_KK[index].sum()),
            top1=_hit_share(counts_KK[index], index),
            real_top1=_hit_share(real_counts_KK[index], index),
            confused_with=_most_frequent_mistake(counts_KK[index], index, names),
        )
        for index, (kcode, drug_name) in enumerate(names)
    )


def failures(classes: Sequence[ClassResult]) -> tuple[str, ...]:
    """K-CODEs of the classes under 70 % top-1, the worst first."""
    failed = [(result.top1, result.kcode) for result in classes if result.top1 is not None]
    return tuple(kcode for top1, kcode in sorted(failed) if top1 < FAILURE_BELOW)


def slice_shares(right_N: Bools, values_N: Sequence[Any], groups_N: Sequence[str] | None = None) -> dict[str, Metric]:
    """Top-1 per value of one condition, in the order of the values; unknown values (None) are left out."""
    found = {}
    for value in sorted({value for value in values_N if value is not None}):
        among_N = np.asarray([other == value for other in values_N], np.bool_)
        found[str(value)] = share(right_N[among_N], _among(groups_N, among_N))
    return {value: metric for value, metric in found.items() if metric is not None}


def worst_slices(slices: Mapping[str, Mapping[str, Metric]], enough: int) -> dict[str, tuple[str, Metric]]:
    """The worst value of each condition, among those with at least ``enough`` images."""
    found = {}
    for name, values in slices.items():
        judged = [(metric.value, value, metric) for value, metric in values.items() if (metric.images or 0) >= enough]
        if len(judged) > 1:  # one value alone is not the worst of anything
            _, value, metric = min(judged, key=lambda entry: entry[:2])
            found[name] = (value, metric)
    return found


def look_alikes(counts_KK: Ints, kcodes: Sequence[str], most: int = 20) -> tuple[tuple[str, str, float], ...]:
    """(K-CODE, K-CODE, share of the photos of both that are taken for the other), the most confusable first."""
    images_K = counts_KK.sum(axis=1)
    found = []
    for i, j in np.argwhere(np.triu(counts_KK + counts_KK.T, k=1)):
        found.append((kcodes[i], kcodes[j], float(counts_KK[i, j] + counts_KK[j, i]) / int(images_K[i] + images_K[j])))
    return tuple(sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:most])


def reliability(confidences_N: NDArray[np.float32], right_N: Bools, bins: int = ECE_BINS) -> list[ReliabilityBin]:
    """The answers by confidence, in ``bins`` ranges of equal width; empty ranges are left out."""
    edges = np.linspace(0, 1, bins + 1)
    place_N = np.clip(np.digitize(confidences_N, edges[1:-1], right=True), 0, bins - 1)
    found = []
    for place in np.unique(place_N):
        inside_N = place_N == place
        found.append(
            ReliabilityBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                images=int(inside_N.sum()),
                confidence=float(confidences_N[inside_N].mean(dtype=np.float64)),
                accuracy=float(right_N[inside_N].mean()),
            )
        )
    return found


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Mean distance between confidence and accuracy, weighted by images (Guo et al. 2017)."""
    images = sum(item.images for item in bins)
    return sum(item.images * abs(item.accuracy - item.confidence) for item in bins) / images


def _hit_share(counts_K: Ints, index: int) -> float | None:
    images = int(counts_K.sum())
    return int(counts_K[index]) / images if images else None


def _most_frequent_mistake(counts_K: Ints, index: int, names: Sequence[tuple[str, str]]) -> str | None:
    wrong_K = counts_K.copy()
    wrong_K[index] = 0
    return names[int(wrong_K.argmax())][0] if wrong_K.any() else None
