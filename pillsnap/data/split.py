"""80:10:10 by capture group: no sitting is ever on two sides. Pure: knows group ids and sizes only.

A stratum (one class in one domain) is split by itself, so each gets validation and test images where it has
three groups or more; with two groups it has no validation images, with one only training images. Groups that were
split before keep their split; new ones fill up what is missing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping

from pillsnap.core.errors import DataError
from pillsnap.core.manifest import SPLITS, Split

SHARES: dict[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}


def split_groups(
    groups: Mapping[str, tuple[Hashable, int]], seed: int, pinned: Mapping[str, Split] | None = None
) -> dict[str, Split]:
    """Give each group a split.

    Groups come in the order of their hash with the seed; each goes where the share is least filled when half
    of it is in (Sainte-Laguë's rule, which favours neither the large share nor the small). So the result hangs
    on the seed and the groups, not on the order of the input.

    Args:
        groups: group id → (stratum, images).
        seed: another seed gives another split.
        pinned: group id → split, of the groups whose split must not change.
    """
    pinned = pinned or {}
    strata: dict[Hashable, dict[str, int]] = defaultdict(dict)
    for group, (stratum, images) in groups.items():
        strata[stratum][group] = images
    assigned: dict[str, Split] = {}
    for sizes in strata.values():
        assigned.update(_split_stratum(sizes, seed, pinned))
    return assigned


def check_no_straddle(groups_and_splits: Iterable[tuple[str, str]]) -> None:
    """Raise DataError where the images of one group are in two splits."""
    first: dict[str, str] = {}
    for group, split in groups_and_splits:
        if first.setdefault(group, split) != split:
            raise DataError(f"capture group {group} is in {first[group]} and in {split}: the split would leak")


def _split_stratum(sizes: Mapping[str, int], seed: int, pinned: Mapping[str, Split]) -> dict[str, Split]:
    assigned = {group: pinned[group] for group in sizes if group in pinned}
    order = sorted((group for group in sizes if group not in assigned), key=lambda group: (_order(seed, group), group))
    if not assigned and len(order) < len(SPLITS):
        largest_first = sorted(order, key=sizes.__getitem__, reverse=True)
        return dict(zip(largest_first, ("train", "test"), strict=False))
    filled: Counter[Split] = Counter()
    for group, split in assigned.items():
        filled[split] += sizes[group]
    for group in order:
        split = min(SPLITS, key=lambda name: ((filled[name] + sizes[group] / 2) / SHARES[name], SPLITS.index(name)))
        assigned[group] = split
        filled[split] += sizes[group]
    for split in SPLITS:
        _fill_if_empty(assigned, split, sizes, order)
    return assigned


def _fill_if_empty(assigned: dict[str, Split], split: Split, sizes: Mapping[str, int], order: list[str]) -> None:
    """Move the smallest new group of the splits that have several (of training first) into an empty split."""
    counts = Counter(assigned.values())
    spare = [group for group in order if counts[assigned[group]] > 1]
    if counts[split] or not spare:
        return
    chosen = min(spare, key=lambda group: (SPLITS.index(assigned[group]), sizes[group], order.index(group)))
    assigned[chosen] = split


def _order(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()
