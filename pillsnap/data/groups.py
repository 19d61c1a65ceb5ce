"""Which pictures belong together: capture groups, near-duplicates, and files that are there twice.

Where the file's name tells the conditions, a group is one sitting: everything but the rotation and the light (K-CODE,
domain, background, side, elevation). The lights belong to one sitting because the pill is not moved between them:
splitting by light put twins on both sides and raised the demo's top-1 from 83 to 90 %
(docs/decisions/0004-capture-groups.md). Where a name tells nothing, near-duplicates of one class and domain form the
groups: two pictures are linked when their dHash differs in at most 12 of 64 bits or their pHash in at most 6. Where
both kinds of names meet, a picture without conditions joins the sitting of the named one that it is nearest to, within
the same bits. On top, copies (re-saved, made smaller, turned, mirrored) link whatever they are copies of. A group is
what hangs together by links; parts of a data set that was split before keep their split, and what would tie two splits
together is left out.

How the loose thresholds were chosen: on 820 phone photos of 6 pills that were shot in sittings of 12 to 23 turns (the
pill is small, the surface and the light fill the picture). dHash follows the light on the surface: at 12 it found the
four sittings of five of the six classes on a light surface exactly (it joined two in the sixth), at 10 it cut some of
them. On black cloth dHash is noise, and pHash, which follows place and size of the pill, links the neighbours. Both
err towards groups that are too large: that costs variety in the test split, where the other error would make its score
a fiction. For unrelated pictures (bits by chance) a link has a probability under one in a million.

The strict thresholds of a copy: re-saved at quality 60, at half and at 0.8 of the size, 105 copies of such photos
stayed within 3 bits of dHash, 2 of pHash and 0.2 grey levels (mean, at 16 × 16).

Knows digests, hashes and conditions; reads no file. Legend: N pictures, M named pictures, E links.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pillsnap.core.boxes import Box
from pillsnap.core.manifest import SPLITS, Split
from pillsnap.data.names import Condition, Domain
from pillsnap.data.toned import toned_difference
from pillsnap.data.turned import turned_copy_links

DHASH_BITS = 12
PHASH_BITS = 6
COPY_DHASH_BITS = 4
COPY_PHASH_BITS = 4
COPY_GREY_LEVELS = 1.0
"""Mean difference of the grey pictures of 16 × 16."""
TONED_GREY_LEVELS = 0.7
"""The same, after a tone curve is fitted (`pillsnap.data.toned`): a curve may come to fit what is no copy."""
_BLOCK = 1024
"""Rows of the table of distances that are in memory at once."""
Links = NDArray[np.int64]
"""``link_E2``: pairs of positions."""


@dataclass(frozen=True, slots=True)
class Usable:
    """A picture that decodes and that the audit let pass."""

    path: str
    kcode: str
    domain: Domain
    condition: Condition | None
    sha256: str
    dhash: str
    phash: str
    thumb: bytes
    combination: bool = False
    box: Box | None = None


@dataclass(frozen=True)
class Grouping:
    """Groups of one class."""

    groups: dict[str, str]
    """Path → group id."""
    pinned: dict[str, Split]
    """Group id → the split that pictures of it had before."""
    bridges: dict[str, tuple[Split, ...]] = field(default_factory=dict)
    """Path → splits, of pictures that would tie groups of several splits together. They are in no group."""


def drop_duplicates(pictures: Sequence[Usable]) -> tuple[list[Usable], dict[str, str]]:
    """Keep one of the files of a class with the same bytes.

    The one that is kept has known conditions if any has, then shows this drug alone, then is a studio image (a copy
    among the real photos would flatter the score on them), then comes first by its path.

    Returns:
        What is kept, sorted by path; and path → path of the copy that is kept, of the others.
    """
    by_digest: dict[str, list[Usable]] = defaultdict(list)
    for picture in pictures:
        by_digest[picture.sha256].append(picture)
    kept, dropped = [], {}
    for copies in by_digest.values():
        first, *others = sorted(copies, key=_preference)
        kept.append(first)
        dropped.update({other.path: first.path for other in others})
    return sorted(kept, key=lambda picture: picture.path), dict(sorted(dropped.items()))


def near_duplicate_links(pictures: Sequence[Usable]) -> Links:
    """Links of pictures of one class that are too alike to be in two splits, whatever their names say."""
    if len(pictures) < 2:
        return np.zeros((0, 2), np.int64)
    dhash_N = np.asarray([int(one.dhash, 16) for one in pictures], np.uint64)
    phash_N = np.asarray([int(one.phash, 16) for one in pictures], np.uint64)
    thumb_NP = np.frombuffer(b"".join(one.thumb for one in pictures), np.uint8).reshape(len(pictures), -1)
    domain_N = np.asarray([one.domain == "real" for one in pictures])
    named_N = np.asarray([one.condition is not None for one in pictures])
    found = [turned_copy_links(thumb_NP, COPY_GREY_LEVELS)]
    for start in range(0, len(pictures), _BLOCK):
        rows = slice(start, start + _BLOCK)
        by_dhash = np.bitwise_count(dhash_N[rows, None] ^ dhash_N[None, :])
        by_phash = np.bitwise_count(phash_N[rows, None] ^ phash_N[None, :])
        alike = ((by_dhash <= DHASH_BITS) | (by_phash <= PHASH_BITS)) & (domain_N[rows, None] == domain_N[None, :])
        alike &= ~named_N[rows, None]
        loose = (alike & ~named_N[None, :]) | _nearest(by_dhash + by_phash, alike & named_N[None, :])
        strict = np.argwhere((by_dhash <= COPY_DHASH_BITS) & (by_phash <= COPY_PHASH_BITS) & ~loose)
        one_EP, two_EP = thumb_NP[strict[:, 0] + start], thumb_NP[strict[:, 1]]
        same_E = np.abs(one_EP.astype(np.int16) - two_EP).mean(axis=1) <= COPY_GREY_LEVELS
        copies = strict[same_E | (toned_difference(one_EP, two_EP) <= TONED_GREY_LEVELS)]
        offset = np.asarray([start, 0])
        found += [np.argwhere(loose) + offset, copies + offset]
    links_E2 = np.sort(np.concatenate(found), axis=1)
    return np.asarray(np.unique(links_E2[links_E2[:, 0] < links_E2[:, 1]], axis=0), np.int64)


def capture_groups(
    pictures: Sequence[Usable],
    links: Links,
    before: Mapping[str, Split] | None = None,
    sittings: Mapping[str, Split] | None = None,
) -> Grouping:
    """Groups of the pictures of one class.

    No picture that was split before changes its split, and no group has pictures of two splits. So a new picture that
    hangs together with several splits is left out; and where earlier pictures turn out to hang together (a file was
    renamed or moved to its right class), those of the split that has fewer of them are.

    Args:
        pictures: of one class. Those of several pills only ever train.
        links: from `near_duplicate_links` of the same pictures.
        before: sha256 → split, of pictures that were split earlier.
        sittings: group id → split, of sittings that were split earlier, whether their pictures are still there or not.
    """
    graph = _Graph.of(pictures, links, before or {}, sittings or {})
    left_out = graph.part_splits()
    groups: dict[str, str] = {}
    pinned: dict[str, Split] = {}
    for members in graph.components(range(graph.nodes)):
        together = [pictures[index] for index in members if index < len(pictures)]
        if not together:
            continue
        name = _group_id(together)
        groups.update({one.path: name for one in together})
        splits = graph.splits_of(members)
        if splits:
            pinned[name] = splits[0]
    return Grouping(groups, pinned, {pictures[index].path: splits for index, splits in sorted(left_out.items())})


def sitting_id(kcode: str, domain: Domain, condition: Condition) -> str:
    """Everything but the rotation and the light."""
    return f"{kcode}/{domain}/b{condition.background}-s{condition.side}-e{condition.elevation}"


def straddling(pictures: Sequence[Usable], links: Links, splits: Mapping[str, Split]) -> list[tuple[str, str]]:
    """Pairs of paths that are near-duplicates and lie in two splits."""
    pairs = []
    for first, second in links.tolist():
        one, two = pictures[first].path, pictures[second].path
        if one in splits and two in splits and splits[one] != splits[two]:
            pairs.append((one, two))
    return pairs


def _preference(one: Usable) -> tuple[bool, bool, bool, str]:
    """Of several copies the smallest is kept."""
    return one.condition is None, one.combination, one.domain != "studio", one.path


def _nearest(bits_NM: NDArray[np.uint8], allowed_NM: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """In each row those of the allowed that are nearest (all, where several are equally near)."""
    masked = np.where(allowed_NM, bits_NM, np.uint8(255))
    return np.asarray(allowed_NM & (masked == masked.min(axis=1, keepdims=True)), np.bool_)


@dataclass
class _Graph:
    """Pictures, their links, and a node for each sitting (so a sitting hangs together whatever of it is left out)."""

    pictures: int
    nodes: int
    edges_E2: Links
    old: set[int]
    """Nodes that were split before."""
    fixed: dict[int, Split]
    """Node → the split that it must be in."""
    out: dict[int, tuple[Split, ...]] = field(default_factory=dict)
    """Nodes that are taken out, with the splits that they would tie together."""

    @classmethod
    def of(
        cls, pictures: Sequence[Usable], links: Links, before: Mapping[str, Split], sittings: Mapping[str, Split]
    ) -> _Graph:
        hubs: dict[str, int] = {}
        edges = []
        for index, one in enumerate(pictures):
            if one.condition is not None:
                edges.append((index, hubs.setdefault(_sitting_name(one), len(pictures) + len(hubs))))
        edges_E2 = np.concatenate([links, np.asarray(edges, np.int64).reshape(-1, 2)])
        fixed: dict[int, Split] = {index: "train" for index, one in enumerate(pictures) if one.combination}
        fixed |= {hub: sittings[name] for name, hub in hubs.items() if name in sittings}
        earlier = {index: before[one.sha256] for index, one in enumerate(pictures) if one.sha256 in before}
        graph = cls(len(pictures), len(pictures) + len(hubs), edges_E2, {*earlier, *hubs.values()}, fixed | earlier)
        for index, split in earlier.items():
            if pictures[index].combination and split != "train":
                graph.out[index] = _ordered([split, "train"])
        return graph

    def part_splits(self) -> dict[int, tuple[Split, ...]]:
        """Take out pictures until nothing ties two splits together. Returns them with these splits."""
        for members in self._mixed(self.old):
            self._keep_larger_side(members)
        everything = range(self.nodes)
        neighbours = self._neighbours() if self._mixed(everything) else {}
        for members in self._mixed(everything):
            touched = {index: self._touched(index, neighbours) for index in members if index not in self.old}
            self.out.update({index: splits for index, splits in touched.items() if len(splits) > 1})
        for members in self._mixed(everything):
            self.out.update({index: self.splits_of(members) for index in members if index not in self.old})
        return self.out

    def components(self, nodes: Iterable[int]) -> list[list[int]]:
        """What hangs together of ``nodes``, without what is taken out."""
        alive = np.zeros(self.nodes, np.bool_)
        alive[[node for node in nodes if node not in self.out]] = True
        used = self.edges_E2[alive[self.edges_E2].all(axis=1)]
        graph = coo_array((np.ones(len(used), np.int8), (used[:, 0], used[:, 1])), shape=(self.nodes, self.nodes))
        names = connected_components(graph.tocsr(), directed=False)[1]
        members: dict[int, list[int]] = defaultdict(list)
        for node in np.flatnonzero(alive).tolist():
            members[int(names[node])].append(node)
        return list(members.values())

    def splits_of(self, nodes: Iterable[int]) -> tuple[Split, ...]:
        """The splits that some nodes must be in."""
        return _ordered(self.fixed[node] for node in nodes if node in self.fixed)

    def _mixed(self, nodes: Iterable[int]) -> list[list[int]]:
        if len(set(self.fixed.values())) < 2:
            return []
        return [members for members in self.components(nodes) if len(self.splits_of(members)) > 1]

    def _keep_larger_side(self, members: Sequence[int]) -> None:
        """Of earlier pictures that hang together those of one split stay: where it is a tie, the test pictures."""
        splits = self.splits_of(members)
        count = Counter(self.fixed[node] for node in members if node in self.fixed and node < self.pictures)
        kept = max(splits, key=lambda split: (count[split], SPLITS.index(split)))
        for node in members:
            if self.fixed.get(node, kept) != kept:
                if node < self.pictures:
                    self.out[node] = splits
                else:
                    del self.fixed[node]

    def _neighbours(self) -> Mapping[int, set[int]]:
        neighbours: dict[int, set[int]] = defaultdict(set)
        for one, two in self.edges_E2.tolist():
            neighbours[one].add(two)
            neighbours[two].add(one)
        return neighbours

    def _touched(self, index: int, neighbours: Mapping[int, set[int]]) -> tuple[Split, ...]:
        """The splits of a picture, of what it is linked to, and of its sitting."""
        near = {index}.union(neighbours.get(index, ()))
        near = near.union(*(neighbours[node] for node in near if node >= self.pictures))
        return self.splits_of(near.difference(self.out))


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
