"""Capture groups: what hangs together by sittings and links, so that no group has pictures of two splits.

A picture and a sitting that were split before keep their split. So what would tie two splits together is left out:
pictures take their places one after the other, those with the older claim first, and one that would join what lies in
two splits gets none. A second run with nothing changed leaves out the same ones: whoever had a place comes first and
finds no one in the way, and for the others nothing has become free.

Knows pictures, links and earlier splits; reads no file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from pillsnap.core.manifest import SPLITS, Split
from pillsnap.data.groups import Links, Usable, sitting_id


@dataclass(frozen=True)
class Grouping:
    """Groups of one class."""

    groups: dict[str, str]
    """Path → group id."""
    pinned: dict[str, Split]
    """Group id → the split that pictures of it, or its sitting, had before."""
    bridges: tuple[str, ...] = ()
    """Paths of pictures that would tie groups of several splits together. They are in no group."""


def capture_groups(
    pictures: Sequence[Usable],
    links: Links,
    before: Mapping[str, Split] | None = None,
    sittings: Mapping[str, Split] | None = None,
    placed: Collection[str] = (),
) -> Grouping:
    """Groups of the pictures of one class.

    Args:
        pictures: of one class. Those of several pills only ever train.
        links: from `near_duplicate_links` of the same pictures.
        before: sha256 → split, of pictures that were split earlier.
        sittings: group id → split, of sittings that were split earlier, whether their pictures are still there or not.
        placed: sha256 of those of ``before`` that were in a group, not left out.
    """
    graph = _Graph.of(pictures, links, before or {}, sittings or {})
    out = graph.left_out(_claims(pictures, before or {}, placed))
    groups: dict[str, str] = {}
    pinned: dict[str, Split] = {}
    for members in graph.components(out):
        together = [pictures[index] for index in members if index < len(pictures)]
        if not together:
            continue
        name = _group_id(together)
        groups.update({one.path: name for one in together})
        for split in graph.splits_of(members):
            pinned[name] = split
    return Grouping(groups, pinned, tuple(sorted(pictures[index].path for index in out)))


def _claims(
    pictures: Sequence[Usable], before: Mapping[str, Split], placed: Collection[str]
) -> list[tuple[int, str, str]]:
    """What decides who comes first; nothing of it hangs on order or place of the files."""
    claims = []
    for one in pictures:
        age = 2 if one.sha256 not in before else 1 if one.sha256 not in placed else 0
        claims.append((age, one.sha256, one.path))
    return claims


@dataclass(frozen=True)
class _Graph:
    """Pictures, their links, and a node for each sitting (so a sitting hangs together whatever of it is left out)."""

    pictures: int
    adjacency: csr_array
    fixed: Mapping[int, tuple[Split, ...]]
    """Node → the splits that it must be in; a picture with two can be nowhere."""

    @classmethod
    def of(
        cls, pictures: Sequence[Usable], links: Links, before: Mapping[str, Split], sittings: Mapping[str, Split]
    ) -> _Graph:
        hubs: dict[str, int] = {}
        fixed: dict[int, tuple[Split, ...]] = {}
        members = []
        for index, one in enumerate(pictures):
            splits: list[Split] = ["train"] if one.combination else []
            splits += [before[one.sha256]] if one.sha256 in before else []
            if splits:
                fixed[index] = _ordered(splits)
            if one.condition is not None:
                hub = hubs.setdefault(_sitting_name(one), len(pictures) + len(hubs))
                members.append((index, hub))
        fixed |= {hub: (sittings[name],) for name, hub in hubs.items() if name in sittings}
        nodes = len(pictures) + len(hubs)
        edges_E2 = np.concatenate([links, np.asarray(members, np.int64).reshape(-1, 2)])
        both_ways_E2 = np.concatenate([edges_E2, edges_E2[:, ::-1]])
        ones = np.ones(len(both_ways_E2), np.int8)
        adjacency = coo_array((ones, (both_ways_E2[:, 0], both_ways_E2[:, 1])), shape=(nodes, nodes))
        return cls(len(pictures), adjacency.tocsr(), fixed)

    def components(self, out: Collection[int] = ()) -> list[list[int]]:
        """What hangs together without the nodes in ``out``."""
        alive = np.ones(self.adjacency.shape[0], np.bool_)
        alive[list(out)] = False
        nodes = np.flatnonzero(alive)
        names = connected_components(self.adjacency[nodes][:, nodes], directed=False)[1]
        members: dict[int, list[int]] = defaultdict(list)
        for node, name in zip(nodes.tolist(), names.tolist(), strict=True):
            members[name].append(node)
        return list(members.values())

    def splits_of(self, nodes: Collection[int]) -> tuple[Split, ...]:
        """The splits that some nodes must be in."""
        return _ordered(split for node in nodes for split in self.fixed.get(node, ()))

    def left_out(self, claims: Sequence[tuple[int, str, str]]) -> set[int]:
        """The pictures that would tie two splits together; those with the smaller claim take their places first."""
        out: set[int] = set()
        for members in self.components():
            if len(self.splits_of(members)) > 1:
                out |= self._without_a_place(members, claims)
        return out

    def _without_a_place(self, members: Sequence[int], claims: Sequence[tuple[int, str, str]]) -> set[int]:
        """Of one component. Sittings come first, then old pictures, those of the split that has more of them first.

        Where it is a tie, the test pictures come first.
        """
        count = Counter(split for node in members if node < self.pictures for split in self.fixed.get(node, ()))
        majority = sorted(count, key=lambda split: (-count[split], -SPLITS.index(split)))

        def turn(node: int) -> tuple[int, int, str, str]:
            if node >= self.pictures:
                return -1, node, "", ""
            age, sha256, path = claims[node]
            return age, min(map(majority.index, self.fixed.get(node, ())), default=0), sha256, path

        placed, out = DisjointSet(), set()
        split_of: dict[int, Split] = {}
        for node in sorted(members, key=turn):
            start, end = self.adjacency.indptr[node : node + 2]
            near = {placed[other] for other in self.adjacency.indices[start:end].tolist() if other in placed}
            splits = {split_of[root] for root in near if root in split_of} | {*self.fixed.get(node, ())}
            if len(splits) > 1:
                out.add(node)
                continue
            placed.add(node)
            for root in near:
                placed.merge(node, root)
            for split in splits:
                split_of[placed[node]] = split
        return out


def _ordered(splits: Iterable[Split]) -> tuple[Split, ...]:
    return tuple(sorted(set(splits), key=SPLITS.index))


def _sitting_name(one: Usable) -> str:
    assert one.condition is not None
    return ("combination:" if one.combination else "") + sitting_id(one.kcode, one.domain, one.condition)


def _group_id(members: Sequence[Usable]) -> str:
    """Hangs on the pictures, not on their order or place."""
    named = [_sitting_name(one) for one in members if one.condition is not None]
    if named:
        return min(named)
    first = min(members, key=lambda one: one.sha256)
    return f"{first.kcode}/{first.domain}/n{first.sha256[:16]}"
