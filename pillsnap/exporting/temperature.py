"""Temperature scaling: one number that makes a net's confidences honest, and the confidence that is sure enough.

Both are fitted on real photos where there are enough: nobody sends a studio picture, and on these a net is surer and
more often right. Legend: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

RIGHT_WHEN_SURE = 0.95
"""Share of the answers that are not called unsure, on validation images."""

LEAST_PHOTOS = 100
"""Real photos from which on the studio pictures are left out: of 100 the error of a share of 95 % is 2 points."""


def telling(domains_N: Sequence[str]) -> NDArray[np.bool_]:
    """Which validation images the confidences are fitted on: the real photos, or all where these are too few."""
    real_N = np.asarray([domain == "real" for domain in domains_N], np.bool_)
    return real_N if real_N.sum() >= LEAST_PHOTOS else np.ones(len(domains_N), np.bool_)


def fit_temperature(logits_NK: NDArray[np.float32], label_N: NDArray[np.int64]) -> float:
    """The T that minimises the negative log-likelihood of softmax(logits / T).

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", 2017. Bounded to 0.25..20, so
    that a perfect or a hopeless validation split does not run away.
    """
    rows = np.arange(len(label_N))

    def negative_log_likelihood(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits_NK.astype(np.float64) / np.exp(log_temperature), axis=1)
        return float(-log_probabilities[rows, label_N].mean())

    result = minimize_scalar(negative_log_likelihood, bounds=(np.log(0.25), np.log(20)), method="bounded")
    return float(np.exp(result.x))


def fit_unsure_below(logits_NK: NDArray[np.float32], temperature: float, label_N: NDArray[np.int64]) -> float:
    """The confidence under which an answer is to be called not sure, in hundredths from 0.50 to 0.99.

    The lowest one from which on 95 of 100 validation answers are right (selective classification: Geifman and El-Yaniv,
    2017, without their bound: the evidence measures on test images what became of it). 0.99 where none suffices.
    """
    probabilities_NK = softmax(logits_NK.astype(np.float64) / temperature, axis=1)
    confidence_N, right_N = probabilities_NK.max(axis=1), probabilities_NK.argmax(axis=1) == label_N
    for hundredths in range(50, 99):
        sure_N = confidence_N >= hundredths / 100
        if sure_N.any() and right_N[sure_N].mean() >= RIGHT_WHEN_SURE:
            return hundredths / 100
    return 0.99
