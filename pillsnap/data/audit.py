"""Judge what was read: which pictures are left out, and why; what else is worth knowing. Pure.

A finding either quarantines its picture (it is in no split, and listed with its reason) or notes something about it.
Whether anything can be seen in a picture is judged as the server judges it (`core.image_quality`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import Field, field_validator

from pillsnap.core import image_quality
from pillsnap.core.image_codes import DOUBTS, Refusal, Remark
from pillsnap.core.image_quality import QualityLimits
from pillsnap.data.names import Domain
from pillsnap.data.reading import Reading

QUARANTINE: dict[str, str] = {
    **{code.value: code.meaning for code in Refusal},
    **{code.value: code.meaning for code in DOUBTS},
    "too_small": "the shorter side has too few pixels",
    "name_not_utf8": "its name, or that of a folder below the drug's, is not UTF-8 (of Korean Windows): rename it",
    "wrong_folder": "named after one drug, lies in the folder of another",
    "label_of_another_drug": "its label names another drug than its folder",
    "duplicate_across_classes": "the same file lies under several drugs: one label is wrong",
    "bridges_splits": "too like pictures of two splits: it would tie training to test",
}
"""Codes that leave a picture out, with their meaning."""
COPIES = "duplicate"
"""Left out too, but no fault: another copy of the file is used."""
NOTES: dict[str, str] = {
    "odd_size": "of another size than nearly all pictures of its kind",
    "label_disagrees": "its label contradicts the file's name, or has a box out of the picture",
    "looks_like_another_class": "hashes like a picture of another drug: a wrong label, or look-alikes",
}
"""Codes that keep the picture."""
JUDGEMENTS = ("too_small", *(code.value for code in DOUBTS if code is not Remark.DAMAGED))
"""Codes that hang on the limits."""
_USUAL_SHARE = 0.8
_ODD_SHARE = 0.01


class AuditLimits(QualityLimits):
    """Where a picture stops being usable, by its size too."""

    min_side_px: int = Field(default=64, ge=1)
    """Shorter side."""
    allow: frozenset[str] = frozenset()
    """Those of `JUDGEMENTS` that are noted only."""

    @field_validator("allow")
    @classmethod
    def _known(cls, allow: frozenset[str]) -> frozenset[str]:
        unknown = sorted(allow.difference(JUDGEMENTS))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not among {', '.join(JUDGEMENTS)}")
        return allow


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd about one picture."""

    path: str
    code: str
    detail: str
    quarantines: bool


def judge(reading: Reading, limits: AuditLimits) -> Iterator[Finding]:
    """The findings on one picture by itself."""
    if reading.fault:
        yield Finding(reading.path, reading.fault_code, reading.fault, True)
        return
    for code, detail in _judgements(reading, limits):
        yield Finding(reading.path, code, detail, code not in limits.allow)
    if reading.notes:
        yield Finding(reading.path, "label_disagrees", "; ".join(reading.notes), False)


def odd_sizes(sizes: Mapping[tuple[int, int], int]) -> frozenset[tuple[int, int]]:
    """The (longer, shorter) sides that stand out, where at least 80 % of the pictures share one size.

    A size stands out when under 1 % of the pictures have it.
    """
    total = sum(sizes.values())
    if not total or max(sizes.values()) < _USUAL_SHARE * total:
        return frozenset()
    return frozenset(size for size, count in sizes.items() if count < _ODD_SHARE * total)


def size_note(reading: Reading, domain: Domain, odd: Mapping[Domain, frozenset[tuple[int, int]]]) -> Finding | None:
    """A note where the picture's size is one of the odd ones of its domain."""
    size = (max(reading.width, reading.height), min(reading.width, reading.height))
    if reading.fault or size not in odd[domain]:
        return None
    return Finding(reading.path, "odd_size", f"{reading.width}×{reading.height} px", False)


def _judgements(reading: Reading, limits: AuditLimits) -> Iterator[tuple[str, str]]:
    figures = reading.figures
    assert figures is not None  # there is no fault
    if min(reading.width, reading.height) < limits.min_side_px:
        size = f"{reading.width}×{reading.height} px"
        yield "too_small", f"{size}; the shorter side must have {limits.min_side_px}"
    yield from ((finding.code, finding.message) for finding in image_quality.judge(figures, limits))
