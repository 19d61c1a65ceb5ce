import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.errors import DataError
from pillsnap.data.split import check_no_straddle, split_groups

GROUPS = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=6),
    st.tuples(st.sampled_from(["A", "B", "C"]), st.integers(1, 40)),
    max_size=60,
)


def images(groups, splits):
    counts = Counter()
    for group, (_, size) in groups.items():
        counts[splits[group]] += size
    return counts


def test_eighty_ten_ten_of_thirty_sittings():
    groups = {f"b{i}": ("K-1", 8) for i in range(30)}
    assert images(groups, split_groups(groups, 0)) == {"train": 192, "val": 24, "test": 24}


def test_a_giant_group_goes_to_training():
    groups = {"giant": ("K-1", 100), **{f"s{i}": ("K-1", 1) for i in range(20)}}
    for seed in range(10):
        assert split_groups(groups, seed)["giant"] == "train"


def test_few_groups():
    assert split_groups({"a": ("K", 5)}, 0) == {"a": "train"}
    assert sorted(split_groups({"a": ("K", 5), "b": ("K", 5)}, 0).values()) == ["test", "train"]


@given(GROUPS, st.integers(0, 3))
def test_each_stratum_with_three_groups_gets_every_split(groups, seed):
    splits = split_groups(groups, seed)
    assert set(splits) == set(groups)
    for stratum in {stratum for stratum, _ in groups.values()}:
        members = [group for group, (its, _) in groups.items() if its == stratum]
        if len(members) >= 3:
            assert {splits[group] for group in members} == {"train", "val", "test"}


@given(GROUPS, st.randoms(use_true_random=False))
def test_order_of_the_input_does_not_matter(groups, rnd: random.Random):
    items = list(groups.items())
    rnd.shuffle(items)
    assert split_groups(dict(items), 5) == split_groups(groups, 5)


@given(st.integers(10, 80), st.integers(1, 9), st.integers(0, 5))
def test_equal_groups_come_close_to_the_shares(number, size, seed):
    groups = {f"g{i}": ("K", size) for i in range(number)}
    counts = images(groups, split_groups(groups, seed))
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(counts[split] - share * number * size) <= 1.5 * size


@given(GROUPS, st.integers(1, 5))
def test_no_group_straddles(groups, copies):
    splits = split_groups(groups, 1)
    check_no_straddle([(group, splits[group]) for group in groups for _ in range(copies)])


def test_a_cut_group_is_refused():
    with pytest.raises(DataError, match="would leak"):
        check_no_straddle([("a", "train"), ("b", "val"), ("a", "test")])


def test_the_seed_matters():
    groups = {f"g{i}": ("K", 3) for i in range(30)}
    assert split_groups(groups, 0) != split_groups(groups, 1)
