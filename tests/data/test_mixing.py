import random
from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.data.mixing import Candidate, choose_balanced, missing_photos, mix_class, share_out
from pillsnap.data.split import SHARES


def test_the_example_of_the_capture_protocol():
    mix = mix_class(real=240, studio_available=1296)
    assert (mix.wanted, mix.studio_used, mix.shortfall) == (343, 103, 0)
    assert not mix.is_short


def test_no_image_too_many_by_floating_point():
    assert mix_class(real=21, studio_available=99, minimum=0).wanted == 30  # 21 / 0.7 = 30.000000000000004


def test_few_real_photos_reach_the_minimum_but_not_the_ratio():
    mix = mix_class(real=20, studio_available=100)
    assert (mix.wanted, mix.studio_used, mix.shortfall) == (50, 30, 0)
    assert mix.is_short
    assert not mix.reaches_ratio


def test_too_few_studio_images_are_reported():
    mix = mix_class(real=240, studio_available=3)
    assert (mix.studio_used, mix.shortfall) == (3, 100)
    assert mix.is_short
    assert mix.as_dict()["shortfall"] == 100


@pytest.mark.parametrize("values", [(-1, 0, 0.7, 50), (0, -1, 0.7, 50), (1, 1, 0.0, 50), (1, 1, 1.1, 50)])
def test_senseless_numbers_are_refused(values):
    with pytest.raises(ValueError):
        mix_class(*values)


@given(st.integers(0, 2000), st.integers(0, 3000), st.floats(0.05, 1), st.integers(0, 200))
def test_rule(real, studio, ratio, minimum):
    mix = mix_class(real, studio, ratio, minimum)
    assert mix.wanted >= minimum
    assert real / ratio - 1e-6 <= mix.wanted <= max(ceil(real / ratio), minimum)
    assert 0 <= mix.studio_used <= studio
    assert mix.images + mix.shortfall == mix.wanted
    assert mix.shortfall == 0 or mix.studio_used == studio
    if mix.shortfall == 0 and mix.wanted > minimum:
        assert mix.reaches_ratio


def grid(turns=6):
    return [
        Candidate(f"{side}-{background}-{light}-{turn}", (side, background, light), (side, background))
        for side in range(2)
        for background in range(3)
        for light in range(3)
        for turn in range(turns)
    ]


@given(st.integers(0, 108), st.integers(0, 5))
def test_choice_is_spread_over_strata_and_sittings(count, seed):
    candidates = grid()
    chosen = choose_balanced(candidates, count, seed)
    assert len(set(chosen)) == count
    of = {candidate.key: candidate for candidate in candidates}
    for pots in (Counter(of[key].stratum for key in chosen), Counter(of[key].sitting for key in chosen)):
        full = 6 if len(pots) <= 6 else 18
        counts = [*pots.values(), *[0] * (full - len(pots))]
        assert max(counts) - min(counts) <= 1


@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_choice_does_not_hang_on_the_order(rnd: random.Random, count):
    candidates = grid()
    shuffled = candidates.copy()
    rnd.shuffle(shuffled)
    assert choose_balanced(shuffled, count, 7) == choose_balanced(candidates, count, 7)


def test_another_seed_chooses_others():
    assert choose_balanced(grid(), 20, 0) != choose_balanced(grid(), 20, 1)


@given(st.integers(0, 400), st.tuples(*[st.integers(0, 300)] * 3))
def test_shares_are_kept_where_there_are_enough(count, available):
    have = dict(zip(SHARES, available, strict=True))
    taken = share_out(count, have, SHARES)
    assert sum(taken.values()) == min(count, sum(available))
    assert all(0 <= taken[split] <= have[split] for split in SHARES)
    if all(have[split] > count * share for split, share in SHARES.items()):
        assert all(abs(taken[split] - count * share) < 1 for split, share in SHARES.items())


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.05, 1), st.integers(0, 100))
def test_with_what_is_missing_a_class_is_complete(real, studio, ratio, minimum):
    more_real, more_studio = missing_photos(mix_class(real, studio, ratio, minimum), ratio, minimum)
    assert more_real >= 0 <= more_studio
    complete = mix_class(real + more_real, studio + more_studio, ratio, minimum)
    assert complete.shortfall == 0
    assert complete.reaches_ratio or complete.images == 0
    if not mix_class(real, studio, ratio, minimum).is_short:
        assert more_real <= 1
