"""Pictures that were never drawn: readings with the hashes that a test wants, for the pure part of the data room."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from pillsnap.core.boxes import Box
from pillsnap.core.image_quality import Figures
from pillsnap.data.groups import Usable
from pillsnap.data.names import Domain, parse_condition
from pillsnap.data.reading import Reading
from pillsnap.data.sources import Picture

KCODE = "K-000059"
FIGURES = Figures(darkest=0, brightest=255, mean=128, sharpness=100, shape=1)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def hashes(scene: str, flips: int = 0) -> tuple[str, str, bytes]:
    """dHash, pHash and thumbnail of a scene, with so many bits of both hashes turned."""
    rng = random.Random(scene)
    dhash, phash, thumb = rng.getrandbits(64), rng.getrandbits(64), rng.randbytes(256)
    turned = sum(1 << bit for bit in random.Random(f"{scene} {flips}").sample(range(64), flips))
    return f"{dhash ^ turned:016x}", f"{phash ^ turned:016x}", thumb


def found(
    name: str,
    key: str | None = None,
    scene: str | None = None,
    *,
    kcode: str = KCODE,
    domain: Domain = "real",
    combination: bool = False,
    flips: int = 0,
    fault: str = "",
) -> tuple[Picture, Reading]:
    """A picture and its reading. ``key`` stands for its bytes, ``scene`` for what it shows (both: its name)."""
    key = key or name
    path = f"{'studio' if domain == 'studio' else 'real_photos'}/{kcode}/{name}"
    condition = parse_condition(name, domain)
    dhash, phash, thumb = hashes(scene or key, flips)
    picture = Picture(path, Path(path), kcode, domain, condition, combination)
    if fault:
        return picture, Reading(path, digest(key), fault_code=fault, fault="is broken")
    box = Box(1, 2, 30, 40) if combination else None
    return picture, Reading(path, digest(key), 100, 100, dhash, phash, thumb, FIGURES, box)


def usable(
    name: str,
    key: str | None = None,
    scene: str | None = None,
    *,
    kcode: str = KCODE,
    domain: Domain = "real",
    combination: bool = False,
    flips: int = 0,
) -> Usable:
    """The same after the audit."""
    picture, reading = found(name, key, scene, kcode=kcode, domain=domain, combination=combination, flips=flips)
    return Usable(
        picture.path, kcode, domain, picture.condition, reading.sha256, reading.dhash, reading.phash, reading.thumb,
        combination, reading.box,
    )  # fmt: skip


def real(background: int, side: int = 0, light: int = 0, rotation: int = 0, kcode: str = KCODE) -> str:
    """A name of the capture protocol."""
    return f"{kcode}_{background}_{light}_{side}_0_90_{rotation:03d}_200.jpg"


def studio(background: int, side: int = 0, light: int = 0, rotation: int = 0, kcode: str = KCODE) -> str:
    """A name of AI Hub's."""
    return f"{kcode}_0_{background}_{side}_{light}_90_{rotation:03d}_200.png"
