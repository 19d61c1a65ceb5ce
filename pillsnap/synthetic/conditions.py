"""Under which condition one picture is taken, and the file name that says so."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

STUDIO_ELEVATIONS_DEG = (60, 70, 75, 90)
STUDIO_ROTATIONS_DEG = tuple(range(0, 360, 20))
REAL_ROTATIONS_DEG = tuple(range(0, 360, 45))
BACKGROUNDS = ("palm", "wood", "white", "black", "checked")
SIDES = 2
LIGHTS = 3
STUDIO_BACKGROUNDS = 3
REAL_GRID = len(BACKGROUNDS) * LIGHTS * SIDES * len(REAL_ROTATIONS_DEG)
STUDIO_GRID = STUDIO_BACKGROUNDS * SIDES * LIGHTS * len(STUDIO_ELEVATIONS_DEG) * len(STUDIO_ROTATIONS_DEG)
_STUDIO_DOMAIN, _REAL_DOMAIN, _CHOICE = 11, 12, 13


@dataclass(frozen=True, order=True)
class StudioCondition:
    """One of the 1,296 studio pictures of a pill; angles in degrees."""

    background: int
    side: int
    light: int
    elevation_deg: int
    rotation_deg: int

    def file_name(self, kcode: str) -> str:
        """For example ``K-000573_0_2_0_1_90_300_200.png``."""
        return (
            f"{kcode}_0_{self.background}_{self.side}_{self.light}_{self.elevation_deg}_{self.rotation_deg:03d}_200.png"
        )

    def key(self) -> tuple[int, ...]:
        """The integers that seed this picture's random numbers."""
        return (_STUDIO_DOMAIN, self.background, self.side, self.light, self.elevation_deg, self.rotation_deg)


@dataclass(frozen=True, order=True)
class RealCondition:
    """One of the 240 real photos of a pill; the angle in degrees."""

    background: int
    light: int
    side: int
    rotation_deg: int

    def file_name(self, kcode: str) -> str:
        """For example ``K-030864_0_1_0_0_90_045_200.jpg``."""
        return f"{kcode}_{self.background}_{self.light}_{self.side}_0_90_{self.rotation_deg:03d}_200.jpg"

    def sitting_key(self) -> tuple[int, ...]:
        """The integers that seed what all photos of one sitting share."""
        return (_REAL_DOMAIN, self.background, self.light, self.side)

    def key(self) -> tuple[int, ...]:
        """The integers that seed what this photo alone has."""
        return (*self.sitting_key(), self.rotation_deg)


def stable_rng(seed: int, drug: int, key: tuple[int, ...]) -> np.random.Generator:
    """A generator that depends on these integers and nothing else."""
    return np.random.default_rng([seed, drug, *key])


def choose_studio(seed: int, drug: int, count: int) -> tuple[StudioCondition, ...]:
    """Draws conditions from the grid without replacement, half of them front (the odd one too), half back."""
    rng = stable_rng(seed, drug, (_CHOICE, 0))
    chosen: list[StudioCondition] = []
    for side in range(SIDES):
        grid = [
            StudioCondition(background, side, light, elevation, rotation)
            for background, light, elevation, rotation in product(
                range(STUDIO_BACKGROUNDS), range(LIGHTS), STUDIO_ELEVATIONS_DEG, STUDIO_ROTATIONS_DEG
            )
        ]
        share = (count + 1) // 2 if side == 0 else count // 2
        chosen += [grid[i] for i in rng.choice(len(grid), size=share, replace=False)]
    return tuple(sorted(chosen))


def choose_real(seed: int, drug: int, count: int) -> tuple[RealCondition, ...]:
    """Draws photos without repeats, evenly over a drug's 30 sittings (the odd ones at random)."""
    rng = stable_rng(seed, drug, (_CHOICE, 1))
    sittings = list(product(range(len(BACKGROUNDS)), range(LIGHTS), range(SIDES)))
    each, more = divmod(count, len(sittings))
    with_one_more = set(rng.permutation(len(sittings))[:more].tolist())
    chosen = []
    for number, sitting in enumerate(sittings):
        rotations = rng.permutation(len(REAL_ROTATIONS_DEG))[: each + (number in with_one_more)]
        chosen += [RealCondition(*sitting, REAL_ROTATIONS_DEG[i]) for i in rotations]
    return tuple(sorted(chosen))
