"""Renders the demo data set into a folder, once, the same bytes on every run.

The folder ends up holding ``drugs.json``, ``studio/<K-CODE>/*.png``, ``real_photos/<K-CODE>/*.jpg``,
``contact_sheet.png`` and, written last, the stamp ``render.json``. A folder without a valid stamp is an
interrupted render, which is done over, or somebody else's folder, which is left alone.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from pillsnap.core.errors import ConfigError, DataError
from pillsnap.core.interruption import deaf_children
from pillsnap.synthetic.conditions import REAL_GRID, STUDIO_GRID, choose_real, choose_studio
from pillsnap.synthetic.contact_sheet import draw_contact_sheet
from pillsnap.synthetic.drugs import (
    DOCUMENT_VERSION,
    MAX_DRUGS,
    MIN_DRUGS,
    PillDesign,
    design_drugs,
    drug_list_document,
)
from pillsnap.synthetic.render import build_model, render_real, render_studio

RENDERER_VERSION = "2"
DRUG_LIST, CONTACT_SHEET, STAMP = "drugs.json", "contact_sheet.png", "render.json"
STUDIO, REAL = "studio", "real_photos"
# Noise does not compress: this is as small as the defaults, written in half the time.
_PNG = [
    cv2.IMWRITE_PNG_FILTER,
    cv2.IMWRITE_PNG_FILTER_UP,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
]
_PART_SUFFIX = ".part"
_OURS = re.compile(
    r"(?:drugs\.json|contact_sheet\.png|render\.json"
    r"|studio/(K-99\d{4})/\1_0_[0-2]_[01]_[0-2]_\d\d_\d{3}_200\.png"
    r"|real_photos/(K-99\d{4})/\2_[0-4]_[0-2]_[01]_0_90_\d{3}_200\.jpg)(?:\.part)?"
)


@dataclass(frozen=True)
class DemoSpec:
    """What to render.

    Attributes:
        drugs: Number of drugs, 2 to 200.
        seed: Same seed, same bytes.
        studio_per_drug: Studio pictures a drug, drawn from the 1,296 of the protocol.
        real_per_drug: Real photos a drug, drawn evenly from its 30 sittings of 8 rotations.
        workers: Processes; ``None`` takes one a core. Changes the time only.

    Raises:
        ConfigError: A value is out of range.
    """

    drugs: int = 100
    seed: int = 0
    studio_per_drug: int = 15
    real_per_drug: int = 35
    workers: int | None = None

    def __post_init__(self) -> None:
        limits = {
            "drugs": (self.drugs, MIN_DRUGS, MAX_DRUGS),
            "seed": (self.seed, 0, 2**63 - 1),
            "studio_per_drug": (self.studio_per_drug, 2, STUDIO_GRID),
            "real_per_drug": (self.real_per_drug, 1, REAL_GRID),
            "workers": (1 if self.workers is None else self.workers, 1, 1024),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise ConfigError(f"{name} must be {low} to {high}, got {value}")

    def content(self) -> dict[str, int]:
        """What decides the bytes: everything but the number of workers."""
        return {
            "drugs": self.drugs,
            "seed": self.seed,
            "studio_per_drug": self.studio_per_drug,
            "real_per_drug": self.real_per_drug,
        }


@dataclass(frozen=True)
class RenderReport:
    """What a render did.

    Attributes:
        root: The folder.
        reused: The folder held this very data set already; nothing was written.
        drugs: Number of drugs.
        studio_images: Number of studio pictures.
        real_images: Number of real photos.
        removed: Stale files that were removed.
        sha256: Over the sorted (relative path, sha256 of the file) pairs.
    """

    root: Path
    reused: bool
    drugs: int
    studio_images: int
    real_images: int
    removed: int
    sha256: str


@dataclass(frozen=True)
class _FileRecord:
    path: str
    sha256: str
    size_bytes: int


Progress = Callable[[int, int], None]


def image_paths(design: PillDesign, spec: DemoSpec) -> tuple[str, ...]:
    """The POSIX paths of a drug's pictures, relative to the root."""
    studio = choose_studio(spec.seed, design.index, spec.studio_per_drug)
    real = choose_real(spec.seed, design.index, spec.real_per_drug)
    return tuple(
        [f"{STUDIO}/{design.kcode}/{condition.file_name(design.kcode)}" for condition in studio]
        + [f"{REAL}/{design.kcode}/{condition.file_name(design.kcode)}" for condition in real]
    )


def render_dataset(root: Path, spec: DemoSpec, progress: Progress | None = None) -> RenderReport:
    """Renders the data set, or finds that it is there already.

    Args:
        root: Made if missing.
        spec: What to render.
        progress: Called with (pictures done, pictures in all) at the start and after each drug.

    Raises:
        DataError: The folder holds something else and no stamp of ours.
    """
    designs = design_drugs(spec.drugs, spec.seed)
    expected = {path for design in designs for path in image_paths(design, spec)}
    stamp = _read_stamp(root / STAMP)
    if stamp is not None and _matches(root, stamp, spec, expected):
        return _report(root, spec, True, 0, str(stamp["sha256"]))
    _refuse_foreign(root, stamped=stamp is not None)
    root.mkdir(parents=True, exist_ok=True)
    (root / STAMP).unlink(missing_ok=True)
    removed = _remove_stale(root, expected | {DRUG_LIST, CONTACT_SHEET})
    document = json.dumps(drug_list_document(designs), ensure_ascii=False, indent=1) + "\n"
    records = [_write(root, DRUG_LIST, document.encode())]
    records += _render_all(root, designs, spec, progress)
    digest = _digest(records)
    stamp_text = json.dumps(_stamp(spec, records, digest), ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    _write(root, STAMP, stamp_text.encode())
    return _report(root, spec, False, removed, digest)


def _report(root: Path, spec: DemoSpec, reused: bool, removed: int, digest: str) -> RenderReport:
    real = spec.drugs * spec.real_per_drug
    return RenderReport(root, reused, spec.drugs, spec.drugs * spec.studio_per_drug, real, removed, digest)


def _digest(records: Sequence[_FileRecord]) -> str:
    lines = sorted(f"{record.path} {record.sha256}\n" for record in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "."


def _stamp(spec: DemoSpec, records: Sequence[_FileRecord], digest: str) -> dict[str, Any]:
    bytes_by_folder: dict[str, int] = {}
    for record in records:
        folder = _folder(record.path)
        bytes_by_folder[folder] = bytes_by_folder.get(folder, 0) + record.size_bytes
    return {
        "renderer_version": RENDERER_VERSION,
        "spec": spec.content(),
        "files": len(records),
        "bytes_by_folder": bytes_by_folder,
        "sha256": digest,
    }


def _read_stamp(path: Path) -> dict[str, Any] | None:
    """The stamp, or none where it is missing, damaged or not one of ours."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"renderer_version", "spec", "files", "bytes_by_folder", "sha256"}
    return stamp if isinstance(stamp, dict) and needed <= stamp.keys() else None


def _matches(root: Path, stamp: dict[str, Any], spec: DemoSpec, expected: set[str]) -> bool:
    """Whether the stamp is of this spec and every file is there, with the bytes of each folder adding up."""
    if stamp["renderer_version"] != RENDERER_VERSION or stamp["spec"] != spec.content():
        return False
    bytes_by_folder: dict[str, int] = {}
    for path in expected | {DRUG_LIST, CONTACT_SHEET}:
        try:
            size_bytes = (root / path).stat().st_size
        except OSError:
            return False
        bytes_by_folder[_folder(path)] = bytes_by_folder.get(_folder(path), 0) + size_bytes
    return bool(stamp["bytes_by_folder"] == bytes_by_folder)


def _files_below(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file under the root with its relative POSIX path; links to folders are not followed."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            yield path.relative_to(root).as_posix(), path


def _is_our_drug_list(path: Path) -> bool:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("version") == DOCUMENT_VERSION


def _refuse_foreign(root: Path, stamped: bool) -> None:
    """Without a stamp, everything in the folder must look like an unfinished render of ours.

    Raises:
        DataError: It does not, or one of the folders is a link to somewhere else.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file: name a folder for the demo data set")
    for link in (path for domain in (STUDIO, REAL) for path in (root / domain, *(root / domain).glob("K-99*"))):
        if link.is_symlink():
            raise DataError(f"{link} is a link: the demo data set is written into real folders only")
    if stamped:
        return
    found = [relative for relative, _ in _files_below(root)]
    foreign = [relative for relative in found if relative == STAMP or not _OURS.fullmatch(relative)]
    started = not found or found == [DRUG_LIST + _PART_SUFFIX] or _is_our_drug_list(root / DRUG_LIST)
    if foreign or not started:
        name = min(foreign or found)
        raise DataError(f"{root} holds {name}, which is not of the demo data set: name an empty folder")


def _remove_stale(root: Path, wanted: set[str]) -> int:
    """Removes files of ours that this render does not write, and folders that this leaves empty."""
    removed = 0
    for relative, path in list(_files_below(root)):
        if relative not in wanted and _OURS.fullmatch(relative):
            path.unlink()
            removed += 1
    for domain in (STUDIO, REAL):
        for folder in sorted((root / domain).glob("K-99*")):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return removed


def _write(root: Path, relative: str, content: bytes) -> _FileRecord:
    """Writes beside, then moves into place, so that a file is whole or not there."""
    target = root / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + _PART_SUFFIX)
    part.write_bytes(content)
    os.replace(part, target)
    return _FileRecord(relative, hashlib.sha256(content).hexdigest(), len(content))


def _encode(image_HWC_rgb_u8: Any, extension: str, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, cv2.cvtColor(image_HWC_rgb_u8, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise DataError(f"OpenCV could not encode a {extension} picture: check its build")
    return bytes(data)


def _render_drug(root: Path, design: PillDesign, spec: DemoSpec) -> list[_FileRecord]:
    """Renders and writes all pictures of one drug."""
    model = build_model(design)
    records = []
    for studio in choose_studio(spec.seed, design.index, spec.studio_per_drug):
        content = _encode(render_studio(model, studio, spec.seed), ".png", _PNG)
        records.append(_write(root, f"{STUDIO}/{design.kcode}/{studio.file_name(design.kcode)}", content))
    for real in choose_real(spec.seed, design.index, spec.real_per_drug):
        image, quality = render_real(model, real, spec.seed)
        content = _encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])
        records.append(_write(root, f"{REAL}/{design.kcode}/{real.file_name(design.kcode)}", content))
    return records


def _draw_sheet(root: Path, designs: Sequence[PillDesign], spec: DemoSpec) -> list[_FileRecord]:
    return [_write(root, CONTACT_SHEET, _encode(draw_contact_sheet(designs, spec.seed), ".png", []))]


def _start_worker() -> None:
    """Each process keeps OpenCV to one thread, as they share the cores."""
    cv2.setNumThreads(1)


def _render_all(
    root: Path, designs: Sequence[PillDesign], spec: DemoSpec, progress: Progress | None
) -> list[_FileRecord]:
    """Renders drug by drug, then the contact sheet, in this process or in several."""
    workers = min(spec.workers or os.cpu_count() or 1, len(designs))
    per_drug = spec.studio_per_drug + spec.real_per_drug
    records: list[_FileRecord] = []

    def collect(done: list[_FileRecord], drugs_done: int) -> None:
        records.extend(done)
        if progress is not None:
            progress(drugs_done * per_drug, len(designs) * per_drug)

    collect([], 0)
    if workers == 1:
        for count, design in enumerate(designs, start=1):
            collect(_render_drug(root, design, spec), count)
        return [*records, *_draw_sheet(root, designs, spec)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            with deaf_children():  # each piece of work starts one, until there are all
                sheet = pool.submit(_draw_sheet, root, designs, spec)  # the longest piece of work goes first
                futures = [pool.submit(_render_drug, root, design, spec) for design in designs]
            for count, future in enumerate(as_completed(futures), start=1):
                collect(future.result(), count)
            records += sheet.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return records
