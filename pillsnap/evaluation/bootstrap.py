"""Intervals by a bootstrap over capture groups: the photos of one sitting are not independent of each other.

Whole groups are drawn with replacement, as many as there are, and the share is computed anew; the interval is that of
the 2.5th and 97.5th percentile (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; by clusters:
Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). The draws are those of one fixed seed:
the same answers give the same interval. Legend: N images, G groups, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

DRAWS = 2000
_CHUNK = 200
_SEED = 20240801


@dataclass(frozen=True)
class Interval:
    """Ends of a 95 % interval, and of how many groups it was drawn."""

    low: float
    high: float
    groups: int


def mean_interval(values_N: NDArray[np.float64], groups_N: Sequence[str]) -> Interval:
    """The interval of the mean of ``values_N``.

    Where all values are the same, the draws say nothing (they are the same too): then it is Wilson's interval, with the
    groups in place of the images, of as many hits or misses.

    Raises:
        ValueError: no values.
    """
    if len(values_N) == 0:
        raise ValueError("no values")
    _, group_N = np.unique(np.asarray(groups_N), return_inverse=True)
    sums_G = np.bincount(group_N, weights=values_N)
    sizes_G = np.bincount(group_N).astype(np.float64)
    groups = len(sums_G)
    value = float(values_N.mean())
    if values_N.min() == values_N.max() and value in (0.0, 1.0):
        wilson = binomtest(round(value * groups), groups).proportion_ci(0.95, method="wilson")
        return Interval(float(min(wilson.low, value)), float(max(wilson.high, value)), groups)
    rng = np.random.default_rng(_SEED)
    drawn = []
    for _ in range(DRAWS // _CHUNK):
        times_BG = rng.multinomial(groups, np.full(groups, 1 / groups), size=_CHUNK)
        drawn.append((times_BG @ sums_G) / (times_BG @ sizes_G))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return Interval(float(min(low, value)), float(max(high, value)), groups)
