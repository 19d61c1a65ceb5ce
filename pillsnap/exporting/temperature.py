"""Temperature scaling: one number that makes a net's confidences honest. Legend: N images, K classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


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
