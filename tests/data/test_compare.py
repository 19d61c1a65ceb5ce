"""``pillsnap data diff``, ``pillsnap data catalog`` and the comparisons behind them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.catalog import Catalog, Drug
from pillsnap.core.files import sha256_bytes
from pillsnap.core.manifest import ROW_SCHEMA, SPLITS, Manifest
from pillsnap.data.compare import Absent, FieldChange, as_document, compare_catalogs, compare_manifests, field_changes

A, B, C, D = "K-000001", "K-000002", "K-000003", "K-000004"


def catalog(*kcodes: str, version: str = "1", **more: Any) -> Catalog:
    drugs = [Drug(kcode=kcode, drug_name=f"약 {kcode}", **more) for kcode in kcodes]
    return Catalog(version=version, drugs=tuple(drugs))


def write_list(path: Path, *entries: str | dict[str, Any], **more: Any) -> Path:
    drugs = [{"kcode": e, "drug_name": f"약 {e}"} if isinstance(e, str) else e for e in entries]
    path.write_text(json.dumps({"version": "1", "drugs": drugs, **more}, ensure_ascii=False), encoding="utf-8")
    return path


def manifest(root: Path, *rows: dict[str, Any], catalog_: Catalog | None = None, **summary: Any) -> Manifest:
    """``rows``: what is other than a picture of drug A in train, alone in its group, whose bytes are its name."""
    known = catalog_ or catalog(A, B)
    table = []
    for number, row in enumerate(rows):
        path = row.get("path", f"{number}.jpg")
        full = {"path": path, "kcode": A, "split": "train", "domain": "real", "group": path, "sha256": path, **row}
        full["sha256"] = sha256_bytes(full["sha256"].encode())
        full["label"] = known.class_to_idx[full["kcode"]]
        table.append(full)
    return Manifest.build(root, {"name": "tiny", **summary}, pa.Table.from_pylist(table, ROW_SCHEMA), known)


# --- two catalogs


def test_a_new_list_against_the_mapping_in_use():
    old = catalog(A, B, C, note="x").updated(catalog(A, B, note="x"))  # C is retired
    new = old.updated(catalog(D, C, B, version="2", note="y"))
    found = compare_catalogs(old, new)
    assert [(one.kcode, one.index) for one in found.added] == [(D, 3)]
    assert [(one.kcode, one.index) for one in found.retired] == [(A, 0)]
    assert [(one.kcode, one.index) for one in found.returned] == [(C, 2)]
    assert found.moved == ()
    assert found.header == (FieldChange("version", "1", "2"),)
    assert [(one.kcode, one.fields) for one in found.changed] == [
        (B, (FieldChange("note", "x", "y"),)),
        (C, (FieldChange("note", "x", "y"),)),
    ]


def test_weights_are_told_apart():
    old, new = catalog(A, B, training_config={"weight": 1.5, "level": "low"}), catalog(A, B)
    found = compare_catalogs(old, new)
    assert [(one.kcode, one.old, one.new) for one in found.weights] == [(A, 1.5, 1.0), (B, 1.5, 1.0)]
    assert found.changed[0].fields == (FieldChange("training_config.level", "low", Absent.ABSENT),)


def test_a_shifted_a_lost_and_a_reused_index():
    found = compare_catalogs(catalog(A, B, C), catalog(A, D, B))
    assert [(one.kcode, one.old_index, one.new_index, one.now) for one in found.moved] == [
        (B, 1, 2, D),
        (C, 2, None, B),
    ]
    assert [one.kcode for one in found.added] == [D]
    assert found.retired == ()
    free = compare_catalogs(catalog(A, B, C), catalog(A, D, B), fixed=False)
    assert free.moved == ()
    assert [one.kcode for one in free.retired] == [C]


KCODES = st.lists(st.integers(1, 8).map(lambda n: f"K-{n:06d}"), min_size=2, max_size=8, unique=True)


@given(KCODES, KCODES)
def test_an_update_moves_nothing_and_its_diff_is_whole(before, after):
    old, listed = catalog(*before), catalog(*after)
    new = old.updated(listed)
    found = compare_catalogs(old, new)
    assert found.moved == ()
    assert {one.kcode for one in found.added} == set(after) - set(before)
    assert {one.kcode for one in found.retired} == set(before) - set(after)
    assert {one.kcode for one in compare_catalogs(new, new.updated(old)).returned} == set(before) - set(after)
    assert compare_catalogs(new, new).is_empty
    assert found.is_empty == (set(before) == set(after))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": None}, {}),
        ({}, {"a": None}),
        ({"a": {}}, {"a": []}),
        ({"a": "\u00e9"}, {"a": "e\u0301"}),
    ],
)
def test_values_are_compared_to_the_byte(old, new):
    [change] = field_changes(old, new)
    assert change.key == "a"
    assert set(as_document(change)) == {"key"} | ({"old"} if old else set()) | ({"new"} if new else set())
    assert field_changes(old, old) == ()


# --- two manifests


def test_the_same_data_set_elsewhere_is_no_difference(tmp_path):
    rows = [{}, {"split": "test", "kcode": B}]
    found = compare_manifests(manifest(tmp_path / "a", *rows), manifest(tmp_path / "b", *rows))
    assert found.is_empty


def test_a_move_into_the_test_split_is_found_wherever_the_picture_lies(tmp_path):
    old = manifest(
        tmp_path,
        {"path": "stay.jpg"},
        {"path": "plain.jpg"},
        {"path": "from.jpg", "split": "val", "sha256": "bytes"},
        {"path": "edited.jpg", "sha256": "before"},
        {"path": "out.jpg", "split": "test"},
        {"path": "other.jpg", "split": "val"},
    )
    new = manifest(
        tmp_path,
        {"path": "stay.jpg"},
        {"path": "plain.jpg", "split": "test"},
        {"path": "a/to.jpg", "split": "test", "sha256": "bytes"},
        {"path": "edited.jpg", "split": "test", "sha256": "after"},
        {"path": "out.jpg", "split": "train"},
        {"path": "other.jpg", "split": "train"},
    )
    found = compare_manifests(old, new)
    into = [("a/to.jpg", "val"), ("edited.jpg", "train"), ("plain.jpg", "train")]
    assert [(one.path, one.old) for one in found.into_test] == into
    assert [(one.path, one.new) for one in found.out_of_test] == [("out.jpg", "train")]
    assert [one.path for one in found.other_moves] == ["other.jpg"]
    assert [(one.old, one.path) for one in found.renamed] == [("from.jpg", "a/to.jpg")]
    assert found.replaced == ("edited.jpg",)
    assert (found.added, found.removed) == ((), ())
    assert found.totals == {"train": (3, 3), "val": (2, 0), "test": (1, 3)}
    assert found.counts == {A: found.totals}


def test_new_photos_of_a_sitting_that_was_trained_on(tmp_path):
    old = manifest(tmp_path, {"path": "1.jpg", "group": "s1"}, {"path": "2.jpg", "group": "s2", "split": "test"})
    new = manifest(
        tmp_path,
        {"path": "3.jpg", "group": "s1", "split": "test"},
        {"path": "4.jpg", "group": "s2", "split": "test"},
        {"path": "5.jpg", "group": "s3", "split": "test"},
    )
    found = compare_manifests(old, new)
    assert found.sitting_seen == ("3.jpg",)
    assert (found.added, found.removed) == (("3.jpg", "4.jpg", "5.jpg"), ("1.jpg", "2.jpg"))


def test_swapped_files_are_renamed_not_replaced(tmp_path):
    old = manifest(tmp_path, {"path": "a.jpg", "sha256": "one"}, {"path": "b.jpg", "sha256": "two"})
    new = manifest(tmp_path, {"path": "a.jpg", "sha256": "two"}, {"path": "b.jpg", "sha256": "one"})
    found = compare_manifests(old, new)
    assert [(one.old, one.path) for one in found.renamed] == [("b.jpg", "a.jpg"), ("a.jpg", "b.jpg")]
    assert found.replaced == ()


def test_labels_and_descriptions(tmp_path):
    old = manifest(tmp_path, {"light": 1}, {"box_x": 1, "box_y": 1, "box_width": 9, "box_height": 9})
    new = manifest(tmp_path, {"kcode": B, "light": 2, "domain": "studio"}, {"box_x": 2, "box_y": 1, "box_width": 9})
    found = compare_manifests(old, new)
    assert [(one.path, one.old, one.new) for one in found.relabelled] == [("0.jpg", A, B)]
    described = {(one.path, one.key, one.old, one.new) for one in found.redescribed}
    expected = {("0.jpg", "light", 1, 2), ("0.jpg", "domain", "real", "studio"), ("1.jpg", "box_x", 1, 2)}
    assert described == {*expected, ("1.jpg", "box_height", 9, None)}
    assert found.counts[B]["train"] == (0, 1)


def test_a_picture_with_two_boxes_is_two_rows(tmp_path):
    boxes = [{"box_x": x, "box_y": 0, "box_width": 9, "box_height": 9, "path": "both.png"} for x in (0, 50)]
    old = manifest(tmp_path, {**boxes[0]}, {**boxes[1], "kcode": B})
    new = manifest(tmp_path, {**boxes[1], "kcode": B}, {**boxes[0], "split": "test"})
    found = compare_manifests(old, new)
    assert [(one.path, one.old) for one in found.into_test] == [("both.png", "train")]
    assert (found.relabelled, found.added, found.removed, found.redescribed) == ((), (), (), ())


def test_groups_that_were_cut_or_joined(tmp_path):
    def groups(*names):
        return manifest(tmp_path, *[{"group": name} for name in names])

    assert compare_manifests(groups("a", "a", "b"), groups("x", "x", "y")).regrouped == ()
    cut = compare_manifests(groups("a", "a", "b"), groups("a", "c", "b")).regrouped
    assert [(one.path, one.old, one.new) for one in cut] == [("0.jpg", "a", "a"), ("1.jpg", "a", "c")]
    joined = compare_manifests(groups("a", "a", "b"), groups("a", "a", "a")).regrouped
    assert [one.path for one in joined] == ["0.jpg", "1.jpg", "2.jpg"]


def test_settings_and_catalog(tmp_path):
    counted: dict[str, Any] = {"groups": 1, "splits": {"train": 1}, "classes": {A: 1}}
    old = manifest(tmp_path, {}, **counted, seed=1, preprocessing={"target_size": 512, "mean": [0.5]})
    counted = {"groups": 2, "splits": {"train": 2}, "classes": {}}
    spec = {"target_size": 384, "mean": [0.5]}
    new = manifest(tmp_path, {}, catalog_=catalog(A, C, B), **counted, seed=2, preprocessing=spec)
    found = compare_manifests(old, new)
    settings = (FieldChange("seed", 1, 2), FieldChange("preprocessing.target_size", 512, 384))
    assert found.summary == (*settings, FieldChange("groups", 1, 2))
    assert [(one.kcode, one.new_index) for one in found.catalog.moved] == [(B, 2)]
    assert not found.is_empty


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(SPLITS), st.sampled_from([A, B])),
    max_size=6,
    unique_by=lambda row: row[0],
)


@given(ROWS, ROWS)
def test_every_row_is_accounted_for_once(before, after):
    def made(rows):
        return manifest(
            Path(), *[{"path": f"{p}.jpg", "sha256": str(s), "split": x, "kcode": k} for p, s, x, k in rows]
        )

    found = compare_manifests(made(before), made(after))
    paired = len(after) - len(found.added)
    assert len(before) - len(found.removed) == paired
    assert paired <= min(len(before), len(after))
    same_bytes = {s for _, s, _, _ in before} & {s for _, s, _, _ in after}
    same_paths = {p for p, *_ in before} & {p for p, *_ in after}
    assert paired >= len(same_bytes)
    assert not {f"{p}.jpg" for p in same_paths} & set(found.added) & set(found.removed)
    assert compare_manifests(made(before), made(before)).is_empty
    back = compare_manifests(made(after), made(before))
    assert len(back.added) == len(found.removed)


# --- the commands


def test_catalog_diff(call, tmp_path):
    old = catalog(A, B, C)
    old.write_class_mapping(tmp_path / "class_mapping.json")
    name = unicodedata.normalize("NFD", f"약 {C}")
    entry = {"kcode": C, "drug_name": name, "training_config": {"weight": 2}}
    new = write_list(tmp_path / "new.json", entry, "K-4", "k1")
    status, out, err = call("data", "catalog", "diff", tmp_path, new)
    assert (status, err) == (0, "")
    for line in (
        "added: 1\n  K-000004 약 K-4 (index 3)\n",
        "retired: 1\n  K-000002 약 K-000002 (index 1)\n",
        f"training weight changed: 1\n  {C} {name}: 1 → 2\n",
        "(another Unicode form of the same text)",
    ):
        assert line in out
    assert "INDEX MOVED" not in out
    assert call("data", "catalog", "diff", tmp_path, new, "--exit-code")[0] == 1
    status, out, _ = call("data", "catalog", "diff", tmp_path, tmp_path, "--exit-code")
    assert (status, out) == (0, "no difference: 3 drugs\n")
    status, out, _ = call("data", "catalog", "diff", tmp_path, new, "--json")
    document = json.loads(out)
    assert (status, document["different"]) == (0, True)
    assert document["weights"] == [{"kcode": C, "drug_name": name, "old": 1.0, "new": 2.0}]
    assert document["added"] == [{"kcode": D, "drug_name": "약 K-4", "index": 3}]


def test_mappings_that_break_the_promise_are_an_error(call, tmp_path):
    catalog(A, B, C).write_class_mapping(tmp_path / "old.json")
    catalog(A, D, B).write_class_mapping(tmp_path / "new.json")
    status, out, err = call("data", "catalog", "diff", tmp_path / "old.json", tmp_path / "new.json")
    assert status == 1
    assert out.startswith("INDEX MOVED: 2\n  K-000002: 1 → 2 (index 1 is now K-000004)\n  K-000003: 2 → none")
    assert "2 drugs have not the index" in err
    assert "pillsnap data catalog update" in err
    listed = write_list(tmp_path / "list.json", B, A, D)
    status, out, _ = call("data", "catalog", "diff", listed, tmp_path / "new.json")
    assert (status, "MOVED" in out) == (0, False)


def test_catalog_update(call, tmp_path):
    mapping, out_file = tmp_path / "class_mapping.json", tmp_path / "next" / "class_mapping.json"
    catalog(A, B, C).write_class_mapping(mapping)
    listed = write_list(tmp_path / "list.json", D, C)
    status, out, err = call("data", "catalog", "update", mapping, listed, "--out", out_file)
    assert status == 0, err
    assert "retired: 2" in out
    assert f"written: {out_file}\n" in out
    written = Catalog.from_class_mapping(out_file)
    assert written == catalog(A, B, C).updated(Catalog.from_drug_list(listed))
    status, out, _ = call("data", "catalog", "update", out_file, listed, "--out", out_file)
    assert (status, "(no difference)" in out) == (0, True)
    assert Catalog.from_class_mapping(out_file) == written


@pytest.mark.parametrize("target", ["manifest/class_mapping.json", "list.json", "ahead.json", "folder", "broken.json"])
def test_catalog_update_overwrites_nothing_that_it_must_not(call, tmp_path, target):
    mapping = tmp_path / "mapping.json"
    catalog(A, B).write_class_mapping(mapping)
    catalog(A, C, B).write_class_mapping(tmp_path / "ahead.json")
    listed = write_list(tmp_path / "list.json", A, D)
    manifest(tmp_path / "manifest", {}).save()
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.json").write_text("{")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, _, err = call("data", "catalog", "update", mapping, listed, "--out", tmp_path / target)
    assert status == 1
    assert str(tmp_path / target) in err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_an_update_starts_from_a_mapping(call, tmp_path):
    listed = write_list(tmp_path / "list.json", A, B)
    status, _, err = call("data", "catalog", "update", listed, listed, "--out", tmp_path / "out.json")
    assert (status, "list.json: is a drug list, whose order says nothing" in err) == (1, True)
    assert not (tmp_path / "out.json").exists()
    assert call("data", "catalog", "update", listed, listed)[0] == 2
    status, _, err = call("data", "catalog", "diff", listed, tmp_path / "none.json")
    assert (status, "none.json: no such file" in err) == (1, True)


def test_long_values_are_shown_where_they_differ(call, tmp_path):
    old = write_list(tmp_path / "old.json", A, {"kcode": B, "drug_name": "b", "note": "x" * 500 + "old" + "y" * 500})
    new = write_list(tmp_path / "new.json", A, {"kcode": B, "drug_name": "b", "note": "x" * 500 + "new" + "y" * 500})
    _, out, _ = call("data", "catalog", "diff", old, new)
    line = out.splitlines()[1]
    assert f"note …{'x' * 20}oldyy" in line
    assert f"y… → …{'x' * 20}newyy" in line
    assert len(line) < 300
    assert "Unicode" not in line


def test_manifest_diff(call, tmp_path):
    rows = [{"path": f"{n:02d}.jpg", "kcode": (A, B)[n % 2]} for n in range(8)]
    manifest(tmp_path / "old", *rows, seed=1).save()
    moved = [{**row, "split": "test"} for row in rows]
    manifest(tmp_path / "new", *moved, {"path": "new.jpg"}, seed=2).save()
    status, out, err = call("data", "diff", tmp_path / "old", tmp_path / "new" / "manifest.json", "--show", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"old: {tmp_path / 'old'}  manifest ")
    assert lines[2].startswith("WARNING: in the test split now, but a model of OLD has seen them")
    assert lines[2].endswith("(train → test): 8")
    assert lines[3:6] == ["  00.jpg: train → test", "  01.jpg: train → test", "  and 6 more (--show 8, --json)"]
    assert "added: 1\n  new.jpg\n" in out
    assert "summary: 1\n  seed 1 → 2\n" in out
    assert "images per split: 2\n  train 8 → 1\n  test 0 → 8\n" in out
    assert f"  {B}: train 4 → 0, test 0 → 4\n" in out
    status, out, _ = call("data", "diff", tmp_path / "old", tmp_path / "new", "--json", "--exit-code")
    document = json.loads(out)
    assert (status, document["different"], len(document["into_test"])) == (1, True, 8)
    assert document["into_test"][0] == {"path": "00.jpg", "key": "split", "old": "train", "new": "test"}
    assert document["totals"]["test"] == [0, 8]
    assert document["new"]["hash"] == Manifest.load(tmp_path / "new").hash
    status, out, _ = call("data", "diff", tmp_path / "old", tmp_path / "old", "--exit-code")
    assert (status, out.splitlines()[-1]) == (0, "no difference")
    status, _, err = call("data", "diff", tmp_path / "old", tmp_path / "none")
    assert (status, "holds no manifest.json" in err) == (1, True)


@pytest.mark.parametrize("command", [("diff",), ("catalog", "diff"), ("catalog", "update")])
def test_help(call, command):
    status, out, _ = call("data", *command, "--help")
    assert status == 0
    assert "Usage:" in out
