from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.evaluation.bootstrap import mean_interval

values = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=60)


@given(values)
def test_the_interval_holds_the_mean_and_stays_within_the_values(drawn: list[tuple[bool, int]]) -> None:
    hits = np.asarray([hit for hit, _ in drawn], np.float64)
    interval = mean_interval(hits, [f"g{group}" for _, group in drawn])
    assert 0 <= interval.low <= hits.mean() <= interval.high <= 1
    assert interval.groups == len({group for _, group in drawn})


def test_photos_of_one_sitting_count_for_little_more_than_one() -> None:
    """20 sittings of 10 photos, all right or all wrong together, against 200 photos on their own."""
    hits = np.repeat(np.arange(20) % 4 > 0, 10).astype(np.float64)
    together = mean_interval(hits, [f"g{n // 10}" for n in range(200)])
    alone = mean_interval(hits, [f"g{n}" for n in range(200)])
    assert hits.mean() == 0.75
    assert 2.5 < (together.high - together.low) / (alone.high - alone.low) < 4, "about the root of 10"
    assert (together.groups, alone.groups) == (20, 200)


def test_against_the_binomial_where_every_photo_is_its_own_sitting() -> None:
    hits = (np.arange(400) % 5 > 0).astype(np.float64)  # 80 %, standard error 2 points
    interval = mean_interval(hits, [str(n) for n in range(400)])
    assert interval.low == pytest.approx(0.8 - 1.96 * 0.02, abs=0.006)
    assert interval.high == pytest.approx(0.8 + 1.96 * 0.02, abs=0.006)


def test_all_right_is_not_certainty() -> None:
    few, many = (mean_interval(np.ones(groups), [str(n) for n in range(groups)]) for groups in (5, 500))
    assert few.low < 0.6 < 0.99 < many.low < 1
    assert (few.high, many.high) == (1, 1)
    none = mean_interval(np.zeros(50), [str(n // 10) for n in range(50)])
    assert (none.low, none.groups) == (0, 5)
    assert none.high > 0.4, "five sittings, not fifty photos"


def test_the_same_answers_give_the_same_interval() -> None:
    rng = np.random.default_rng(3)
    hits, groups = rng.integers(0, 2, 300).astype(np.float64), [str(group) for group in rng.integers(0, 40, 300)]
    assert mean_interval(hits, groups) == mean_interval(hits, groups)
    with pytest.raises(ValueError, match="no values"):
        mean_interval(np.zeros(0), [])
