"""``pillsnap data diff`` and ``pillsnap data catalog``: what differs between two data sets or two drug lists.

Translates options into comparisons and results into lines; decides nothing.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pillsnap.core.errors import CatalogError

if TYPE_CHECKING:
    from pillsnap.data.compare import CatalogDiff, DrugEntry, FieldChange, ManifestDiff, PictureChange

_PATH = click.Path(path_type=Path)
_LONGEST = 100
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _diff_options(command: _Command) -> _Command:
    """``--json``, ``--exit-code`` and ``--show`` of both comparisons."""
    for option in (
        click.option("--show", type=click.IntRange(min=0), default=5, show_default=True, help="Lines of each kind."),
        click.option("--exit-code", is_flag=True, help="End with 1 where something differs, as git diff does."),
        click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object."),
    ):
        command = option(command)
    return command


@click.group()
def catalog() -> None:
    """Compare drug lists and class mappings, and bring a mapping up to a new list."""


@catalog.command("diff")
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH)
@_diff_options
def catalog_diff(old: Path, new: Path, as_json: bool, exit_code: bool, show: int) -> None:
    """Say what differs between the catalogs OLD and NEW: each a drug list, a class_mapping.json, or its folder.

    Where NEW is a list, the comparison is with what it makes of OLD: known drugs keep their index. Two mappings in
    which a drug has not the same index end with exit status 1.
    """
    from pillsnap.data.class_mapping import read_for_comparison
    from pillsnap.data.compare import as_document, compare_catalogs

    before, after, fixed = read_for_comparison(old, new)
    found = compare_catalogs(before, after, fixed=fixed)
    if as_json:
        _print_json({"old": str(old), "new": str(new), "different": not found.is_empty, **as_document(found)})
    else:
        _print_catalog(found, show)
        if found.is_empty:
            click.echo(f"no difference: {len(after.active)} drugs")
    if found.moved:
        raise CatalogError(
            f"{new}: {len(found.moved)} drugs have not the index that they have in {old}; models and manifests of one "
            "would name other drugs with the other. Make the new mapping with: pillsnap data catalog update"
        )
    if exit_code and not found.is_empty:
        sys.exit(1)


@catalog.command()
@click.argument("mapping", type=_PATH)
@click.argument("drug_list", metavar="LIST", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=_PATH, required=True, help="File to write; may be MAPPING itself.")
def update(mapping: Path, drug_list: Path, out: Path) -> None:
    """Bring the class mapping MAPPING up to the drug list LIST: no index is shifted or used again.

    Drugs that are not in the list are retired, new ones get the next free indices.
    """
    from pillsnap.data.class_mapping import update_class_mapping

    found = update_class_mapping(mapping, drug_list, out)
    _print_catalog(found, 5)
    click.echo(f"written: {out}{' (no difference)' if found.is_empty else ''}")


@click.command()
@click.argument("old", type=_PATH)
@click.argument("new", type=_PATH)
@_diff_options
def diff(old: Path, new: Path, as_json: bool, exit_code: bool, show: int) -> None:
    """Say what differs between the data sets OLD and NEW (folders with a manifest.json).

    Pictures that moved into or out of the test split come first: scores from before and after do not compare.
    """
    from pillsnap.core.manifest import Manifest
    from pillsnap.data.compare import as_document, compare_manifests

    before, after = Manifest.load(old), Manifest.load(new)
    found = compare_manifests(before, after)
    if as_json:
        sides = {"old": {"root": str(old), "hash": before.hash}, "new": {"root": str(new), "hash": after.hash}}
        _print_json({**sides, "different": not found.is_empty, **as_document(found)})
    else:
        for name, path, manifest in (("old", old, before), ("new", new, after)):
            click.echo(f"{name}: {path}  manifest {manifest.hash[:16]}  {manifest.rows.num_rows} images")
        _print_manifest(found, show)
    if exit_code and not found.is_empty:
        sys.exit(1)


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False))


def _print_catalog(found: CatalogDiff, show: int) -> None:
    _print_some(
        "INDEX MOVED",
        [
            f"{move.kcode}: {move.old_index} → {'none' if move.new_index is None else move.new_index}"
            + (f" (index {move.old_index} is now {move.now})" if move.now else "")
            for move in found.moved
        ],
        show,
    )
    _print_some("catalog", [_field(change) for change in found.header], show)
    for title, entries in (("added", found.added), ("retired", found.retired), ("returned", found.returned)):
        _print_some(title, [_entry(entry) for entry in entries], show)
    weights = [f"{one.kcode} {_text(one.drug_name)}: {one.old:g} → {one.new:g}" for one in found.weights]
    _print_some("training weight changed", weights, show)
    changed = [
        f"{one.kcode} {_text(one.drug_name)}: " + "; ".join(_field(change) for change in one.fields)
        for one in found.changed
    ]
    _print_some("described otherwise", changed, show)


def _print_manifest(found: ManifestDiff, show: int) -> None:
    if found.is_empty:
        click.echo("no difference")
        return
    _print_moves(
        "WARNING: in the test split now, but a model of OLD has seen them; its score on NEW is a fiction",
        found.into_test,
        show,
    )
    _print_some(
        "WARNING: new in the test split, of a sitting that a model of OLD has seen; its score on NEW is a fiction",
        list(found.sitting_seen),
        show,
    )
    _print_moves(
        "WARNING: no longer in the test split; the score of a model of NEW on OLD's test split is a fiction",
        found.out_of_test,
        show,
    )
    _print_moves("moved between train and val", found.other_moves, show)
    for title, changes in (
        ("another drug", found.relabelled),
        ("in a capture group that was cut or joined", found.regrouped),
        ("same picture, another path", found.renamed),
        ("described otherwise", found.redescribed),
    ):
        _print_some(title, [_picture(change) for change in changes], show)
    _print_some("same path, another picture", list(found.replaced), show)
    _print_some("added", list(found.added), show)
    _print_some("removed", list(found.removed), show)
    _print_some("summary", [_field(change) for change in found.summary], show)
    _print_catalog(found.catalog, show)
    changed_totals = {split: pair for split, pair in found.totals.items() if pair[0] != pair[1]}
    _print_some("images per split", [_count(split, pair) for split, pair in changed_totals.items()], show)
    lines = [
        f"{kcode}: " + ", ".join(_count(split, pair) for split, pair in splits.items() if pair[0] != pair[1])
        for kcode, splits in found.counts.items()
    ]
    _print_some("images per class", lines, show)


def _print_moves(title: str, moves: Sequence[PictureChange], show: int) -> None:
    kinds = Counter(f"{move.old} → {move.new}" for move in moves)
    shown = [f"{kind}: {number}" if len(kinds) > 1 else kind for kind, number in sorted(kinds.items())]
    title += f" ({', '.join(shown)})"
    _print_some(title, [_picture(move) for move in moves], show)


def _print_some(title: str, lines: list[str], show: int) -> None:
    if not lines:
        return
    click.echo(f"{title}: {len(lines)}")
    for line in lines[:show]:
        click.echo(f"  {line}")
    if len(lines) > show:
        click.echo(f"  and {len(lines) - show} more (--show {len(lines)}, --json)" if show else "  (--show, --json)")


def _entry(entry: DrugEntry) -> str:
    return f"{entry.kcode} {_text(entry.drug_name)} (index {entry.index})"


def _picture(change: PictureChange) -> str:
    if change.key == "path":
        return f"{change.old} → {change.new}"
    key = "" if change.key in ("split", "kcode", "group") else f"{change.key} "
    old, new = (str(value) if isinstance(value, str) else _value(value) for value in (change.old, change.new))
    return f"{change.path}: {key}{old} → {new}"


def _field(change: FieldChange) -> str:
    old, new = _value(change.old), _value(change.new)
    unseen = unicodedata.normalize("NFC", old) == unicodedata.normalize("NFC", new)
    old, new = _cut(old, new), _cut(new, old)
    return f"{change.key} {old} → {new}{' (another Unicode form of the same text)' if unseen else ''}"


def _cut(text: str, other: str) -> str:
    """A long text from a little before the place where it differs from the other one."""
    same = next((at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(other))
    start = max(0, same - 20) if len(text) > _LONGEST else 0
    end = start + _LONGEST
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def _count(name: str, pair: tuple[int, int]) -> str:
    return f"{name} {pair[0]} → {pair[1]}"


def _value(value: Any) -> str:
    from pillsnap.data.compare import Absent

    if value is Absent.ABSENT:
        return "(absent)"
    return json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    """Without line ends and control characters, which would spoil the terminal."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
