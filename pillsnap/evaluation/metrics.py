"""Figures out of labels and probabilities: pure functions, no files, no models.

Shares are 0..1 with their 95 % Wilson interval; a share of no images is None, never 0.
Legend: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from pillsnap.core.evidence import ClassResult, Metric

FAILURE_BELOW = 0.70
"""A class with a lower top-1 is listed as a failure (specification, part D)."""
ECE_BINS = 15
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


def share(hits_N: Bools) -> Metric | None:
    """Share of hits with its 95 % Wilson interval; None for no images."""
    images = int(hits_N.size)
    if images == 0:
        return None
    hits = int(np.count_nonzero(hits_N))
    interval = binomtest(hits, images).proportion_ci(confidence_level=0.95, method="wilson")
    return Metric(value=hits / images, low=float(interval.low), high=float(interval.high), images=images)


def top_metrics(ranks_N: Ints, real_N: Bools) -> dict[str, Metric]:
    """``top1``, ``top5``, ``real_top1`` and ``studio_top1``, as far as there are images for them."""
    right_N = ranks_N == 1
    figures = {
        "top1": share(right_N),
        "top5": share(ranks_N <= 5),
        "real_top1": share(right_N[real_N]),
        "studio_top1": share(right_N[~real_N]),
    }
    return {name: metric for name, metric in figures.items() if metric is not None}


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


def slice_shares(right_N: Bools, values_N: Sequence[int | None]) -> dict[str, Metric]:
    """Top-1 per value of one condition, in the order of the values; unknown values (None) are left out."""
    known = sorted({value for value in values_N if value is not None})
    found = {str(value): share(right_N[[other == value for other in values_N]]) for value in known}
    return {value: metric for value, metric in found.items() if metric is not None}


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
