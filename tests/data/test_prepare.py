import dataclasses
import json
import os
import shutil

import cv2
import pyarrow.parquet as pq
import pytest

from pillsnap.core.errors import CatalogError, ConfigError, DataError
from pillsnap.core.experiment import AugmentationConfig
from pillsnap.core.manifest import SPLITS, Manifest
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.data.prepare import prepare


def ledger(out):
    return pq.read_table(out / "pictures.parquet").to_pylist()


def snapshot(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    """A data set that tests only look at."""
    root = tmp_path_factory.mktemp("prepared")
    return prepare(tiny.request(tiny.raw(root / "raw"), root / "out"))


def test_summary(prepared):
    summary = Manifest.load(prepared.manifest.root).summary
    assert (summary["name"], summary["version"], summary["date"]) == ("pillsnap", "1.2", "2026-01-02")
    assert summary["num_classes"] == 2
    # 16 real photos a class: 16 / 0.7 = 22.9, so 7 studio images
    assert summary["total_images"] == 46
    assert summary["domains"] == {"studio": 14, "real": 32}
    assert sum(summary["splits"].values()) == 46
    assert summary["classes"]["K-000059"]["studio_available"] == 24
    assert summary["classes"]["K-000059"]["missing"] == []
    assert summary["preprocessing"] == PreprocessingSpec(target_size=24).get_config()
    assert summary["augmentation"]["train"]["rotation_degrees"] == 30
    assert summary["augmentation"]["val"] is summary["augmentation"]["test"] is None
    assert not prepared.reused


def test_rows(prepared):
    manifest = prepared.manifest
    rows = manifest.rows.to_pylist()
    assert {row["path"].split("/")[0] for row in rows} == {"studio", "real_photos"}
    assert {(row["kcode"], row["label"]) for row in rows} == {("K-000059", 0), ("K-030864", 1)}
    for row in rows:
        manifest.read_image(row["path"], row["sha256"])
    by_group = {}
    for row in rows:
        assert by_group.setdefault(row["group"], row["split"]) == row["split"]
    for kcode in manifest.catalog.kcodes:
        for domain in ("studio", "real"):
            assert {row["split"] for row in rows if (row["kcode"], row["domain"]) == (kcode, domain)} == set(SPLITS)
    back = next(row for row in rows if row["path"].endswith("K-000059_1_0_1_0_90_045_200.jpg"))
    assert [back[key] for key in ("background", "light", "side", "elevation", "rotation")] == [1, 0, 1, 90, 45]


PUBLISHED = ("manifest.json", "rows.parquet", "splits.json", "class_mapping.json", "pictures.parquet", "report.json")


def same_bytes(one, two):
    return [name for name in PUBLISHED if (one / name).read_bytes() != (two / name).read_bytes()] == []


def test_another_place_gives_the_same_bytes(tiny, prepared, tmp_path):
    elsewhere = tiny.raw(tmp_path / "another" / "place" / "raw")
    prepare(tiny.request(elsewhere, tmp_path / "out", workers=1))
    assert same_bytes(tmp_path / "out", prepared.manifest.root)


def test_another_order_gives_the_same_bytes(tiny, raw, prepared, tmp_path, monkeypatch):
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    prepare(tiny.request(raw, tmp_path / "out", workers=5))
    assert same_bytes(tmp_path / "out", prepared.manifest.root)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"name": "other"},
        {"ratio": 0.5},
        {"preprocessing": PreprocessingSpec(target_size=32)},
        {"augmentation": AugmentationConfig(rotation_degrees=10)},
    ],
)
def test_other_rules_give_another_hash(tiny, raw, prepared, tmp_path, changes):
    assert prepare(tiny.request(raw, tmp_path / "out", **changes)).manifest.hash != prepared.manifest.hash


def test_a_second_run_touches_nothing(tiny, raw, tmp_path):
    request = tiny.request(raw, tmp_path / "out")
    first = prepare(request)
    before = snapshot(request.out)
    stages = []
    second = prepare(request, lambda stage, done, total: stages.append(stage))
    assert second.reused
    assert second.manifest.hash == first.manifest.hash
    assert snapshot(request.out) == before
    assert "reading pictures" not in stages


def test_only_what_is_new_is_read(tiny, raw, tmp_path):
    request = tiny.request(raw, tmp_path / "out")
    first = prepare(request)
    tiny.picture(raw / "real_photos" / "K-000059" / "K-000059_4_2_0_0_90_000_200.jpg")
    totals = set()
    second = prepare(request, lambda stage, done, total: totals.add((stage, total)))
    assert ("reading pictures", 1) in totals
    assert not second.reused
    assert second.manifest.hash != first.manifest.hash


@pytest.mark.parametrize(
    "leftover", ["no manifest", "half a manifest", "no rows", "bad scan", "stray part", "broken link", "no report"]
)
def test_leftovers_of_an_interrupted_run(tiny, raw, prepared, tmp_path, leftover):
    request = tiny.request(raw, tmp_path / "out")
    prepare(request)
    match leftover:
        case "no manifest":
            (request.out / "manifest.json").unlink()
        case "half a manifest":
            (request.out / "manifest.json").write_text('{"manifest_version": "1.')
        case "no rows":
            (request.out / "rows.parquet").unlink()
        case "bad scan":
            (request.out / "scan.db").write_bytes(b"nonsense" * 1000)
        case "stray part":
            (request.out / ".manifest.json.x.part").write_text("{")
            (request.out / "studio" / ".link-x").mkdir()
        case "broken link":
            (request.out / "studio" / "K-000059").unlink()
            (request.out / "studio" / "K-000059").symlink_to("nowhere")
        case "no report":
            (request.out / "report.json").unlink()
    assert prepare(request).manifest.hash == prepared.manifest.hash
    assert Manifest.load(request.out).hash == prepared.manifest.hash
    assert (request.out / "report.json").is_file()
    assert (request.out / "studio" / "K-000059").is_dir()


def test_an_interrupted_scan_goes_on_where_it_stopped(tiny, raw, tmp_path):
    def interrupt(stage, done, total):
        if stage == "reading pictures" and done == 30:
            raise KeyboardInterrupt

    request = tiny.request(raw, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        prepare(request, interrupt)
    assert not (request.out / "manifest.json").exists()
    totals = set()
    prepare(request, lambda stage, done, total: totals.add((stage, total)))
    assert ("reading pictures", 80 - 29) in totals


def test_damaged_pictures_are_listed_and_dropped(tiny, raw, tmp_path):
    folder = raw / "real_photos" / "K-000059"
    truncated, text, empty = sorted(folder.iterdir())[:3]
    truncated.write_bytes(truncated.read_bytes()[:-40])
    text.write_text("this is no picture")
    empty.write_bytes(b"")
    tiny.picture(folder / "K-030864_0_0_0_0_90_090_200.jpg")
    result = prepare(tiny.request(raw, tmp_path / "out", max_damage=0.1))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = {
        path.rpartition("/")[2]: (code, reason)
        for code, paths in report["left_out"].items()
        for path, reason in paths.items()
    }
    assert {name: code for name, (code, _) in found.items()} == {
        truncated.name: "truncated",
        text.name: "unsupported_format",
        empty.name: "empty",
        "K-030864_0_0_0_0_90_090_200.jpg": "wrong_folder",
    }
    assert "named after K-030864" in found["K-030864_0_0_0_0_90_090_200.jpg"][1]
    assert result.manifest.summary["classes"]["K-000059"]["real"] == 13
    assert (tmp_path / "out" / "audit.html").is_file()


def test_broken_pieces_stop_nothing(tiny, raw, tmp_path):
    """One in a hundred: a report, and a manifest of the rest."""
    for kcode in tiny.kcodes:
        for number in range(160):
            tiny.picture(raw / "real_photos" / kcode / f"IMG_{number}.jpg", f"{kcode} {number}")
    broken = sorted((raw / "real_photos" / "K-000059").glob("IMG*"))[::40]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    result = prepare(tiny.request(raw, tmp_path / "out"))
    assert sorted(result.report["left_out"]["truncated"]) == [f"real_photos/K-000059/{one.name}" for one in broken]
    assert result.report["pictures_found"] == 400
    assert sum(row["domain"] == "real" for row in result.manifest.rows.to_pylist()) == 352 - 4


def everything(out):
    """Every file and link of a data set, but for the scan's own book-keeping."""
    return {
        str(path.relative_to(out)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in out.rglob("*")
        if (path.is_symlink() or path.is_file()) and not path.name.startswith(("scan.db", "refused.json"))
    }


def test_too_much_damage_stops(tiny, raw, tmp_path):
    prepare(tiny.request(raw, tmp_path / "out"))
    before = everything(tmp_path / "out")
    for path in sorted((raw / "studio" / "K-000059").iterdir())[:5]:
        path.write_text("this is no picture")
    with pytest.raises(DataError, match=r"5 of 80 pictures .* over the limit of 5%"):
        prepare(tiny.request(raw, tmp_path / "out"))
    assert everything(tmp_path / "out") == before
    report = json.loads((tmp_path / "out" / "refused.json").read_text())
    assert len(report["left_out"]["unsupported_format"]) == 5
    with pytest.raises(DataError, match=r"over the limit of 5%"):
        prepare(tiny.request(raw, tmp_path / "first"))
    assert not (tmp_path / "first" / "manifest.json").exists()
    assert not (tmp_path / "first" / "pictures.parquet").exists()
    assert prepare(tiny.request(raw, tmp_path / "out", max_damage=0.07)).manifest.rows.num_rows
    assert not (tmp_path / "out" / "refused.json").exists()


def test_what_nobody_takes_is_reported_and_changes_nothing(tiny, raw, tmp_path):
    hash_of_tidy = prepare(tiny.request(raw, tmp_path / "tidy")).manifest.hash
    tiny.picture(raw / "real_photos" / "loose.jpg")
    (raw / "studio" / "K-000059" / "a.dng").touch()
    result = prepare(tiny.request(raw, tmp_path / "out"))
    assert result.manifest.hash == hash_of_tidy
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["overlooked"] == {
        "studio": {"unknown_ending": {"count": 1, "first": ["K-000059/a.dng"]}},
        "real": {"in_no_drug_folder": {"count": 1, "first": ["loose.jpg"]}},
    }
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "K-000059/a.dng" in page
    assert "loose.jpg" in page


@pytest.mark.parametrize("how", ["no folder", "no picture", "all broken"])
def test_a_failed_run_leaves_everything_as_it_was(tiny, raw, tmp_path, how):
    request = tiny.request(raw, tmp_path / "out", max_damage=1)
    prepare(request)
    before = everything(request.out)
    shutil.rmtree(raw / "studio" / "K-000059")
    folder = raw / "real_photos" / "K-000059"
    for path in sorted(folder.iterdir()):
        if how == "all broken":
            path.write_bytes(b"")
        else:
            path.unlink()
    if how == "no folder":
        folder.rmdir()
    with pytest.raises(DataError, match=r"K-000059 .*: no usable picture"):
        prepare(request)
    assert everything(request.out) == before
    assert (request.out / "report.json").is_file()


def test_empty_class(tiny, raw, tmp_path):
    tiny.drug_list(raw / "drugs.json", [*tiny.kcodes, "K-777777"])
    with pytest.raises(DataError, match=r"K-777777 \(약 K-777777\): no usable picture"):
        prepare(tiny.request(raw, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_class_with_only_damaged_pictures_is_empty(tiny, raw, tmp_path):
    tiny.drug_list(raw / "drugs.json", [*tiny.kcodes, "K-777777"])
    (raw / "studio" / "K-777777").mkdir()
    (raw / "studio" / "K-777777" / "a.png").write_text("this is no picture")
    with pytest.raises(DataError, match="K-777777"):
        prepare(tiny.request(raw, tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_missing_folder(tiny, raw, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        prepare(tiny.request(raw, tmp_path / "out", studio=tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kcodes", "message"),
    [
        (["K-000059", "K-"], "drug 2: K-CODE 'K-'"),
        (["K-000059", "59"], r"K-000059 is listed twice \(drugs 1 and 2\)"),
        (["K-000059"], "at least 2 drugs"),
    ],
)
def test_bad_drug_list(tiny, raw, tmp_path, kcodes, message):
    tiny.drug_list(raw / "drugs.json", kcodes)
    with pytest.raises(CatalogError, match=message):
        prepare(tiny.request(raw, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_copies(tiny, raw, tmp_path):
    original = sorted((raw / "real_photos" / "K-000059").iterdir())[0]
    shutil.copy(original, original.with_name("copy.jpg"))
    request = tiny.request(raw, tmp_path / "out")
    result = prepare(request)
    here = f"real_photos/K-000059/{original.name}"
    assert result.report["duplicate"] == {"real_photos/K-000059/copy.jpg": here}
    shutil.copy(original, raw / "real_photos" / "K-030864" / "wrong.jpg")
    result = prepare(request)
    left_out = result.report["left_out"]["duplicate_across_classes"]
    assert set(left_out) == {here, "real_photos/K-000059/copy.jpg", "real_photos/K-030864/wrong.jpg"}
    assert "is the same file as" in left_out[here]
    assert here in left_out["real_photos/K-030864/wrong.jpg"]
    assert not set(left_out).intersection(result.manifest.rows["path"].to_pylist())
    assert {row["code"] for row in ledger(request.out) if row["path"] in left_out} == {"duplicate_across_classes"}


def test_a_resaved_copy_lands_in_the_split_of_its_original(tiny, raw, tmp_path):
    """JPEG of quality 60, half the size, under the phone's own name."""
    request = tiny.request(raw, tmp_path / "out")
    for path in sorted((raw / "real_photos").rglob("*.jpg")):
        path.write_bytes(tiny.picture_bytes(f"large {path.name}", ".jpg", 128))
    for path in sorted((raw / "real_photos").rglob("K-*.jpg")):
        small = cv2.resize(cv2.imread(str(path)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(path.with_name(f"IMG {path.name[1:]}")), small, [cv2.IMWRITE_JPEG_QUALITY, 60])
    rows = {row["path"].rpartition("/")[2]: row for row in prepare(request).manifest.rows.to_pylist()}
    originals = [name for name in rows if name.startswith("K-") and rows[name]["domain"] == "real"]
    assert len(originals) == 32
    for name in originals:
        copy = rows[f"IMG {name[1:]}"]
        assert (copy["split"], copy["group"]) == (rows[name]["split"], rows[name]["group"])
    assert {rows[name]["split"] for name in originals} == set(SPLITS)


def test_short_classes_are_reported(tiny, raw, tmp_path):
    result = prepare(tiny.request(raw, tmp_path / "out", minimum=100))
    short = result.report["classes"]["K-000059"]
    assert (short["real"], short["studio_used"], short["wanted"], short["shortfall"]) == (16, 24, 100, 60)
    assert (short["missing_real"], short["missing_studio"]) == (54, 6)
    assert sum(cell["photos"] for cell in short["photograph_next"]) == 54
    assert (short["photograph_next"][0]["background"], short["photograph_next"][0]["side"]) == ("white", "front")


def test_only_studio(tiny, raw, tmp_path):
    result = prepare(tiny.request(raw, tmp_path / "out", real=None))
    assert result.manifest.summary["domains"]["real"] == 0
    assert "test/real" in result.manifest.summary["classes"]["K-000059"]["missing"]
    assert "no real photos" in result.report["classes"]["K-000059"]["problems"]


def test_the_ledger_has_every_picture_once(tiny, raw, tmp_path):
    (raw / "studio" / "K-000059" / "broken.png").write_bytes(b"")
    result = prepare(tiny.request(raw, tmp_path / "out"))
    rows = ledger(tmp_path / "out")
    on_disk = sorted(
        f"{tree}/{path.relative_to(raw / tree).as_posix()}"
        for tree in ("studio", "real_photos")
        for path in (raw / tree).rglob("*.*")
    )
    assert sorted(row["path"] for row in rows) == on_disk
    used = {row["path"]: row["split"] for row in result.manifest.rows.to_pylist()}
    assert {row["path"]: row["split"] for row in rows if row["used"]} == used
    assert [row["code"] for row in rows if row["code"]] == ["empty"]
    assert all(row["split"] for row in rows if not row["code"])


def test_combinations_only_train_and_carry_their_box(tiny, raw, tmp_path):
    folder = raw / "studio" / "K-000059-030864"
    for kcode, x in zip(tiny.kcodes, (1, 10), strict=True):
        label = {"images": [{"drug_N": kcode}], "annotations": [{"bbox": [x, 2, 12, 20]}]}
        for number in range(4):
            stem = f"K-000059-030864_0_{number % 3}_0_0_90_{number * 20:03d}_200"
            tiny.picture(folder / f"{stem}.png")
            path = raw / "studio" / "K-000059-030864_json" / kcode / f"{stem}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(label))
    assert prepare(tiny.request(raw, tmp_path / "without")).report["pictures_found"] == 80
    result = prepare(tiny.request(raw, tmp_path / "out", combinations=True, ratio=0.2))
    rows = [row for row in result.manifest.rows.to_pylist() if "K-000059-030864_" in row["path"]]
    assert {(row["kcode"], row["box_x"], row["box_y"], row["box_width"], row["box_height"]) for row in rows} == {
        ("K-000059", 1, 2, 12, 20),
        ("K-030864", 10, 2, 12, 20),
    }
    assert len(rows) == 8
    assert {row["split"] for row in rows} == {"train"}
    assert all(row["box_x"] is None for row in result.manifest.rows.to_pylist() if row not in rows)


def test_nothing_to_prepare(tiny, raw, tmp_path):
    with pytest.raises(ConfigError, match="neither studio nor real"):
        tiny.request(raw, tmp_path, studio=None, real=None)
    with pytest.raises(ConfigError, match=r"ratio=1\.5"):
        tiny.request(raw, tmp_path, ratio=1.5)


def test_the_source_is_never_the_output(tiny, raw):
    with pytest.raises(DataError, match="is the source itself"):
        prepare(tiny.request(raw, raw))
    assert (raw / "studio" / "K-000059").is_dir()


def test_the_output_is_never_a_source(tiny, raw):
    with pytest.raises(DataError, match=r"lies in the drug folder .*K-000059"):
        prepare(tiny.request(raw, raw / "real_photos" / "K-000059" / "out"))
    first = prepare(tiny.request(raw, raw / "real_photos" / "out"))
    second = prepare(tiny.request(raw, raw / "real_photos" / "out"))
    assert (second.reused, second.report["pictures_found"]) == (True, 80)
    assert first.report == second.report


def test_an_output_that_cannot_be(tiny, raw, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be made .* give another --out"):
        prepare(tiny.request(raw, tmp_path / "file"))


def test_several_folders_of_a_drug(tiny, raw, tmp_path):
    """AI Hub's training and validation trees both hold it."""
    tree = raw / "studio"
    (tree / "TS_1_단일").mkdir()
    (tree / "K-000059").rename(tree / "TS_1_단일" / "K-000059")
    tiny.picture(tree / "VS_1_단일" / "K-000059" / "K-000059_0_2_1_2_75_000_200.png")
    (tree / "TL_1_단일" / "K-000059_json").mkdir(parents=True)
    result = prepare(tiny.request(raw, tmp_path / "out", ratio=0.3))
    paths = result.manifest.rows["path"].to_pylist()
    assert "studio/K-000059/2/K-000059_0_2_1_2_75_000_200.png" in paths
    assert sum(path.startswith("studio/K-000059/1/") for path in paths) == 24


def test_a_request_does_not_change(tiny, raw, tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.request(raw, tmp_path).seed = 1
