"""Bring the class mapping that is in use up to a new drug list, as a file. Knows what it must not overwrite."""

from __future__ import annotations

from pathlib import Path

from pillsnap.core.catalog import Catalog, find_catalog_file, is_class_mapping
from pillsnap.core.errors import CatalogError
from pillsnap.core.manifest import SUMMARY_FILE
from pillsnap.data.compare import CatalogDiff, compare_catalogs


def update_class_mapping(mapping: Path, drug_list: Path, out: Path) -> CatalogDiff:
    """Write ``mapping``, brought up to ``drug_list``, to ``out`` (which may be ``mapping`` itself).

    Returns:
        What is different from ``mapping``.

    Raises:
        CatalogError: a faulty file, ``mapping`` is a list, ``out`` belongs to a manifest, or holds something that
            the new mapping does not go on from.
        DataError: a file that is not there.
    """
    old, new_list = load_class_mapping(mapping), Catalog.from_drug_list(drug_list)
    new = old.updated(new_list)
    _check_target(out, new)
    new.write_class_mapping(out)
    return compare_catalogs(old, new)


def load_class_mapping(path: Path) -> Catalog:
    """A class mapping, or the one in a folder. Raises CatalogError for a drug list: its order is no promise."""
    file = find_catalog_file(path)
    if not is_class_mapping(file):
        raise CatalogError(
            f"{file}: is a drug list, whose order says nothing; give the class_mapping.json in use, which lies in the "
            "folder of a prepared data set"
        )
    return Catalog.from_class_mapping(file)


def read_for_comparison(old: Path, new: Path) -> tuple[Catalog, Catalog, bool]:
    """Two catalogs (lists, mappings or their folders), and whether the places in both are indices.

    A new list is what it would make of the old catalog: known drugs keep their index.
    """
    old_file, new_file = find_catalog_file(old), find_catalog_file(new)
    before, after = Catalog.load(old_file), Catalog.load(new_file)
    if not is_class_mapping(new_file):
        return before, before.updated(after), True
    return before, after, is_class_mapping(old_file)


def _check_target(out: Path, new: Catalog) -> None:
    if out.is_dir():
        raise CatalogError(f"{out}: is a folder; name the file to write, such as {out / 'class_mapping.json'}")
    if (out.parent / SUMMARY_FILE).exists():
        raise CatalogError(
            f"{out}: {out.parent} is a manifest, whose hash covers its class mapping; write elsewhere, and prepare "
            "a new data set with it"
        )
    if not out.exists():
        return
    there = load_class_mapping(out)
    moved = compare_catalogs(there, new).moved
    if moved:
        raise CatalogError(
            f"{out}: holds a mapping whose indices would change ({moved[0].kcode} has index {moved[0].old_index}); "
            "start from that one, or write to a new file"
        )
