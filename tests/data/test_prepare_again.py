"""Preparing again in a folder that holds a data set already, with real files."""

import dataclasses
import os
import shutil

import cv2
import pyarrow.parquet as pq
import pytest

from pillsnap.core.errors import ConfigError, DataError
from pillsnap.core.files import read_json
from pillsnap.core.manifest import SPLITS, Manifest
from pillsnap.data.prepare import prepare
from pillsnap.data.verify import verify


def ledger(out):
    return pq.read_table(out / "pictures.parquet").to_pylist()


def splits(result):
    return {row["sha256"]: row["split"] for row in ledger(result.manifest.root) if row["split"]}


def test_nothing_ever_moves(tiny, raw, tmp_path):
    request = tiny.request(raw, tmp_path / "out")
    photos = raw / "real_photos"
    ever = splits(prepare(request))

    def grow():
        now = splits(prepare(request))
        assert {digest: now[digest] for digest in ever} == ever
        ever.update(now)
        rows = Manifest.load(request.out).rows.to_pylist()
        assert all(ever[row["sha256"]] == row["split"] for row in rows)

    for name in tiny.real_names("K-000059", backgrounds=4)[16:]:
        tiny.picture(photos / "K-000059" / name, f"real {name}")
    grow()
    for number in range(12):
        tiny.picture(photos / "K-030864" / f"IMG_{number}.jpg", f"plain {number // 3}")
    for path in sorted((photos / "K-030864").glob("IMG*"))[::2]:
        path.write_bytes(cv2.imencode(".jpg", cv2.imread(str(path)), [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes())
    grow()
    for name in tiny.studio_names("K-030864", backgrounds=3)[12:]:
        tiny.picture(raw / "studio" / "K-030864" / name, f"more {name}")
    (photos / "K-030864" / "IMG_1.jpg").rename(photos / "K-000059" / "corrected.jpg")
    grow()
    named = sorted((photos / "K-000059").glob("K-*"))
    for number, path in enumerate(named[:6]):
        path.rename(path.with_name(f"renamed {number}.jpg"))
    away = tmp_path / "away"
    (photos / "K-030864").rename(away)
    tiny.picture(photos / "K-030864" / "IMG_new.jpg", "new")
    grow()
    shutil.rmtree(photos / "K-030864")
    away.rename(photos / "K-030864")
    (raw / "studio" / "moved").mkdir()
    (raw / "studio" / "K-000059").rename(raw / "studio" / "moved" / "K-000059")
    tiny.picture(raw / "studio" / "more" / "K-000059" / "K-000059_0_2_1_2_75_000_200.png")
    grow()
    assert set(ever.values()) == set(SPLITS)
    assert prepare(request).reused


def test_a_drug_that_comes_goes_and_returns(tiny, raw, tmp_path):
    request = tiny.request(raw, tmp_path / "out")
    first = prepare(request)
    before = splits(first)
    for name in tiny.real_names("K-000001"):
        tiny.picture(raw / "real_photos" / "K-000001" / name, f"real {name}")
    tiny.drug_list(raw / "drugs.json", ["K-000001", *tiny.kcodes])
    assert prepare(request).manifest.catalog.class_to_idx == {"K-000059": 0, "K-030864": 1, "K-000001": 2}
    tiny.drug_list(raw / "drugs.json", ["K-000001", "K-030864"])
    retired = prepare(request).manifest
    assert retired.catalog.class_to_idx["K-000059"] == 0
    assert set(retired.rows["label"].to_pylist()) == {1, 2}
    assert not (request.out / "studio" / "K-000059").exists()
    tiny.drug_list(raw / "drugs.json", ["K-000001", "K-030864", "K-000059"])
    again = prepare(request)
    assert again.manifest.catalog.class_to_idx == {"K-000059": 0, "K-030864": 1, "K-000001": 2}
    now = splits(again)
    assert {digest: now[digest] for digest in before} == before


def test_another_folder_grows_from_the_first(tiny, raw, tmp_path):
    first = prepare(tiny.request(raw, tmp_path / "first"))
    tiny.drug_list(raw / "drugs.json", [*reversed(tiny.kcodes)])
    request = tiny.request(raw, tmp_path / "second", previous=tmp_path / "first")
    known = splits(first)
    for round_number in range(3):
        for number in range(10):
            tiny.picture(raw / "real_photos" / "K-000059" / f"IMG_{round_number}_{number}.jpg")
        second = prepare(request)
        now = splits(second)
        assert {digest: now[digest] for digest in known} == known
        known = now
        assert second.manifest.catalog.kcodes == first.manifest.catalog.kcodes
    with pytest.raises(DataError, match=r"nowhere: holds no pictures\.parquet"):
        prepare(tiny.request(raw, tmp_path / "third", previous=tmp_path / "nowhere"))
    assert not (tmp_path / "third").exists()


def test_fresh_forgets(tiny, raw, tmp_path):
    request = tiny.request(raw, tmp_path / "out")
    prepare(request)
    with pytest.raises(ConfigError, match=r"was split with seed 0, not 1; keep --seed 0, or split anew with --fresh"):
        prepare(dataclasses.replace(request, seed=1))
    tiny.drug_list(raw / "drugs.json", [*reversed(tiny.kcodes)])
    fresh = prepare(dataclasses.replace(request, seed=1, fresh=True))
    assert fresh.manifest.catalog.kcodes == tuple(reversed(tiny.kcodes))
    elsewhere = prepare(dataclasses.replace(request, seed=1, out=tmp_path / "other"))
    assert fresh.manifest.hash == elsewhere.manifest.hash
    with pytest.raises(ConfigError, match="give one of the two"):
        dataclasses.replace(request, fresh=True, previous=tmp_path)


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_lost_ledger_says_what_to_do(tiny, raw, tmp_path, damage):
    request = tiny.request(raw, tmp_path / "out")
    prepare(request)
    path = request.out / "pictures.parquet"
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"pictures\.parquet: .* backup, or split anew with --fresh"):
        prepare(request)
    assert prepare(dataclasses.replace(request, fresh=True)).reused


def test_the_seed_is_known_without_the_manifest(tiny, raw, tmp_path):
    request = tiny.request(raw, tmp_path / "out")
    prepare(request)
    (request.out / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="seed 0"):
        prepare(dataclasses.replace(request, seed=1))


ODD = os.fsdecode(b"pills\xff")


@pytest.mark.parametrize("where", ["raw", "between"])
def test_a_folder_whose_name_is_not_text_changes_nothing(tiny, raw, tmp_path, where):
    """As Korean Windows' archives unpack: only K-CODEs and file names go into the data set."""
    expected = prepare(tiny.request(raw, tmp_path / "plain")).manifest.hash
    if where == "raw":
        raw = shutil.copytree(raw, tmp_path / ODD)
    else:
        between = raw / "real_photos" / ODD
        between.mkdir()
        (raw / "real_photos" / "K-000059").rename(between / "K-000059")
    assert prepare(tiny.request(raw, tmp_path / "out")).manifest.hash == expected


def test_an_output_whose_name_is_not_text_is_refused(tiny, raw, tmp_path):
    with pytest.raises(DataError, match=r"pills\\xff.*is not UTF-8; rename the folder"):
        prepare(tiny.request(raw, tmp_path / ODD / "out"))
    assert not (tmp_path / ODD).exists()


def test_a_picture_whose_name_is_not_text_is_left_out_alone(tiny, raw, tmp_path):
    expected = prepare(tiny.request(raw, tmp_path / "plain")).manifest
    folder = raw / "real_photos" / "K-000059"
    (folder / ODD).mkdir()
    tiny.picture(folder / os.fsdecode(b"\xb4\xdc.jpg"), "one")
    tiny.picture(folder / ODD / "plain.jpg", "two")
    result = prepare(tiny.request(raw, tmp_path / "out"))
    assert result.manifest.rows["path"].to_pylist() == expected.rows["path"].to_pylist()
    report = read_json(tmp_path / "out" / "report.json")
    assert set(report["left_out"]["name_not_utf8"]) == {
        r"real_photos/K-000059/\xb4\xdc.jpg", r"real_photos/K-000059/pills\xff/plain.jpg",
    }  # fmt: skip
    assert verify(result.manifest).is_clean
