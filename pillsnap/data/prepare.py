"""From folders of pictures and a drug list to a manifest: the whole of the data preparation.

catalog → folders → scan → (class by class: audit, groups, split, mixture) → links → ledger, report, manifest.
Everything is decided before the first link is made. The ledger comes before the manifest, so no split that anybody
could have trained on is ever forgotten; ``manifest.json`` is written last. The same input gives the same bytes: no
clock, no path of the machine is in them. A folder that holds a data set already is input too: its indices and its
split stay. Knows the order of the steps; each step knows itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pillsnap.core.catalog import Catalog
from pillsnap.core.errors import ConfigError, DataError, PillSnapError
from pillsnap.core.experiment import AugmentationConfig
from pillsnap.core.file_lock import only_one
from pillsnap.core.files import read_json, write_json
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.core.text import is_utf8, shown
from pillsnap.data.audit import QUARANTINE, AuditLimits, odd_sizes
from pillsnap.data.audit_report import AUDIT_FILE, write_audit_report
from pillsnap.data.earlier import EarlierSplits, check_previous, load_earlier
from pillsnap.data.ledger import LEDGER_FILE, LedgerWriter, writing_ledger
from pillsnap.data.links import LINK_FOLDERS, check_replaceable, link_folders, link_names
from pillsnap.data.names import Domain
from pillsnap.data.parallel import Progress, no_progress
from pillsnap.data.scan import SCAN_FILE, ScanStore
from pillsnap.data.selection import Rules, Selection, ledger_rows, select
from pillsnap.data.sources import DrugFolder, Layout, Picture, Source, find_overlooked, open_source
from pillsnap.data.summary import Tally, class_rows, summarize

REPORT_FILE = "report.json"
REFUSED_FILE = "refused.json"
"""The report of a preparation that stopped; that of the data set that is there stays."""
_LISTED = 10

Folders = dict[Domain, dict[str, tuple[DrugFolder, ...]]]


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
    """Largest share of pictures that are quarantined; above it the preparation stops."""
    limits: AuditLimits = field(default_factory=AuditLimits)
    studio_layout: Layout = "auto"
    real_layout: Layout = "auto"
    combinations: bool = False
    """Also train on studio pictures of several pills, cut out by their boxes."""
    previous: Path | None = None
    """Another data set that this one grows from, beside the one in ``out``: its indices and its split stay."""
    fresh: bool = False
    """Forget the data set that is there: indices and split are made anew, and old scores mean nothing any more."""

    def __post_init__(self) -> None:
        if self.studio is None and self.real is None:
            raise ConfigError("neither studio nor real pictures are given; give --studio, --real or --raw")
        if not 0 < self.ratio <= 1 or self.minimum < 0 or not 0 <= self.max_damage <= 1 or self.seed < 0:
            raise ConfigError(
                f"ratio={self.ratio} (0 to 1, not 0), minimum={self.minimum} (0 or more), "
                f"max_damage={self.max_damage} (0 to 1), seed={self.seed} (0 or more): one is out of range"
            )
        if self.fresh and self.previous is not None:
            raise ConfigError("--fresh forgets the earlier data set and --previous names one: give one of the two")

    def sources(self) -> dict[Domain, Source]:
        """The readers of the trees that are given."""
        opened: dict[Domain, Source] = {}
        if self.studio is not None:
            opened["studio"] = open_source(self.studio, "studio", self.studio_layout, combinations=self.combinations)
        if self.real is not None:
            opened["real"] = open_source(self.real, "real", self.real_layout)
        return opened


@dataclass(frozen=True)
class PrepareResult:
    """The manifest, the report on what was left out, and whether everything was there already."""

    manifest: Manifest
    report: dict[str, Any]
    reused: bool


def prepare(request: PrepareRequest, progress: Progress = no_progress) -> PrepareResult:
    """Prepare a data set, or find that it is prepared already.

    Raises:
        CatalogError: the drug list.
        ConfigError: the earlier data set was split by another seed.
        DataError: a missing folder, a drug without pictures, too many quarantined pictures, near-duplicates in two
            splits, something in the way of the links. No manifest is written then.
    """
    drugs = Catalog.from_drug_list(request.drugs)
    if request.previous is not None:
        check_previous(request.previous)
    if not is_utf8(request.out):
        raise DataError(f"{shown(request.out)}: this path is not UTF-8; rename the folder, or give another one")
    sources = request.sources()
    folders = _find_folders(request, drugs, sources)
    _check_no_empty_class(drugs, _folder_counts(folders), request)
    with _alone(request.out, progress), ScanStore.open(request.out / SCAN_FILE) as store:
        before = [] if request.fresh else [folder for folder in (request.out, request.previous) if folder is not None]
        earlier = load_earlier(before, request.seed)
        catalog = earlier.catalog(drugs)
        total = store.sync(_list_all(sources, folders))
        progress("listed", total, total)
        _check_no_empty_class(catalog, store.counts(), request)
        store.read_missing(request.workers or os.cpu_count() or 1, progress)
        _check_no_empty_class(catalog, store.usable_counts(), request)
        stored = _stored_hash(request.out)  # before the new one is in memory
        with writing_ledger(request.out / LEDGER_FILE, request.seed) as ledger:
            tally, rows = _select_all(catalog, store, request, earlier.splits, ledger)
            ledger.carry_over(earlier.ledgers)
            _check_damage(request, tally)
            manifest = Manifest.build(request.out, _summary(request, catalog, tally), rows, catalog)
            del rows  # the manifest has sorted ones of its own
            ledger.check()  # before the links are changed, which the former manifest names
            for domain, name in LINK_FOLDERS.items():
                link_folders(request.out / name, _paths(folders.get(domain, {})))
        report = {**tally.report(total), "overlooked": _overlooked(request, drugs, sources)}
        return _finish(manifest, report, store, reused=manifest.hash == stored)


@contextmanager
def _alone(out: Path, progress: Progress) -> Iterator[None]:
    """One preparation a folder at a time: the second waits, and finds what the first has made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror or error}); give another --out") from error
    with only_one(out / ".lock", lambda: progress("waiting for the preparation that works in this folder", 0, 1)):
        yield


def _find_folders(request: PrepareRequest, catalog: Catalog, sources: Mapping[Domain, Source]) -> Folders:
    folders: Folders = {}
    kcodes = [drug.kcode for drug in catalog.active]
    for domain, source in sources.items():
        base = request.out / LINK_FOLDERS[domain]
        if source.root.resolve() == base.resolve() and not base.is_symlink():
            raise DataError(f"{base}: is the source itself; links would replace it, so give another --out")
        folders[domain] = source.folders(kcodes, skip=request.out)
        _check_outside(request.out, folders[domain])
        check_replaceable(base)
    return folders


def _check_outside(out: Path, by_kcode: Mapping[str, Sequence[DrugFolder]]) -> None:
    """An output within a drug's folder would be read as pictures of this drug."""
    resolved = out.resolve()
    for found in by_kcode.values():
        for folder in found:
            if resolved.is_relative_to(folder.path.resolve()):
                raise DataError(f"{out}: lies in the drug folder {folder.path}; give an --out outside of it")


def _folder_counts(folders: Folders) -> dict[tuple[str, Domain], int]:
    return {(kcode, domain): len(found) for domain, by_kcode in folders.items() for kcode, found in by_kcode.items()}


def _paths(folders: Mapping[str, Sequence[DrugFolder]]) -> dict[str, tuple[Path, ...]]:
    return {kcode: tuple(folder.path for folder in found) for kcode, found in folders.items()}


def _list_all(sources: Mapping[Domain, Source], folders: Folders) -> Iterator[Picture]:
    for domain, by_kcode in folders.items():
        for kcode, found in by_kcode.items():
            names = link_names(_paths({kcode: found}))
            for name, folder in zip(names, found, strict=True):
                yield from sources[domain].pictures(folder, kcode, f"{LINK_FOLDERS[domain]}/{name}")


def _overlooked(
    request: PrepareRequest, drugs: Catalog, sources: Mapping[Domain, Source]
) -> dict[Domain, dict[str, dict[str, Any]]]:
    """What lies in the trees and was taken by nobody, by domain and code."""
    kcodes = [drug.kcode for drug in drugs.active]
    return {
        domain: {
            code: {"count": found.count, "first": found.first}
            for code, found in find_overlooked(
                source.root, kcodes, request.out, combinations=request.combinations and domain == "studio"
            ).items()
        }
        for domain, source in sources.items()
    }


def _check_no_empty_class(catalog: Catalog, images: Mapping[tuple[str, Domain], int], request: PrepareRequest) -> None:
    filled = {kcode for (kcode, _), count in images.items() if count}
    empty = [f"{drug.kcode} ({drug.drug_name})" for drug in catalog.active if drug.kcode not in filled]
    if empty:
        roots = " and ".join(str(source.root) for source in request.sources().values())
        raise DataError(
            f"{_first(empty)}: no usable picture in {roots}; add pictures, or take the drug off {request.drugs}"
        )


def _select_all(
    catalog: Catalog, store: ScanStore, request: PrepareRequest, earlier: EarlierSplits, ledger: LedgerWriter
) -> tuple[Tally, pa.Table]:
    """Class by class, so that only one class's pictures are in memory."""
    rules = Rules(
        request.seed,
        request.ratio,
        request.minimum,
        request.limits,
        {domain: odd_sizes(sizes) for domain, sizes in store.usual_sizes().items()},
        _same_files(store.copies_across_classes()),
        _of_another_drug(store.alike_across_classes()),
    )
    tally = Tally(rules)
    tables = []
    for drug in catalog.active:
        pictures = store.of_class(drug.kcode)
        selection = select(drug.kcode, pictures, rules, earlier)
        if not selection.usable:
            raise DataError(_all_quarantined(drug.kcode, drug.drug_name, selection))
        tally.add(selection, drug.drug_name, len(pictures))
        tables.append(class_rows(selection, catalog.class_to_idx[drug.kcode]))
        ledger.add(ledger_rows(selection, pictures))
    return tally, pa.concat_tables(tables)


def _same_files(copies: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Path → reason, of files that lie under several drugs."""
    return {
        path: "is the same file as " + " and ".join(other for other in paths if other != path)
        for paths in copies.values()
        for path in paths
    }


def _of_another_drug(alike: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Path → one of the paths that hash alike, of another drug (the second part of a path is the drug's folder)."""

    def drug(path: str) -> str:
        return path.split("/")[1]

    return {
        path: next(other for other in paths if drug(other) != drug(path)) for paths in alike.values() for path in paths
    }


def _all_quarantined(kcode: str, drug_name: str, selection: Selection) -> str:
    codes = Counter(finding.code for finding in selection.findings if finding.quarantines)
    listed = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    return f"{kcode} ({drug_name}): no usable picture, all are quarantined ({listed}); add pictures or put them right"


def _check_damage(request: PrepareRequest, tally: Tally) -> None:
    faults = {path: reason for code in QUARANTINE for path, reason in tally.left_out.get(code, {}).items()}
    if len(faults) <= request.max_damage * tally.found:
        return
    path = request.out / REFUSED_FILE
    write_json(path, tally.report(tally.found))
    raise DataError(
        f"{len(faults)} of {tally.found} pictures cannot be used, over the limit of {request.max_damage:.0%} "
        f"(all are listed in {path}): {_first([f'{name}: {fault}' for name, fault in faults.items()])}"
    )


def _summary(request: PrepareRequest, catalog: Catalog, tally: Tally) -> dict[str, Any]:
    """The summary of the specification (part B5). The date is that of the drug list."""
    return {
        "name": request.name,
        "version": catalog.version,
        "date": catalog.created_date,
        "num_classes": len(catalog.drugs),
        **summarize(tally),
        "seed": request.seed,
        "mixing": {"real_share": request.ratio, "minimum_images": request.minimum},
        "preprocessing": request.preprocessing.get_config(),
        "preprocessing_fingerprint": request.preprocessing.fingerprint,
        "augmentation": {"train": request.augmentation.model_dump(mode="json"), "val": None, "test": None},
    }


def _finish(manifest: Manifest, report: dict[str, Any], store: ScanStore, *, reused: bool) -> PrepareResult:
    root = manifest.root
    if not (reused and _stored_report(root) == report and (root / AUDIT_FILE).is_file()):
        write_audit_report(root / AUDIT_FILE, manifest, report, store)
        write_json(root / REPORT_FILE, report)
    if not reused:
        manifest.save()
    (root / REFUSED_FILE).unlink(missing_ok=True)
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
