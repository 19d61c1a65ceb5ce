"""Temperature scaling: one number that makes a net's confidences honest. Legend: N images, K classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

RIGHT_WHEN_SURE = 0.95
"""Share of the answers that are not called unsure, on validation images."""


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
