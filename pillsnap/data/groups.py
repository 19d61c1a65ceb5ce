"""Which pictures belong together: capture groups, near-duplicates, and files that are there twice.

Where the file's name tells the conditions, a group is one sitting: everything but the rotation and the light (K-CODE,
domain, background, side, elevation). The lights belong to one sitting because the pill is not moved between them:
splitting by light put twins on both sides and raised the demo's top-1 from 83 to 90 %
(docs/decisions/0004-capture-groups.md). Where a name tells nothing, near-duplicates of one class and domain form the
groups: two pictures are linked when their dHash differs in at most 12 of 64 bits or their pHash in at most 6. On top,
copies (re-saved, made smaller) link whatever they are copies of. A group is what hangs together by links.

How the loose thresholds were chosen: on 820 phone photos of 6 pills that were shot in sittings of 12 to 23 turns (the
pill is small, the surface and the light fill the picture). dHash follows the light on the surface: at 12 it found the
four sittings of five of the six classes on a light surface exactly (it joined two in the sixth), at 10 it cut some of
them. On black cloth dHash is noise, and pHash, which follows place and size of the pill, links the neighbours. Both
err towards groups that are too large: that costs variety in the test split, where the other error would make its score
a fiction. For unrelated pictures (bits by chance) a link has a probability under one in a million.

The strict thresholds of a copy: re-saved at quality 60, at half and at 0.8 of the size, 105 copies of such photos
stayed within 3 bits of dHash, 2 of pHash and 0.2 grey levels (mean, at 16 × 16).

Knows digests, hashes and conditions; reads no file. Legend: N pictures, E links.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pillsnap.core.boxes import Box
from pillsnap.core.manifest import Split
from pillsnap.data.names import Condition, Domain

DHASH_BITS = 12
PHASH_BITS = 6
COPY_DHASH_BITS = 4
COPY_PHASH_BITS = 4
COPY_GREY_LEVELS = 1.0
"""Mean difference of the grey pictures of 16 × 16."""
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
    """Path → splits, of new pictures that would tie groups of several splits together. They are in no group."""


def drop_duplicates(pictures: Sequence[Usable]) -> tuple[list[Usable], dict[str, str]]:
    """Keep one of the files of a class with the same bytes.

    The one that is kept has known conditions if any has, then is a studio image (a copy among the real
    photos would flatter the score on them), then comes first by its path.

    Returns:
        What is kept, sorted by path; and path → path of the copy that is kept, of the others.
    """
    by_digest: dict[str, list[Usable]] = defaultdict(list)
    for picture in pictures:
        by_digest[picture.sha256].append(picture)
    kept, dropped = [], {}
    for copies in by_digest.values():
        first, *others = sorted(copies, key=lambda one: (one.condition is None, one.domain != "studio", one.path))
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
    plain = [None if one.condition is not None else one.domain for one in pictures]
    kind_N = np.asarray([{None: 0, "studio": 1, "real": 2}[domain] for domain in plain], np.int8)
    found = []
    for start in range(0, len(pictures), _BLOCK):
        rows = slice(start, start + _BLOCK)
        by_dhash = np.bitwise_count(dhash_N[rows, None] ^ dhash_N[None, :])
        by_phash = np.bitwise_count(phash_N[rows, None] ^ phash_N[None, :])
        loose = (by_dhash <= DHASH_BITS) | (by_phash <= PHASH_BITS)
        loose &= (kind_N[rows, None] == kind_N[None, :]) & (kind_N[rows, None] > 0)
        strict = np.argwhere((by_dhash <= COPY_DHASH_BITS) & (by_phash <= COPY_PHASH_BITS) & ~loose)
        difference = np.abs(thumb_NP[strict[:, 0] + start].astype(np.int16) - thumb_NP[strict[:, 1]])
        copies = strict[difference.mean(axis=1) <= COPY_GREY_LEVELS]
        offset = np.asarray([start, 0])
        found += [np.argwhere(loose) + offset, copies + offset]
    links_E2 = np.concatenate(found)
    return np.asarray(links_E2[links_E2[:, 0] < links_E2[:, 1]], np.int64)


def capture_groups(pictures: Sequence[Usable], links: Links, before: Mapping[str, Split] | None = None) -> Grouping:
    """Groups of the pictures of one class.

    Args:
        pictures: of one class.
        links: from `near_duplicate_links` of the same pictures.
        before: sha256 → split, of pictures that were split earlier. Their splits never change; a new picture that
            hangs together with pictures of two splits is left out.
    """
    before = before or {}
    edges = np.concatenate([links, _sitting_links(pictures)])
    kept = list(range(len(pictures)))
    bridges: dict[str, tuple[Split, ...]] = {}
    for new in _bridging(pictures, edges, before):
        bridges[pictures[new[0]].path] = new[1]
        kept.remove(new[0])
    groups: dict[str, str] = {}
    pinned: dict[str, Split] = {}
    for members in _components(kept, edges):
        for part in _by_split([pictures[index] for index in members], before):
            name = _group_id(part)
            groups.update({one.path: name for one in part})
            splits = {before[one.sha256] for one in part if one.sha256 in before}
            if splits:
                pinned[name] = splits.pop()
    return Grouping(groups, pinned, bridges)


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


def _sitting_links(pictures: Sequence[Usable]) -> Links:
    """Each picture with known conditions to the first one of its sitting; parts of one combination likewise."""
    first: dict[str, int] = {}
    found = []
    for index, picture in enumerate(pictures):
        if picture.condition is not None:
            key = f"{picture.combination}/{sitting_id(picture.kcode, picture.domain, picture.condition)}"
            found.append((first.setdefault(key, index), index))
    return np.asarray([pair for pair in found if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _components(kept: Sequence[int], edges: Links) -> list[list[int]]:
    """The positions in ``kept`` that hang together."""
    if not kept:
        return []
    total = kept[-1] + 1
    alive = np.zeros(max(total, int(edges.max(initial=0)) + 1), np.bool_)
    alive[list(kept)] = True
    used = edges[alive[edges].all(axis=1)]
    graph = coo_array((np.ones(len(used), np.int8), (used[:, 0], used[:, 1])), shape=(len(alive), len(alive)))
    names = connected_components(graph.tocsr(), directed=False)[1]
    members: dict[int, list[int]] = defaultdict(list)
    for index in kept:
        members[int(names[index])].append(index)
    return list(members.values())


def _bridging(
    pictures: Sequence[Usable], edges: Links, before: Mapping[str, Split]
) -> list[tuple[int, tuple[Split, ...]]]:
    """New pictures that hang together with earlier ones of several splits.

    First those that are linked to several splits themselves; where that does not part the splits, every new picture
    of what hangs together.
    """
    if not before:
        return []
    found: dict[int, tuple[Split, ...]] = {}
    for only_direct in (True, False):
        kept = [index for index in range(len(pictures)) if index not in found]
        neighbours = _neighbours(edges) if only_direct else {}
        for members in _components(kept, edges):
            splits = _splits_of([pictures[index] for index in members], before)
            if len(splits) < 2:
                continue
            for index in members:
                if pictures[index].sha256 in before:
                    continue
                touched = splits
                if only_direct:
                    touched = _splits_of([pictures[near] for near in neighbours[index] if near not in found], before)
                if len(touched) > 1:
                    found[index] = touched
    return sorted(found.items())


def _neighbours(edges: Links) -> Mapping[int, list[int]]:
    neighbours: dict[int, list[int]] = defaultdict(list)
    for one, two in edges.tolist():
        neighbours[one].append(two)
        neighbours[two].append(one)
    return neighbours


def _splits_of(pictures: Sequence[Usable], before: Mapping[str, Split]) -> tuple[Split, ...]:
    return tuple(sorted({before[one.sha256] for one in pictures if one.sha256 in before}))


def _by_split(members: list[Usable], before: Mapping[str, Split]) -> list[list[Usable]]:
    """One group, or one for each split that its earlier pictures have (they must stay where they are)."""
    splits = _splits_of(members, before)
    if len(splits) < 2:
        return [members]
    return [[one for one in members if before.get(one.sha256) == split] for split in splits]


def _group_id(members: Sequence[Usable]) -> str:
    """Hangs on the pictures, not on their order or place."""
    named = [
        ("combination:" if one.combination else "") + sitting_id(one.kcode, one.domain, one.condition)
        for one in members
        if one.condition is not None
    ]
    if named:
        return min(named)
    first = min(members, key=lambda one: one.sha256)
    return f"{first.kcode}/{first.domain}/n{first.sha256[:16]}"
