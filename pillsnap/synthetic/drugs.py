"""Invented drugs: what each pill looks like, and the list of them in the "top 100" format.

Nothing here is a real product: the K-CODEs (``K-99....``), insurance codes, drug names and makers are made up, and
lie outside the ranges in use. Several groups of drugs share shape and colour on purpose and differ by the imprint
only; every other drug has its own shape and colour as far as those last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pillsnap.core.errors import ConfigError
from pillsnap.synthetic.imprints import LOOKS_LIKE, Imprints
from pillsnap.synthetic.vocabulary import (
    CAPSULE_PAIRS,
    COLOR_KO,
    DOSES,
    LOOK_ALIKES,
    MAKERS,
    PALETTE_RGB,
    SHAPE_KO,
    SHAPE_WEIGHTS,
    SIZES,
    STEM_HEADS,
    STEM_TAILS,
    Shape,
)

MIN_DRUGS, MAX_DRUGS = 2, 200
DOCUMENT_VERSION = "synthetic-1.0"
CREATED_DATE = "2026-11-01"
_BLOCK_SIZES = (12, 13)
_GROUP_SIZES = (4, 4)


@dataclass(frozen=True)
class SideMark:
    """What one side of a pill carries.

    Attributes:
        text: Characters and logos, never empty.
        ink: Name of the ink it is printed with, or none where it is pressed into the surface.
        split: The text is parted in the middle: by a score line on a tablet, by the joint on a capsule.
    """

    text: str
    ink: str | None
    split: bool


@dataclass(frozen=True)
class PillDesign:
    """One invented drug: its papers and its looks. Sizes are in millimetres."""

    index: int
    kcode: str
    edi_code: str
    drug_name: str
    manufacturer: str
    shape: Shape
    colors: tuple[str, ...]
    long_mm: float
    short_mm: float
    thick_mm: float
    glossy: bool
    speckled: bool
    front: SideMark
    back: SideMark
    look_alike_group: str | None

    def mark(self, side: int) -> SideMark:
        """The mark of side 0 (front) or 1 (back)."""
        return self.back if side else self.front


def _text_length(shape: Shape, rng: np.random.Generator) -> int:
    if shape in (Shape.TRIANGLE, Shape.RHOMBUS):
        return 2
    if shape is Shape.CAPSULE:
        return 4
    if shape is Shape.OBLONG:
        return 3 if rng.random() < 0.6 else 4
    return 2 if rng.random() < 0.6 else 3


def _marks(shape: Shape, imprints: Imprints, rng: np.random.Generator, ink: str | None) -> tuple[SideMark, SideMark]:
    """Front and back. Capsules print a code on either half; some tablets have a score line on the back."""
    if shape is Shape.CAPSULE:
        front = imprints.take(4, False)
        back = imprints.take(4, False, frozenset(front.translate(LOOKS_LIKE)[:2]))
        return SideMark(front, ink, True), SideMark(back, ink, True)
    front = imprints.take(_text_length(shape, rng), False)
    scored = shape in (Shape.ROUND, Shape.OVAL, Shape.OBLONG, Shape.BEVELLED) and rng.random() < 0.35
    length = 2 if scored else min(_text_length(shape, rng), 3) - (rng.random() < 0.25)
    back = imprints.take(length, not scored, frozenset(front.translate(LOOKS_LIKE)))
    return SideMark(front, ink, False), SideMark(back, ink, scored and len(back) >= 2)


def _singles(rng: np.random.Generator) -> Iterator[tuple[Shape, tuple[str, ...]]]:
    """Shape and colour pairs that no look-alike group has, in weighted random order, again and again."""
    pairs: list[tuple[Shape, tuple[str, ...]]] = [
        (shape, (color,)) for shape in Shape for color in PALETTE_RGB if shape is not Shape.CAPSULE
    ]
    pairs += [(Shape.CAPSULE, colors) for colors in CAPSULE_PAIRS]
    pairs = [pair for pair in pairs if pair not in LOOK_ALIKES]
    weights = np.array([SHAPE_WEIGHTS[shape] for shape, _ in pairs])
    while True:
        # Efraimidis-Spirakis: sorting by u ** (1 / w) samples without replacement with weights w.
        order = np.argsort(-(rng.random(len(pairs)) ** (1.0 / weights)))
        yield from (pairs[i] for i in order)


def _slots() -> Iterator[int | None]:
    """For each drug in turn: the number of its look-alike group, or none."""
    for group in range(len(LOOK_ALIKES)):
        size = _GROUP_SIZES[group % 2]
        yield from [group] * size
        yield from [None] * (_BLOCK_SIZES[group % 2] - size)


def _size_mm(shape: Shape, rng: np.random.Generator) -> tuple[float, float, float]:
    low, high, aspect, thickness = SIZES[shape]
    long_mm = round(float(rng.uniform(low, high)), 1)
    short_mm = round(long_mm * aspect, 1)
    return long_mm, short_mm, round(short_mm * thickness, 1)


def _ink(colors: tuple[str, ...], rng: np.random.Generator) -> str:
    """An ink that can be read on each of the colours."""
    brightness = [sum(PALETTE_RGB[name]) for name in colors]
    choice = ("dark", "dark", "blue", "red")[int(rng.integers(4))]
    if max(brightness) < 420:
        return "light"
    if min(brightness) < 420 or (choice == "red" and set(colors) & {"pink", "orange", "purple"}):
        return "dark"
    return choice


def _papers(index: int, shape: Shape) -> dict[str, str]:
    stem = STEM_HEADS[index % 20] + STEM_TAILS[(index // 20 + index) % 10]
    dose = DOSES[(index * 7) % len(DOSES)]
    ending = "캡슐" if shape is Shape.CAPSULE else "정"
    return {
        "kcode": f"K-{990011 + 37 * index:06d}",
        "edi_code": f"{990000100 + 90 * index}",
        "drug_name": f"{stem}{ending} {dose}밀리그램",
        "manufacturer": MAKERS[(index * 3) % len(MAKERS)],
    }


def design_drugs(count: int = 100, seed: int = 0) -> tuple[PillDesign, ...]:
    """Invents drugs; a smaller count gives the first drugs of a larger one.

    The K-CODEs start with ``K-99`` and are invented, like everything else here.

    Args:
        count: 2 to 200 drugs; the first two are look-alikes.
        seed: Any non-negative integer.

    Raises:
        ConfigError: The count or the seed is out of range.
    """
    if not MIN_DRUGS <= count <= MAX_DRUGS:
        raise ConfigError(f"drugs must be {MIN_DRUGS} to {MAX_DRUGS}, got {count}")
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")
    rng = np.random.default_rng([seed, 101])
    imprints, singles = Imprints(rng), _singles(rng)
    models: dict[int, PillDesign] = {}
    designs: list[PillDesign] = []
    for index, group in zip(range(count), _slots(), strict=False):
        design = _invent(index, group, models, imprints, singles, rng)
        designs.append(design)
    sizes = Counter(design.look_alike_group for design in designs)
    return tuple(d if sizes[d.look_alike_group] > 1 else replace(d, look_alike_group=None) for d in designs)


def _invent(
    index: int,
    group: int | None,
    models: dict[int, PillDesign],
    imprints: Imprints,
    singles: Iterator[tuple[Shape, tuple[str, ...]]],
    rng: np.random.Generator,
) -> PillDesign:
    """One drug; the later members of a look-alike group copy the looks of the first, all but the imprint."""
    shape, colors = next(singles) if group is None else LOOK_ALIKES[group]
    model = None if group is None else models.get(group)
    long_mm, short_mm, thick_mm = _size_mm(shape, rng)
    glossy = shape is Shape.CAPSULE or bool(rng.random() < 0.45)
    printed = shape is Shape.CAPSULE or (glossy and bool(rng.random() < 0.45))
    ink = _ink(colors, rng) if printed else None
    speckled = not glossy and bool(rng.random() < 0.3)
    if model is not None:
        long_mm, short_mm, thick_mm = model.long_mm, model.short_mm, model.thick_mm
        glossy, ink, speckled = model.glossy, model.front.ink, model.speckled
    front, back = _marks(shape, imprints, rng, ink)
    design = PillDesign(
        index=index,
        **_papers(index, shape),
        shape=shape,
        colors=colors,
        long_mm=long_mm,
        short_mm=short_mm,
        thick_mm=thick_mm,
        glossy=glossy,
        speckled=speckled,
        front=front,
        back=back,
        look_alike_group=None if group is None else f"LA-{group + 1:02d}",
    )
    if group is not None:
        models.setdefault(group, design)
    return design


def _form(design: PillDesign) -> str:
    if design.shape is Shape.CAPSULE:
        return "경질캡슐제"
    return "필름코팅정" if design.glossy else "나정"


def _marking(mark: SideMark, capsule: bool) -> str:
    if not mark.split:
        return mark.text
    half = (len(mark.text) + 1) // 2
    return f"{mark.text[:half]} {mark.text[half:]}" if capsule else f"{mark.text[:half]}분할선{mark.text[half:]}"


def _drug_record(design: PillDesign) -> dict[str, Any]:
    alike = design.look_alike_group is not None
    capsule = design.shape is Shape.CAPSULE
    return {
        "rank": design.index + 1,
        "kcode": design.kcode,
        "edi_code": design.edi_code,
        "drug_name": design.drug_name,
        "manufacturer": design.manufacturer,
        "form": _form(design),
        "shape": SHAPE_KO[design.shape],
        "color": [COLOR_KO[color] for color in design.colors],
        "size_mm": {"long": design.long_mm, "short": design.short_mm, "thick": design.thick_mm},
        "markings": {"front": _marking(design.front, capsule), "back": _marking(design.back, capsule)},
        "usage_stats": {"annual_prescriptions": round(4_000_000 / (design.index + 3))},
        "collection_requirements": {"photos": 240, "backgrounds": 5, "lights": 3, "rotations": 8, "sides": 2},
        "training_config": {
            "weight": 1.5 if alike else 1.0,
            "augmentation_level": "strong" if alike else "standard",
            "target_accuracy": 0.8 if alike else 0.85,
        },
        "look_alike_group": design.look_alike_group,
    }


def drug_list_document(designs: Sequence[PillDesign]) -> dict[str, Any]:
    """The drugs in the format in which the data-preparation phase publishes its "top 100" list."""
    groups = sorted({d.look_alike_group for d in designs if d.look_alike_group is not None})
    return {
        "version": DOCUMENT_VERSION,
        "created_date": CREATED_DATE,
        "total_drugs": len(designs),
        "drugs": [_drug_record(design) for design in designs],
        "statistics": {
            "by_shape": dict(sorted(Counter(SHAPE_KO[d.shape] for d in designs).items())),
            "by_form": dict(sorted(Counter(_form(d) for d in designs).items())),
            "by_color": dict(sorted(Counter(COLOR_KO[c] for d in designs for c in d.colors).items())),
            "look_alike_groups": len(groups),
            "look_alike_drugs": sum(d.look_alike_group is not None for d in designs),
        },
    }
