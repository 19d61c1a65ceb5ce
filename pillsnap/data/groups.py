"""Which pictures are too alike to be apart: near-duplicates, and files that are there twice.

Where the file's name tells the conditions, a group is one sitting: everything but the rotation and the light (K-CODE,
domain, background, side, elevation). The lights belong to one sitting because the pill is not moved between them:
splitting by light put twins on both sides and raised the demo's top-1 from 83 to 90 %
(docs/decisions/0004-capture-groups.md). Where a name tells nothing, near-duplicates of one class and domain form the
groups (`pillsnap.data.capture_groups`): two pictures are linked when their dHash differs in at most 12 of 64 bits or
their pHash in at most 6. Where both kinds of names meet, a picture without conditions joins the sitting of the named
one that it is nearest to, within the same bits. On top, copies (re-saved, made smaller, turned, mirrored) link whatever
they are copies of.

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

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.boxes import Box
from pillsnap.core.manifest import Split
from pillsnap.data.names import Condition, Domain
from pillsnap.data.toned import toned_difference
from pillsnap.data.turned import in_pieces, turned_copy_links

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
        offset = np.asarray([start, 0])
        found += [np.argwhere(loose) + offset, *(_copies(thumb_NP, pairs) for pairs in in_pieces(strict + offset))]
    links_E2 = np.sort(np.concatenate(found), axis=1)
    return np.asarray(np.unique(links_E2[links_E2[:, 0] < links_E2[:, 1]], axis=0), np.int64)


def _copies(thumb_NP: NDArray[np.uint8], pairs_E2: Links) -> Links:
    """Those of the pairs whose grey pictures are the same, as they are or behind a tone curve."""
    one_EP, two_EP = thumb_NP[pairs_E2[:, 0]], thumb_NP[pairs_E2[:, 1]]
    same_E = np.abs(one_EP.astype(np.int16) - two_EP).mean(axis=1) <= COPY_GREY_LEVELS
    copies_E2: Links = pairs_E2[same_E | (toned_difference(one_EP, two_EP) <= TONED_GREY_LEVELS)]
    return copies_E2


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
