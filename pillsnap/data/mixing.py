"""The 3:7 rule: how many studio images join the real photos of a class, and which.

With R real photos and a share of 0.7 a class needs ``max(ceil(R / 0.7), 50)`` images in all; studio images
fill up to that. All real photos are always used. A class that stays short is reported. Pure: knows nothing
of files.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pillsnap.core.manifest import Split


@dataclass(frozen=True)
class ClassMix:
    """The mixture of one class, as it came out."""

    real: int
    studio_available: int
    studio_used: int
    wanted: int
    """Images that the class needs in all."""
    real_share: float
    """Real photos among the images used, 0..1."""
    shortfall: int
    """Images missing of ``wanted``."""
    reaches_ratio: bool
    """The share of real photos is the wanted one, to within one image."""

    @property
    def images(self) -> int:
        """Images used."""
        return self.real + self.studio_used

    @property
    def is_short(self) -> bool:
        """Too few images, or not the wanted share."""
        return self.shortfall > 0 or not self.reaches_ratio

    def as_dict(self) -> dict[str, Any]:
        """For the manifest's statistics."""
        return {**asdict(self), "real_share": round(self.real_share, 4)}


@dataclass(frozen=True)
class Candidate:
    """A studio image that may be chosen: a name of its own, its sitting and its stratum (side, background)."""

    key: str
    sitting: Hashable
    stratum: Hashable


def mix_class(real: int, studio_available: int, ratio: float = 0.7, minimum: int = 50) -> ClassMix:
    """Apply the rule to the numbers of one class.

    Rounding is upwards (240 real photos want 343 images, 103 of them studio), so the share of real photos
    is under ``ratio`` by less than one image.

    Raises:
        ValueError: a negative number, or a ratio outside of 0..1 (0 excluded).
    """
    if real < 0 or studio_available < 0 or minimum < 0 or not 0 < ratio <= 1:
        raise ValueError(f"real={real}, studio={studio_available}, ratio={ratio}, minimum={minimum}")
    wanted = max(math.ceil(real / ratio - 1e-9), minimum)
    used = min(studio_available, wanted - real)
    images = real + used
    return ClassMix(
        real=real,
        studio_available=studio_available,
        studio_used=used,
        wanted=wanted,
        real_share=real / images if images else 0.0,
        shortfall=wanted - images,
        reaches_ratio=images > 0 and abs(real - ratio * images) < 1,
    )


def share_out(count: int, available: Mapping[Split, int], shares: Mapping[Split, float]) -> dict[Split, int]:
    """Share ``count`` images out to the splits, by the shares and by what each has (largest remainder first)."""
    taken = {split: min(math.floor(count * share), available[split]) for split, share in shares.items()}
    while sum(taken.values()) < min(count, sum(available.values())):
        open_splits = [split for split in shares if taken[split] < available[split]]
        neediest = max(open_splits, key=lambda split: (count * shares[split] - taken[split], shares[split]))
        taken[neediest] += 1
    return taken


def missing_photos(mix: ClassMix, ratio: float = 0.7, minimum: int = 50) -> tuple[int, int]:
    """(real, studio) images that a class still needs to reach both the minimum and the ratio."""
    real = max(mix.real, math.ceil(ratio * minimum - 1e-9))
    studio = max(math.ceil(real / ratio - 1e-9), minimum) - real
    return real - mix.real, max(studio - mix.studio_available, 0)


def choose_balanced(candidates: Sequence[Candidate], count: int, seed: int) -> list[str]:
    """Choose ``count`` keys, spread over strata first and over the sittings within a stratum second.

    The choice hangs on the seed and the keys, not on the order of ``candidates``.
    """
    shuffled = sorted(candidates, key=lambda candidate: _order(seed, candidate.key))
    by_sitting = _round_robin(shuffled, [candidate.sitting for candidate in shuffled])
    by_stratum = _round_robin(by_sitting, [candidate.stratum for candidate in by_sitting])
    return sorted(candidate.key for candidate in by_stratum[:count])


def _round_robin(items: list[Candidate], pots: Iterable[Hashable]) -> list[Candidate]:
    """The first of each pot, then the second of each pot, and so on; stable."""
    counts: dict[Hashable, int] = defaultdict(int)
    ranks = []
    for pot in pots:
        ranks.append(counts[pot])
        counts[pot] += 1
    return [items[index] for index in sorted(range(len(items)), key=ranks.__getitem__)]


def _order(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()
