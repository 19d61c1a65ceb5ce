"""What makes confidences honest, and when an answer is not one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from pillsnap.exporting.temperature import (
    LEAST_PHOTOS,
    RIGHT_WHEN_SURE,
    fit_temperature,
    fit_unsure_below,
    telling,
)


def answers(rng: np.random.Generator, images: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is exactly how often each class is the right one, times ``sharpness``."""
    logits_NK = rng.normal(0, 2.5, (images, 10))
    labels = np.asarray([rng.choice(10, p=softmax(row)) for row in logits_NK])
    return (sharpness * logits_NK).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_takes_the_sharpness_back(sharpness: float) -> None:
    logits_NK, label_N = answers(np.random.default_rng(0), 4000, sharpness)
    assert fit_temperature(logits_NK, label_N) == pytest.approx(sharpness, rel=0.1)


def test_of_the_answers_that_are_called_sure_enough_are_right() -> None:
    logits_NK, label_N = answers(np.random.default_rng(1), 4000, 1.0)
    threshold = fit_unsure_below(logits_NK, 1.0, label_N)
    probabilities_NK = softmax(logits_NK, axis=1)
    confidence_N = probabilities_NK.max(axis=1)
    right_N = probabilities_NK.argmax(axis=1) == label_N
    assert 0.5 < threshold < 0.99
    assert right_N[confidence_N >= threshold].mean() >= RIGHT_WHEN_SURE
    assert right_N[confidence_N >= threshold - 0.01].mean() < RIGHT_WHEN_SURE


def test_under_one_half_nothing_is_sure_however_good_the_net() -> None:
    logits_NK = 20 * np.eye(10, dtype=np.float32)
    assert fit_unsure_below(logits_NK, 1.0, np.arange(10)) == 0.5


def test_a_net_that_is_wrong_is_never_sure() -> None:
    logits_NK = 20 * np.eye(10, dtype=np.float32)
    assert fit_unsure_below(logits_NK, 1.0, (np.arange(10) + 1) % 10) == 0.99


def test_real_photos_tell_where_there_are_enough() -> None:
    enough = ["real"] * LEAST_PHOTOS + ["studio"] * 40
    assert telling(enough).tolist() == [True] * LEAST_PHOTOS + [False] * 40
    assert telling(enough[1:]).all(), "too few: the studio pictures tell too"
    assert telling(["studio"] * 3).all()
