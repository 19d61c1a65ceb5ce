"""Adds up the classes: the rows and the statistics of the manifest, and the report of what was left out. Pure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from pillsnap.core.boxes import BOX_COLUMNS
from pillsnap.core.manifest import ROW_SCHEMA, SPLITS, Split
from pillsnap.data.audit import COPIES
from pillsnap.data.coverage import class_coverage
from pillsnap.data.groups import Usable
from pillsnap.data.names import DOMAINS, Domain
from pillsnap.data.selection import Rules, Selection

_CONDITIONS = ("background", "light", "side", "elevation", "rotation")


class Tally:
    """Takes one class after another and keeps what the summary and the report need of it."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.found = 0
        self.groups = 0
        self.classes: dict[str, dict[str, Any]] = {}
        """K-CODE → its statistics in the manifest."""
        self.coverage: dict[str, dict[str, Any]] = {}
        """K-CODE → what it lacks, of the classes that lack something."""
        self.images: Counter[tuple[Domain, Split]] = Counter()
        self.left_out: dict[str, dict[str, str]] = {}
        """Code → path → reason."""
        self.notes: dict[str, dict[str, str]] = {}
        self.copies: dict[str, str] = {}
        self.studio_not_needed = 0

    def add(self, selection: Selection, drug_name: str, found: int) -> None:
        """Add one class; ``found`` is how many pictures it had before anything was left out."""
        chosen = selection.chosen()
        counts = Counter((one.domain, selection.splits[one.path]) for one in chosen)
        coverage = class_coverage(
            selection.usable, selection.used, selection.splits, selection.mix, self._rules.ratio, self._rules.minimum
        )
        self.found += found
        self.groups += len({selection.groups[one.path] for one in chosen})
        self.images += counts
        self.studio_not_needed += selection.mix.studio_available - selection.mix.studio_used
        self.copies |= selection.copies
        for finding in selection.findings:
            pot = self.left_out if finding.quarantines else self.notes
            pot.setdefault(finding.code, {}).setdefault(finding.path, finding.detail)
        self.classes[selection.kcode] = {
            "images": selection.mix.images,
            **{split: sum(counts[domain, split] for domain in DOMAINS) for split in SPLITS},
            **selection.mix.as_dict(),
            "missing": [f"{split}/{domain}" for domain in DOMAINS for split in SPLITS if not counts[domain, split]],
        }
        if selection.mix.is_short or coverage["problems"] or coverage["empty_splits"]:
            self.coverage[selection.kcode] = {"drug_name": drug_name, **selection.mix.as_dict(), **coverage}

    def report(self, found: int) -> dict[str, Any]:
        """What was found, left out and is short. It lies beside the manifest and is no part of its hash."""
        return {
            "pictures_found": found,
            "pictures_used": sum(self.images.values()),
            "studio_not_needed": self.studio_not_needed,
            "left_out": {code: dict(sorted(self.left_out[code].items())) for code in sorted(self.left_out)},
            "notes": {code: dict(sorted(self.notes[code].items())) for code in sorted(self.notes)},
            COPIES: dict(sorted(self.copies.items())),
            "classes": self.coverage,
        }


def summarize(tally: Tally) -> dict[str, Any]:
    """The counts of the manifest's summary."""
    by_split = {split: {domain: tally.images[domain, split] for domain in DOMAINS} for split in SPLITS}
    return {
        "total_images": sum(tally.images.values()),
        "splits": {split: sum(counts.values()) for split, counts in by_split.items()},
        "domains": {domain: sum(by_split[split][domain] for split in SPLITS) for domain in DOMAINS},
        "splits_by_domain": by_split,
        "groups": tally.groups,
        "classes": tally.classes,
    }


def class_rows(selection: Selection, label: int) -> pa.Table:
    """The manifest's rows of one class."""
    return pa.Table.from_pylist([_row(one, selection, label) for one in selection.chosen()], schema=ROW_SCHEMA)


def _row(picture: Usable, selection: Selection, label: int) -> dict[str, Any]:
    box = picture.box
    return {
        "path": picture.path,
        "kcode": picture.kcode,
        "label": label,
        "split": selection.splits[picture.path],
        "domain": picture.domain,
        "group": selection.groups[picture.path],
        "sha256": picture.sha256,
        **{name: getattr(picture.condition, name, None) for name in _CONDITIONS},
        **dict(zip(BOX_COLUMNS, box or [None] * len(BOX_COLUMNS), strict=True)),
    }
