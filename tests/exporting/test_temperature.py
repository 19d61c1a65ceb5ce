from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from pillsnap.exporting.temperature import fit_temperature


@settings(max_examples=25, deadline=None)
@given(temperature=st.floats(0.35, 8), seed=st.integers(0, 2**32 - 1))
def test_a_known_temperature_is_recovered(temperature: float, seed: int) -> None:
    """Labels are drawn from softmax(z); of the logits z · T the fit must find T."""
    rng = np.random.default_rng(seed)
    z_NK = rng.normal(0, 2, (4000, 5))
    cumulative_NK = softmax(z_NK, axis=1).cumsum(axis=1)
    label_N = (rng.random((4000, 1)) > cumulative_NK[:, :-1]).sum(axis=1)
    found = fit_temperature((z_NK * temperature).astype(np.float32), label_N)
    assert found == pytest.approx(temperature, rel=0.12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), images=st.integers(1, 20))
def test_the_temperature_is_bounded_and_never_worse_than_none(seed: int, scale: float, images: int) -> None:
    rng = np.random.default_rng(seed)
    logits_NK = (rng.normal(0, scale, (images, 4))).astype(np.float32)
    label_N = rng.integers(0, 4, images)
    found = fit_temperature(logits_NK, label_N)
    assert 0.25 <= found <= 20

    def loss(temperature: float) -> float:
        probabilities = softmax(logits_NK.astype(np.float64) / temperature, axis=1)[np.arange(images), label_N]
        return float(-np.log(np.maximum(probabilities, 1e-300)).mean())

    assert loss(found) <= loss(1.0) * 1.001 + 1e-3


def test_perfect_and_hopeless_splits_stay_at_the_bounds() -> None:
    label_N = np.arange(4)
    perfect = np.eye(4, dtype=np.float32) / 2
    assert fit_temperature(perfect, label_N) == pytest.approx(0.25, rel=0.02)
    assert fit_temperature(-perfect, label_N) == pytest.approx(20, rel=0.02)
    assert fit_temperature(perfect * 1000, label_N[::-1].copy()) == pytest.approx(20, rel=0.02)
