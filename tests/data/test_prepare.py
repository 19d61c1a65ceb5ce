import dataclasses
import json
import os
import shutil

import pytest

from pillsnap.core.errors import CatalogError, ConfigError, DataError
from pillsnap.core.experiment import AugmentationConfig
from pillsnap.core.manifest import SPLITS, Manifest
from pillsnap.core.preprocessing import PreprocessingSpec
from pillsnap.data.prepare import prepare


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


def test_another_place_gives_the_same_hash(tiny, prepared, tmp_path):
    elsewhere = tiny.raw(tmp_path / "another" / "place" / "raw")
    assert prepare(tiny.request(elsewhere, tmp_path / "out", workers=1)).manifest.hash == prepared.manifest.hash


def test_another_order_gives_the_same_hash(tiny, raw, prepared, tmp_path, monkeypatch):
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
    assert prepare(tiny.request(raw, tmp_path / "out")).manifest.hash == prepared.manifest.hash


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
            (request.out / "scan.parquet").write_bytes(b"PAR1 nonsense")
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
    reasons = {path.rpartition("/")[2]: reason for path, reason in report["damaged"].items()}
    assert "cut off" in reasons[truncated.name]
    assert "not a picture" in reasons[text.name]
    assert "empty" in reasons[empty.name]
    assert "named after K-030864" in reasons["K-030864_0_0_0_0_90_090_200.jpg"]
    assert result.manifest.summary["classes"]["K-000059"]["real"] == 13


def test_too_much_damage_stops(tiny, raw, tmp_path):
    for path in sorted((raw / "studio" / "K-000059").iterdir())[:5]:
        path.write_text("this is no picture")
    with pytest.raises(DataError, match=r"5 of 80 pictures .* over the limit of 5%"):
        prepare(tiny.request(raw, tmp_path / "out"))
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["damaged"]) == 5
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_failed_run_leaves_the_former_manifest_as_it_was(tiny, raw, tmp_path):
    request = tiny.request(raw, tmp_path / "out")
    former = prepare(request).manifest.hash
    shutil.rmtree(raw / "studio" / "K-000059")
    (raw / "real_photos" / "K-000059").rename(raw / "real_photos" / "gone")
    with pytest.raises(DataError, match="K-000059"):
        prepare(request)
    assert Manifest.load(request.out).hash == former


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
    result = prepare(tiny.request(raw, tmp_path / "out"))
    assert result.report["duplicates"] == {
        "real_photos/K-000059/copy.jpg": f"real_photos/K-000059/{original.name}",
    }
    shutil.copy(original, raw / "real_photos" / "K-030864" / "copy.jpg")
    with pytest.raises(DataError, match="one label is wrong"):
        prepare(tiny.request(raw, tmp_path / "out"))


def test_short_classes_are_reported(tiny, raw, tmp_path):
    result = prepare(tiny.request(raw, tmp_path / "out", minimum=100))
    short = result.report["short_classes"]["K-000059"]
    assert (short["real"], short["studio_used"], short["wanted"], short["shortfall"]) == (16, 24, 100, 60)


def test_only_studio(tiny, raw, tmp_path):
    result = prepare(tiny.request(raw, tmp_path / "out", real=None))
    assert result.manifest.summary["domains"]["real"] == 0
    assert "test/real" in result.manifest.summary["classes"]["K-000059"]["missing"]
    assert list(result.report["short_classes"]) == ["K-000059", "K-030864"]


def test_nothing_to_prepare(tiny, raw, tmp_path):
    with pytest.raises(ConfigError, match="neither studio nor real"):
        tiny.request(raw, tmp_path, studio=None, real=None)
    with pytest.raises(ConfigError, match=r"ratio=1\.5"):
        tiny.request(raw, tmp_path, ratio=1.5)


def test_the_source_is_never_the_output(tiny, raw):
    with pytest.raises(DataError, match="is the source itself"):
        prepare(tiny.request(raw, raw))
    assert (raw / "studio" / "K-000059").is_dir()


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
