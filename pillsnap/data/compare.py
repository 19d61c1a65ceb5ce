"""What differs between two catalogs, or between two manifests: pure, from values to values.

Pictures are known by their bytes: one that lies at another path is the same picture, and one whose split changed is
found wherever it lies now. Knows nothing of files, prints nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import pyarrow as pa

from pillsnap.core.boxes import BOX_COLUMNS
from pillsnap.core.catalog import Catalog, Drug
from pillsnap.core.files import canonical_json
from pillsnap.core.manifest import SPLITS, Manifest
from pillsnap.core.yaml_mapping import flatten

WEIGHT_KEY = "training_config.weight"
_OWN_KIND = frozenset({"path", "sha256", "kcode", "label", "split", "group"})
"""Columns whose changes have a kind of their own; an index moves with the catalog's."""
_COUNTED = frozenset({"total_images", "domains", "splits_by_domain", "groups"})
"""Of the summary."""


class Absent(Enum):
    """A key that is not there (null is a value)."""

    ABSENT = "absent"


@dataclass(frozen=True)
class FieldChange:
    """One value by its dotted key."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class DrugEntry:
    """One drug, with its index in the new catalog."""

    kcode: str
    drug_name: str
    index: int


@dataclass(frozen=True)
class DrugChange:
    """What is said otherwise of one drug."""

    kcode: str
    drug_name: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True)
class WeightChange:
    """Another weight in the training loss."""

    kcode: str
    drug_name: str
    old: float
    new: float


@dataclass(frozen=True)
class IndexMove:
    """A promise that is broken: models of the old catalog name another drug by this index."""

    kcode: str
    old_index: int
    new_index: int | None
    """None: the drug has no index any more."""
    now: str | None
    """Who has the old index now."""


@dataclass(frozen=True)
class CatalogDiff:
    """From one catalog to the next, each part in the order of the indices."""

    header: tuple[FieldChange, ...]
    moved: tuple[IndexMove, ...]
    added: tuple[DrugEntry, ...]
    retired: tuple[DrugEntry, ...]
    returned: tuple[DrugEntry, ...]
    """Retired before, in use again."""
    weights: tuple[WeightChange, ...]
    changed: tuple[DrugChange, ...]
    """Without the weights."""

    @property
    def is_empty(self) -> bool:
        """Nothing differs."""
        return not any(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class PictureChange:
    """One value of one picture. ``path`` is the new one."""

    path: str
    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class ManifestDiff:
    """From one manifest to the next; pictures in the order of their (new) paths."""

    into_test: tuple[PictureChange, ...]
    """From train or val to test: a model of the old manifest has seen these, its score on the new test is a fiction."""
    sitting_seen: tuple[str, ...]
    """New pictures of the test split from a capture group (by its name) that was in train or val: as good as seen."""
    out_of_test: tuple[PictureChange, ...]
    """From test to train or val: a model of the new manifest has seen these, its score on the old test is a fiction."""
    other_moves: tuple[PictureChange, ...]
    """Between train and val."""
    relabelled: tuple[PictureChange, ...]
    """Another K-CODE."""
    regrouped: tuple[PictureChange, ...]
    """In a capture group that was cut or joined. A group that only has another name is none."""
    replaced: tuple[str, ...]
    """The same path, other bytes."""
    renamed: tuple[PictureChange, ...]
    """The same bytes at another path."""
    redescribed: tuple[PictureChange, ...]
    """Another domain, condition or box."""
    added: tuple[str, ...]
    removed: tuple[str, ...]
    summary: tuple[FieldChange, ...]
    """Seed, preprocessing, …; the statistics per class are in ``counts``."""
    catalog: CatalogDiff
    counts: Mapping[str, Mapping[str, tuple[int, int]]]
    """Images per K-CODE and split, (old, new), of the classes where they differ."""
    totals: Mapping[str, tuple[int, int]]
    """Images per split, (old, new)."""

    @property
    def is_empty(self) -> bool:
        """Nothing differs."""
        parts = (getattr(self, part.name) for part in fields(self) if part.name not in ("catalog", "totals"))
        return self.catalog.is_empty and not any(parts)


def compare_catalogs(old: Catalog, new: Catalog, *, fixed: bool = True) -> CatalogDiff:
    """Compare two catalogs.

    Args:
        old: as it was.
        new: as it is; for a new drug list give ``old.updated(new_list)``.
        fixed: the places in both are indices. False where one of them is a list, whose order says nothing.
    """
    before, after = old.class_to_idx, new.class_to_idx
    moved = [
        IndexMove(kcode, index, after.get(kcode), new.kcodes[index] if index < len(new.kcodes) else None)
        for kcode, index in before.items()
        if fixed and after.get(kcode) != index
    ]
    pairs = [(old.drugs[before[drug.kcode]], drug) for drug in new.drugs if drug.kcode in before]
    changes = [(then, now, _drug_changes(then, now)) for then, now in pairs]
    gone = (
        [] if fixed else [DrugEntry(d.kcode, d.drug_name, before[d.kcode]) for d in old.active if d.kcode not in after]
    )

    def entries(wanted: Callable[[Drug], bool]) -> list[DrugEntry]:
        return [DrugEntry(drug.kcode, drug.drug_name, after[drug.kcode]) for drug in new.drugs if wanted(drug)]

    was_retired = {drug.kcode: drug.retired for drug in old.drugs}
    return CatalogDiff(
        header=field_changes(_header(old), _header(new)),
        moved=tuple(moved),
        added=tuple(entries(lambda drug: drug.kcode not in before)),
        retired=(*entries(lambda drug: drug.retired and was_retired.get(drug.kcode) is False), *gone),
        returned=tuple(entries(lambda drug: not drug.retired and was_retired.get(drug.kcode, False))),
        weights=tuple(
            WeightChange(now.kcode, now.drug_name, then.training_config.weight, now.training_config.weight)
            for then, now in pairs
            if then.training_config.weight != now.training_config.weight
        ),
        changed=tuple(DrugChange(now.kcode, now.drug_name, found) for _, now, found in changes if found),
    )


def field_changes(old: dict[str, Any], new: dict[str, Any]) -> tuple[FieldChange, ...]:
    """The values that differ between two nested mappings, by dotted key; lists are compared as a whole."""
    before, after = flatten(old), flatten(new)
    found = [FieldChange(key, before.get(key, Absent.ABSENT), after.get(key, Absent.ABSENT)) for key in before | after]
    return tuple(change for change in found if not _same(change.old, change.new))


def compare_manifests(old: Manifest, new: Manifest) -> ManifestDiff:
    """Compare two manifests. Takes time and memory in proportion to their rows."""
    before, after = _Rows(old.rows), _Rows(new.rows)
    pairs, removed, added = _match(before, after)
    moves = list(_changes(before, after, pairs, "split"))
    others = [name for name in after.columns if name not in _OWN_KIND and name in before.columns]
    counts, totals = _counts(before, after)
    return ManifestDiff(
        into_test=tuple(move for move in moves if move.new == "test"),
        sitting_seen=tuple(_of_seen_sittings(before, after, added)),
        out_of_test=tuple(move for move in moves if move.old == "test"),
        other_moves=tuple(move for move in moves if "test" not in (move.old, move.new)),
        relabelled=tuple(_changes(before, after, pairs, "kcode")),
        regrouped=tuple(_regrouped(before, after, pairs)),
        replaced=tuple(change.path for change in _changes(before, after, pairs, "sha256")),
        renamed=tuple(_changes(before, after, pairs, "path")),
        redescribed=tuple(change for name in others for change in _changes(before, after, pairs, name)),
        added=tuple(after.columns["path"][index] for index in added),
        removed=tuple(before.columns["path"][index] for index in removed),
        summary=field_changes(_settings(old.summary), _settings(new.summary)),
        catalog=compare_catalogs(old.catalog, new.catalog),
        counts=counts,
        totals=totals,
    )


def as_document(value: Any) -> Any:
    """A diff as JSON: dataclasses become objects, absent values are left out."""
    if is_dataclass(value):
        pairs = ((part.name, getattr(value, part.name)) for part in fields(value))
        return {name: as_document(item) for name, item in pairs if item is not Absent.ABSENT}
    if isinstance(value, Mapping):
        return {key: as_document(item) for key, item in value.items()}
    return [as_document(item) for item in value] if isinstance(value, list | tuple) else value


def _same(old: Any, new: Any) -> bool:
    if old is Absent.ABSENT or new is Absent.ABSENT:
        return old is new
    return canonical_json(old) == canonical_json(new)  # True is not 1, and text is compared byte for byte


def _header(catalog: Catalog) -> dict[str, Any]:
    return {"version": catalog.version, "created_date": catalog.created_date}


def _drug_changes(old: Drug, new: Drug) -> tuple[FieldChange, ...]:
    before, after = (drug.model_dump(mode="json", exclude={"kcode", "retired"}) for drug in (old, new))
    return tuple(change for change in field_changes(before, after) if change.key != WEIGHT_KEY)


def _settings(summary: dict[str, Any]) -> dict[str, Any]:
    """What was chosen (seed, preprocessing, …) first, what was counted last; without what is counted here."""
    kept = {key: value for key, value in summary.items() if key not in ("hash", "classes", "splits")}
    return dict(sorted(kept.items(), key=lambda item: item[0] in _COUNTED))


class _Rows:
    """The columns of a manifest as lists: each value is looked at a few times."""

    def __init__(self, table: pa.Table) -> None:
        self.count = table.num_rows
        self.columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in table.column_names}

    def keys(self, indices: Sequence[int], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The values of some columns, a row each."""
        return zip(*([self.columns[name][index] for index in indices] for name in names), strict=True)


def _match(old: _Rows, new: _Rows) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pairs of rows that are one picture, in the order of the new rows; old rows and new rows without a partner."""
    # A picture may be there once for each box; most data sets have none.
    box = tuple(name for name in BOX_COLUMNS if any(set(rows.columns.get(name, ())) - {None} for rows in (old, new)))
    pairs: list[tuple[int, int]] = []
    left, right = list(range(old.count)), list(range(new.count))
    for names in (("path", "sha256", *box), ("sha256", *box), ("path", *box), ("path", "kcode")):  # the surest first
        waiting: dict[tuple[Any, ...], list[int]] = {}
        for key, index in zip(old.keys(left[::-1], names), left[::-1], strict=True):
            waiting.setdefault(key, []).append(index)
        unpaired = []
        for key, index in zip(new.keys(right, names), right, strict=True):
            partners = waiting.get(key)
            if partners:
                pairs.append((partners.pop(), index))  # the first of them
            else:
                unpaired.append(index)
        left, right = sorted(index for rest in waiting.values() for index in rest), unpaired
    return sorted(pairs, key=lambda pair: pair[1]), left, right


def _changes(old: _Rows, new: _Rows, pairs: Sequence[tuple[int, int]], name: str) -> Iterator[PictureChange]:
    before, after, paths = old.columns[name], new.columns[name], new.columns["path"]
    for i, j in pairs:
        if before[i] != after[j]:
            yield PictureChange(paths[j], name, before[i], after[j])


def _regrouped(old: _Rows, new: _Rows, pairs: Sequence[tuple[int, int]]) -> Iterator[PictureChange]:
    """Pictures whose old and new group do not hold the same pictures, of those that are in both manifests."""
    before, after = old.columns["group"], new.columns["group"]
    forward: dict[str, set[str]] = defaultdict(set)
    backward: dict[str, set[str]] = defaultdict(set)
    for i, j in pairs:
        forward[before[i]].add(after[j])
        backward[after[j]].add(before[i])
    for i, j in pairs:
        if len(forward[before[i]]) > 1 or len(backward[after[j]]) > 1:
            yield PictureChange(new.columns["path"][j], "group", before[i], after[j])


def _of_seen_sittings(old: _Rows, new: _Rows, added: Sequence[int]) -> Iterator[str]:
    pairs = zip(old.columns["group"], old.columns["split"], strict=True)
    seen = {group for group, split in pairs if split != "test"}
    for index in added:
        if new.columns["split"][index] == "test" and new.columns["group"][index] in seen:
            yield new.columns["path"][index]


def _counts(old: _Rows, new: _Rows) -> tuple[dict[str, dict[str, tuple[int, int]]], dict[str, tuple[int, int]]]:
    before, after = (Counter(zip(rows.columns["kcode"], rows.columns["split"], strict=True)) for rows in (old, new))
    by_class: dict[str, dict[str, tuple[int, int]]] = {
        kcode: {split: (before[kcode, split], after[kcode, split]) for split in SPLITS}
        for kcode in sorted({kcode for kcode, _ in before | after})
    }
    totals: dict[str, tuple[int, int]] = {
        split: (sum(numbers[split][0] for numbers in by_class.values()), sum(n[split][1] for n in by_class.values()))
        for split in SPLITS
    }
    return {k: splits for k, splits in by_class.items() if any(a != b for a, b in splits.values())}, totals
