"""Copies whose brightness, contrast or gamma was changed: a gallery's "enhance" button makes them.

Both hashes follow edges and shapes, so they hardly change; the grey pictures do, by far more than a copy may differ.
So what is left of the difference is judged after a tone curve (a parabola: bent enough for any usual gamma) has been
fitted. Docs: docs/decisions/0004-capture-groups.md has the figures that the limits come from.

Legend: E pairs, P pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST_CORRELATION = 0.99
"""Of the grey pictures less their mean: a curve that is fitted to a flat picture leaves no difference at all."""


def toned_difference(one_EP: NDArray[np.uint8], two_EP: NDArray[np.uint8]) -> NDArray[np.float64]:
    """``difference_E``: mean difference in grey levels after the better tone curve; infinite for unlike pictures.

    The curve is fitted both ways and the larger difference counts, so that no picture is flattened to match another.
    """
    first_EP, second_EP = one_EP.astype(np.float64), two_EP.astype(np.float64)
    difference_E = np.maximum(_left(first_EP, second_EP), _left(second_EP, first_EP))
    return np.where(_correlation(first_EP, second_EP) >= LEAST_CORRELATION, difference_E, np.inf)


def _left(source_EP: NDArray[np.float64], target_EP: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean difference that the best parabola of the source leaves: the target less its part along 1, x and x²."""
    line_EP = source_EP - source_EP.mean(axis=1, keepdims=True)
    bend_EP = line_EP**2
    bend_EP = _without(bend_EP - bend_EP.mean(axis=1, keepdims=True), line_EP)
    rest_EP = target_EP - target_EP.mean(axis=1, keepdims=True)
    rest_EP = _without(_without(rest_EP, line_EP), bend_EP)
    return np.asarray(np.abs(rest_EP).mean(axis=1), np.float64)


def _without(vector_EP: NDArray[np.float64], base_EP: NDArray[np.float64]) -> NDArray[np.float64]:
    """What stands upright on the base."""
    square_E = np.maximum((base_EP**2).sum(axis=1), 1e-9)
    return np.asarray(vector_EP - ((vector_EP * base_EP).sum(axis=1) / square_E)[:, None] * base_EP, np.float64)


def _correlation(one_EP: NDArray[np.float64], two_EP: NDArray[np.float64]) -> NDArray[np.float64]:
    one_EP = one_EP - one_EP.mean(axis=1, keepdims=True)
    two_EP = two_EP - two_EP.mean(axis=1, keepdims=True)
    length_E = np.linalg.norm(one_EP, axis=1) * np.linalg.norm(two_EP, axis=1)
    return np.asarray((one_EP * two_EP).sum(axis=1) / np.maximum(length_E, 1e-6), np.float64)
