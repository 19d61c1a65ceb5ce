"""From folders of pictures and a drug list to a manifest: the whole of the data preparation.

catalog → folders → scan → one of each file → capture groups → 3:7 mixture → split → links → manifest.
Everything is checked before the first link is made, and ``manifest.json`` is written last. The same input
gives the same bytes: no clock, no path of the machine is in them. Knows the order of the steps; each step
knows itself.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pillsnap.core.catalog import Catalog
from pillsnap.core.errors import ConfigError, DataError, PillSnapError
from pillsnap.core.experiment import AugmentationConfig
from pillsnap.core.files import read_json, write_json
from pillsnap.core.manifest import ROW_SCHEMA, SPLITS, Manifest, Split
from pillsnap.core.preprocessing import PreprocessingSpec
from pillsnap.data.groups import Usable, capture_groups, drop_duplicates
from pillsnap.data.links import LINK_FOLDERS, check_replaceable, link_folders, link_names
from pillsnap.data.mixing import Candidate, ClassMix, choose_balanced, mix_class
from pillsnap.data.names import DOMAINS, Domain
from pillsnap.data.parallel import Progress, no_progress
from pillsnap.data.scan import SCAN_FILE, Picture, Reading, scan
from pillsnap.data.sources import find_drug_folders, list_pictures
from pillsnap.data.split import check_no_straddle, split_groups

REPORT_FILE = "report.json"
_LISTED = 10

Folders = dict[Domain, dict[str, tuple[Path, ...]]]


@dataclass(frozen=True)
class PrepareRequest:
    """What to prepare, and by which rules."""

    drugs: Path
    """The drug list (JSON)."""
    studio: Path | None
    real: Path | None
    out: Path
    name: str = "pillsnap"
    seed: int = 0
    preprocessing: PreprocessingSpec = field(default_factory=PreprocessingSpec)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    ratio: float = 0.7
    """Share of real photos in a class."""
    minimum: int = 50
    """Images a class needs at least."""
    workers: int = 0
    """Pictures that are read at once; 0: one for each core."""
    max_damage: float = 0.05
    """Largest share of pictures that cannot be used; above it the preparation stops."""

    def __post_init__(self) -> None:
        if self.studio is None and self.real is None:
            raise ConfigError("neither studio nor real pictures are given; give --studio, --real or --raw")
        if not 0 < self.ratio <= 1 or self.minimum < 0 or not 0 <= self.max_damage <= 1 or self.seed < 0:
            raise ConfigError(
                f"ratio={self.ratio} (0 to 1, not 0), minimum={self.minimum} (0 or more), "
                f"max_damage={self.max_damage} (0 to 1), seed={self.seed} (0 or more): one is out of range"
            )

    @property
    def roots(self) -> dict[Domain, Path]:
        """Source tree by domain, of those that are given."""
        given: dict[Domain, Path | None] = {"studio": self.studio, "real": self.real}
        return {domain: root for domain, root in given.items() if root is not None}


@dataclass(frozen=True)
class PrepareResult:
    """The manifest, the report on what was left out, and whether everything was there already."""

    manifest: Manifest
    report: dict[str, Any]
    reused: bool


@dataclass(frozen=True)
class _Chosen:
    pictures: list[Usable]
    groups: dict[str, str]
    splits: dict[str, Split]
    mixes: dict[str, ClassMix]


def prepare(request: PrepareRequest, progress: Progress = no_progress) -> PrepareResult:
    """Prepare a data set, or find that it is prepared already.

    Raises:
        CatalogError: the drug list.
        DataError: a missing folder, a drug without pictures, too many damaged pictures, a picture under two
            drugs, something in the way of the links. No manifest is written then.
    """
    catalog = Catalog.from_drug_list(request.drugs)
    folders = _find_folders(request, catalog)
    pictures = _list_all(folders)
    _check_no_empty_class(catalog, Counter(picture.kcode for picture in pictures), request)
    progress("listed", len(pictures), len(pictures))
    readings = scan(pictures, request.out / SCAN_FILE, request.workers or os.cpu_count() or 1, progress)
    usable, faults = _sort_out(pictures, readings)
    _check_damage(request, faults, len(pictures))
    _check_no_empty_class(catalog, Counter(picture.kcode for picture in usable), request)
    unique, duplicates = drop_duplicates(usable)
    chosen = _choose(catalog, unique, request)
    report = _report(chosen, faults, duplicates, len(pictures))
    manifest = Manifest.build(request.out, _summary(request, catalog, chosen), _rows(catalog, chosen), catalog)
    return _finish(request, folders, manifest, report)


def _find_folders(request: PrepareRequest, catalog: Catalog) -> Folders:
    folders: Folders = {}
    for domain, root in request.roots.items():
        base = request.out / LINK_FOLDERS[domain]
        if root.resolve() == base.resolve() and not base.is_symlink():
            raise DataError(f"{base}: is the source itself; links would replace it, so give another --out")
        folders[domain] = find_drug_folders(root, catalog.kcodes, skip=request.out)
        check_replaceable(base)
    return folders


def _list_all(folders: Folders) -> list[Picture]:
    pictures = []
    for domain, by_kcode in folders.items():
        owner = {name: kcode for kcode, sources in by_kcode.items() for name in link_names({kcode: sources})}
        for name, source in link_names(by_kcode).items():
            prefix = f"{LINK_FOLDERS[domain]}/{name}"
            pictures += [
                Picture(f"{prefix}/{path}", source / path, owner[name], domain) for path in list_pictures(source)
            ]
    return sorted(pictures, key=lambda picture: picture.path)


def _check_no_empty_class(catalog: Catalog, images: Mapping[str, int], request: PrepareRequest) -> None:
    empty = [f"{drug.kcode} ({drug.drug_name})" for drug in catalog.drugs if not images.get(drug.kcode)]
    if empty:
        roots = " and ".join(str(root) for root in request.roots.values())
        raise DataError(
            f"{_first(empty)}: no usable picture in {roots}; add pictures, or take the drug off {request.drugs}"
        )


def _sort_out(pictures: Sequence[Picture], readings: Mapping[str, Reading]) -> tuple[list[Usable], dict[str, str]]:
    usable, faults = [], {}
    for picture in pictures:
        reading = readings[picture.path]
        if reading.fault:
            faults[picture.path] = reading.fault
        else:
            usable.append(
                Usable(
                    picture.path,
                    picture.kcode,
                    picture.domain,
                    picture.condition,
                    reading.sha256,
                    reading.dhash,
                    reading.phash,
                )
            )
    return usable, faults


def _check_damage(request: PrepareRequest, faults: Mapping[str, str], pictures: int) -> None:
    if len(faults) <= request.max_damage * pictures:
        return
    path = request.out / REPORT_FILE
    write_json(path, {"pictures_found": pictures, "damaged": dict(faults)})
    raise DataError(
        f"{len(faults)} of {pictures} pictures cannot be used, over the limit of {request.max_damage:.0%} "
        f"(all are listed in {path}): {_first([f'{name}: {fault}' for name, fault in faults.items()])}"
    )


def _choose(catalog: Catalog, unique: Sequence[Usable], request: PrepareRequest) -> _Chosen:
    groups = capture_groups(unique)
    by_class: dict[tuple[str, Domain], list[Usable]] = defaultdict(list)
    for picture in unique:
        by_class[picture.kcode, picture.domain].append(picture)
    mixes: dict[str, ClassMix] = {}
    chosen: list[Usable] = []
    for kcode in catalog.kcodes:
        real, studio = by_class[kcode, "real"], by_class[kcode, "studio"]
        mixes[kcode] = mix_class(len(real), len(studio), request.ratio, request.minimum)
        candidates = [Candidate(one.path, groups[one.path], _stratum(one)) for one in studio]
        names = frozenset(choose_balanced(candidates, mixes[kcode].studio_used, request.seed))
        chosen += [*real, *(picture for picture in studio if picture.path in names)]
    groups = {picture.path: groups[picture.path] for picture in chosen}
    sizes = Counter(groups.values())
    strata = {groups[one.path]: ((one.kcode, one.domain), sizes[groups[one.path]]) for one in chosen}
    of_group = split_groups(strata, request.seed)
    splits = {path: of_group[group] for path, group in groups.items()}
    check_no_straddle((groups[path], split) for path, split in splits.items())
    return _Chosen(chosen, groups, splits, mixes)


def _stratum(picture: Usable) -> tuple[int, int] | None:
    return None if picture.condition is None else (picture.condition.side, picture.condition.background)


def _rows(catalog: Catalog, chosen: _Chosen) -> pa.Table:
    labels = catalog.class_to_idx
    rows = []
    for picture in chosen.pictures:
        condition = picture.condition
        rows.append(
            {
                "path": picture.path,
                "kcode": picture.kcode,
                "label": labels[picture.kcode],
                "split": chosen.splits[picture.path],
                "domain": picture.domain,
                "group": chosen.groups[picture.path],
                "sha256": picture.sha256,
                **{
                    name: None if condition is None else getattr(condition, name)
                    for name in ("background", "light", "side", "elevation", "rotation")
                },
            }
        )
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def _summary(request: PrepareRequest, catalog: Catalog, chosen: _Chosen) -> dict[str, Any]:
    """The summary of the specification (part B5). The date is that of the drug list."""
    tally = Counter((one.kcode, one.domain, chosen.splits[one.path]) for one in chosen.pictures)
    by_split = {split: {d: _sum(tally, domain=d, split=split) for d in DOMAINS} for split in SPLITS}
    return {
        "name": request.name,
        "version": catalog.version,
        "date": catalog.created_date,
        "num_classes": len(catalog.drugs),
        "total_images": len(chosen.pictures),
        "splits": {split: sum(counts.values()) for split, counts in by_split.items()},
        "domains": {domain: _sum(tally, domain=domain) for domain in DOMAINS},
        "splits_by_domain": by_split,
        "groups": len(set(chosen.groups.values())),
        "seed": request.seed,
        "mixing": {"real_share": request.ratio, "minimum_images": request.minimum},
        "classes": {
            kcode: {
                "images": mix.images,
                **{split: _sum(tally, kcode=kcode, split=split) for split in SPLITS},
                **mix.as_dict(),
                "missing": _missing(tally, kcode),
            }
            for kcode, mix in chosen.mixes.items()
        },
        "preprocessing": request.preprocessing.get_config(),
        "preprocessing_fingerprint": request.preprocessing.fingerprint,
        "augmentation": {"train": request.augmentation.model_dump(mode="json"), "val": None, "test": None},
    }


def _sum(
    tally: Counter[tuple[str, Domain, Split]],
    kcode: str | None = None,
    domain: Domain | None = None,
    split: Split | None = None,
) -> int:
    wanted = (kcode, domain, split)
    return sum(n for key, n in tally.items() if all(w is None or w == k for w, k in zip(wanted, key, strict=True)))


def _missing(tally: Counter[tuple[str, Domain, Split]], kcode: str) -> list[str]:
    """Splits that have no image of a class in a domain (``test/real``): too few capture groups, or no images."""
    return [f"{split}/{domain}" for domain in DOMAINS for split in SPLITS if not tally[kcode, domain, split]]


def _report(chosen: _Chosen, faults: Mapping[str, str], duplicates: Mapping[str, str], pictures: int) -> dict[str, Any]:
    """What was found, left out and is short. It lies beside the manifest and is no part of its hash."""
    return {
        "pictures_found": pictures,
        "pictures_used": len(chosen.pictures),
        "studio_not_needed": sum(mix.studio_available - mix.studio_used for mix in chosen.mixes.values()),
        "damaged": dict(faults),
        "duplicates": dict(duplicates),
        "short_classes": {kcode: mix.as_dict() for kcode, mix in chosen.mixes.items() if mix.is_short},
    }


def _finish(request: PrepareRequest, folders: Folders, manifest: Manifest, report: dict[str, Any]) -> PrepareResult:
    reused = _stored_hash(request.out) == manifest.hash
    for domain, name in LINK_FOLDERS.items():
        link_folders(request.out / name, folders.get(domain, {}))
    if not reused or _stored_report(request.out) != report:
        write_json(request.out / REPORT_FILE, report)
    if not reused:
        manifest.save()
    return PrepareResult(manifest, report, reused)


def _stored_hash(root: Path) -> str | None:
    """Hash of a whole and valid manifest that lies there already."""
    try:
        return Manifest.load(root).hash
    except PillSnapError:
        return None


def _stored_report(root: Path) -> Any:
    try:
        return read_json(root / REPORT_FILE)
    except DataError:
        return None


def _first(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return "; ".join(items[:_LISTED]) + more
