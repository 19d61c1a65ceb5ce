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


def test_of_two_groups_the_larger_trains():
    for seed in range(5):
        assert split_groups({"a": ("K", 5), "b": ("K", 90)}, seed) == {"a": "test", "b": "train"}


@given(GROUPS, GROUPS, st.integers(0, 3))
def test_what_was_split_stays_when_more_comes(groups, more, seed):
    before = split_groups(groups, seed)
    grown = {**{f"new {name}": value for name, value in more.items()}, **groups}
    after = split_groups(grown, seed, before)
    assert set(after) == set(grown)
    assert {group: after[group] for group in groups} == before


@given(st.integers(1, 6), st.integers(0, 3))
def test_new_groups_fill_what_is_missing(rounds, seed):
    """Ten groups a round, one round after the other: the shares hold in the end."""
    groups, splits = {}, {}
    for number in range(rounds):
        groups |= {f"{number} {index}": ("K", 4) for index in range(10)}
        splits = split_groups(groups, seed, splits)
    counts = images(groups, splits)
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(counts[split] - share * 40 * rounds) <= 6


def test_an_empty_split_is_filled_by_a_new_group_only():
    pinned = {f"old{index}": "train" for index in range(8)}
    groups = dict.fromkeys([*pinned, "new1", "new2"], ("K", 5))
    splits = split_groups(groups, 0, pinned)
    assert {splits[name] for name in pinned} == {"train"}
    assert {splits["new1"], splits["new2"]} == {"val", "test"}


def test_strata_are_split_by_themselves():
    groups = {
        f"{domain}{index}": ((domain,), size) for domain, size in (("real", 2), ("studio", 30)) for index in range(10)
    }
    splits = split_groups(groups, 3)
    for domain in ("real", "studio"):
        counts = Counter(splits[f"{domain}{index}"] for index in range(10))
        assert counts == {"train": 8, "val": 1, "test": 1}
