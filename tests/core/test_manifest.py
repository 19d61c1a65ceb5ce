import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pillsnap.core.catalog import Catalog, Drug
from pillsnap.core.errors import ImageError, ManifestError, TamperedError
from pillsnap.core.files import sha256_bytes, write_json
from pillsnap.core.manifest import ROW_SCHEMA, SPLITS, Manifest

CATALOG = Catalog(version="1", drugs=(Drug(kcode="K-1", drug_name="하나"), Drug(kcode="K-2", drug_name="둘")))


def rows(*changes):
    table = []
    for index in range(4):
        row = {
            "path": f"real_photos/K-00000{index % 2 + 1}/{index}.jpg",
            "kcode": f"K-00000{index % 2 + 1}",
            "label": index % 2,
            "split": ("train", "train", "val", "test")[index],
            "domain": "real",
            "group": f"g{index}",
            "background": index if index else None,
            "sha256": sha256_bytes(b"%d" % index),
        }
        table.append(row)
    for index, key, value in changes:
        table[index][key] = value
    return pa.Table.from_pylist(table, schema=ROW_SCHEMA)


def build(root, table=None, **summary):
    return Manifest.build(root, {"name": "tiny", **summary}, rows() if table is None else table, CATALOG)


def test_what_is_saved_is_loaded(tmp_path):
    built = build(tmp_path)
    built.save()
    for root in (tmp_path, tmp_path / "manifest.json"):
        loaded = Manifest.load(str(root))
        assert loaded.hash == built.hash
        assert loaded.rows.equals(built.rows)
        assert loaded.catalog == built.catalog
        assert loaded.summary == built.summary
    assert loaded.split("train").num_rows == 2
    assert loaded.labels(loaded.split("val")).tolist() == [0]


def test_the_order_of_rows_and_the_place_do_not_matter(tmp_path):
    upside_down = rows().take([3, 1, 0, 2])
    assert build(tmp_path / "elsewhere", upside_down).hash == build(tmp_path).hash


@pytest.mark.parametrize(
    "change",
    [
        (0, "path", "other.jpg"),
        (0, "label", 1),
        (1, "split", "test"),
        (1, "domain", "studio"),
        (2, "group", "g3"),
        (2, "background", None),
        (3, "sha256", "0" * 64),
        (3, "box_x", 5),
    ],
)
def test_any_other_value_gives_another_hash(tmp_path, change):
    assert build(tmp_path, rows(change)).hash != build(tmp_path).hash


def test_summary_and_classes_are_in_the_hash(tmp_path):
    assert build(tmp_path, seed=1).hash != build(tmp_path).hash
    other = Catalog(version="1", drugs=(CATALOG.drugs[0], Drug(kcode="K-2", drug_name="셋")))
    assert Manifest.build(tmp_path, {"name": "tiny"}, rows(), other).hash != build(tmp_path).hash


def test_changed_files_of_the_manifest_are_noticed(tmp_path):
    build(tmp_path).save()
    pq.write_table(rows((0, "split", "test")), tmp_path / "rows.parquet")
    with pytest.raises(TamperedError, match="changed after it was made"):
        Manifest.load(tmp_path)
    build(tmp_path).save()
    summary = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**summary, "name": "other"}))
    with pytest.raises(TamperedError):
        Manifest.load(tmp_path)
    build(tmp_path).save()
    mapping = (tmp_path / "class_mapping.json").read_text(encoding="utf-8")
    (tmp_path / "class_mapping.json").write_text(mapping.replace("하나", "셋"), encoding="utf-8")
    with pytest.raises(TamperedError):
        Manifest.load(tmp_path)


def test_missing_and_damaged_manifests(tmp_path):
    with pytest.raises(ManifestError, match="pillsnap data prepare"):
        Manifest.load(tmp_path)
    build(tmp_path).save()
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ManifestError, match="prepare again"):
        Manifest.load(tmp_path)
    build(tmp_path).save()
    pq.write_table(rows().drop_columns(["group"]), tmp_path / "rows.parquet")
    with pytest.raises(ManifestError, match="prepare again"):
        Manifest.load(tmp_path)
    build(tmp_path).save()
    (tmp_path / "class_mapping.json").unlink()
    with pytest.raises(ManifestError, match="prepare again"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"manifest_version": "9"}')
    with pytest.raises(ManifestError, match="not a manifest of version"):
        Manifest.load(tmp_path)


def test_pictures_are_checked_when_they_are_read(tmp_path):
    manifest = build(tmp_path)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"pill")
    assert manifest.read_image("a.jpg", sha256_bytes(b"pill")) == b"pill"
    with pytest.raises(TamperedError, match=r"a\.jpg: was changed"):
        manifest.read_image("a.jpg", sha256_bytes(b"other"))
    with pytest.raises(ImageError, match=r"none\.jpg: cannot be read"):
        manifest.read_image("none.jpg", "0")


def test_splits_are_written_as_the_specification_has_them(tmp_path):
    manifest = build(tmp_path)
    manifest.save()
    document = json.loads((tmp_path / "splits.json").read_text())
    assert document["manifest_hash"] == manifest.hash
    assert document["counts"] == {"train": 2, "val": 1, "test": 1}
    paths = dict(zip(*(manifest.rows[name].to_pylist() for name in ("path", "split")), strict=True))
    assert {path: split for split in SPLITS for path in document["splits"][split]} == paths


def test_the_same_input_gives_the_same_bytes(tmp_path):
    build(tmp_path / "one").save()
    build(tmp_path / "two", rows().take([3, 1, 0, 2])).save()
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["class_mapping.json", "manifest.json", "rows.parquet", "splits.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("broken", ["class_mapping.json", "rows.parquet", "splits.json", "manifest.json"])
def test_what_goes_wrong_in_writing_leaves_the_former_manifest(tmp_path, monkeypatch, broken):
    former = build(tmp_path)
    former.save()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails_for(function, place):
        def write(*arguments, **options):
            if broken in str(arguments[place]):
                raise OSError("No space left on device")
            return function(*arguments, **options)

        return write

    monkeypatch.setattr("pillsnap.core.manifest.write_json", fails_for(write_json, 0))
    monkeypatch.setattr("pillsnap.core.catalog.write_json", fails_for(write_json, 0))
    monkeypatch.setattr("pillsnap.core.manifest.pq.write_table", fails_for(pq.write_table, 1))
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path, rows((0, "split", "test"))).save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert Manifest.load(tmp_path).hash == former.hash
