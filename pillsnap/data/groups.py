"""Which pictures belong together: capture groups, near-duplicates, and files that are there twice.

Where the file's name tells the conditions, a group is one sitting: everything but the rotation. Where it
does not, near-duplicates of one class and domain form the groups: two pictures are linked when their dHash
differs in at most 12 of 64 bits or their pHash in at most 6, and a group is what hangs together by links.

How the two thresholds were chosen: on 820 phone photos of 6 pills that were shot in sittings of 12 to 23
turns (the pill is small, the surface and the light fill the picture). dHash follows the light on the
surface: at 12 it found the four sittings of five of the six classes on a light surface exactly (it joined
two in the sixth), at 10 it cut some of them. On black cloth dHash is noise, and pHash, which follows place
and size of the pill, links the neighbours. Both err towards groups that are too large: that costs variety
in the test split, where the other error would make its score a fiction. For unrelated pictures (bits by
chance) a link has a probability under one in a million.

Knows digests, hashes and conditions; reads no file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from pillsnap.core.errors import DataError
from pillsnap.data.names import Condition, Domain

DHASH_BITS = 12
PHASH_BITS = 6
_LISTED = 10


@dataclass(frozen=True)
class Usable:
    """A picture that decodes."""

    path: str
    kcode: str
    domain: Domain
    condition: Condition | None
    sha256: str
    dhash: str = ""
    phash: str = ""


def drop_duplicates(pictures: Sequence[Usable]) -> tuple[list[Usable], dict[str, str]]:
    """Keep one of the files with the same bytes.

    The one that is kept has known conditions if any has, then is a studio image (a copy among the real
    photos would flatter the score on them), then comes first by its path.

    Returns:
        What is kept, sorted by path; and path → path of the copy that is kept, of the others.

    Raises:
        DataError: the same bytes under two classes; lists them.
    """
    by_digest: dict[str, list[Usable]] = defaultdict(list)
    for picture in pictures:
        by_digest[picture.sha256].append(picture)
    _check_labels(by_digest)
    kept, dropped = [], {}
    for copies in by_digest.values():
        first, *others = sorted(copies, key=lambda one: (one.condition is None, one.domain != "studio", one.path))
        kept.append(first)
        dropped.update({other.path: first.path for other in others})
    return sorted(kept, key=lambda picture: picture.path), dict(sorted(dropped.items()))


def capture_groups(pictures: Sequence[Usable]) -> dict[str, str]:
    """Group id per path. The ids hang on the pictures, not on their order or place."""
    groups: dict[str, str] = {}
    unknown: dict[tuple[str, Domain], list[Usable]] = defaultdict(list)
    for picture in pictures:
        if picture.condition is None:
            unknown[picture.kcode, picture.domain].append(picture)
        else:
            groups[picture.path] = sitting_id(picture.kcode, picture.domain, picture.condition)
    for (kcode, domain), members in unknown.items():
        components = near_duplicate_components([one.dhash for one in members], [one.phash for one in members])
        names: dict[int, str] = {}
        for component, picture in sorted(zip(components.tolist(), members, strict=True), key=lambda p: p[1].sha256):
            name = names.setdefault(component, f"{kcode}/{domain}/n{picture.sha256[:16]}")
            groups[picture.path] = name
    return groups


def sitting_id(kcode: str, domain: Domain, condition: Condition) -> str:
    """Everything but the rotation."""
    c = condition
    return f"{kcode}/{domain}/b{c.background}-l{c.light}-s{c.side}-e{c.elevation}"


def near_duplicate_components(dhashes: Sequence[str], phashes: Sequence[str]) -> NDArray[np.int64]:
    """``component_N``: pictures with the same number hang together by links of near-duplicates."""
    if not dhashes:
        return np.zeros(0, np.int64)
    linked = (_distances(dhashes) <= DHASH_BITS) | (_distances(phashes) <= PHASH_BITS)
    return np.asarray(connected_components(csr_array(linked), directed=False)[1], np.int64)


def _distances(hashes: Sequence[str]) -> NDArray[np.uint8]:
    """Hamming distance of each pair, ``distance_NN``."""
    bits_N = np.asarray([int(text, 16) for text in hashes], np.uint64)
    return np.asarray(np.bitwise_count(bits_N[:, np.newaxis] ^ bits_N[np.newaxis, :]), np.uint8)


def _check_labels(by_digest: dict[str, list[Usable]]) -> None:
    wrong = [copies for copies in by_digest.values() if len({picture.kcode for picture in copies}) > 1]
    if not wrong:
        return
    listed = "; ".join(" = ".join(sorted(picture.path for picture in copies)) for copies in wrong[:_LISTED])
    more = f"; and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
    raise DataError(
        f"the same picture lies under two drugs, so one label is wrong: {listed}{more}; remove the wrong ones"
    )
