import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections import namedtuple

import numpy as np
import pyarrow as pa
import pytest

from pillsnap.core.boxes import Box, crop_to_box
from pillsnap.core.errors import DataError, ImageError, TamperedError
from pillsnap.core.images import decode_rgb
from pillsnap.core.manifest import ROW_SCHEMA, Manifest
from pillsnap.core.preprocessing import InferencePreprocessor, UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import PreprocessingSpec
from pillsnap.data import cache as cache_module
from pillsnap.data.cache import KEY_FILE, PreparedCache, cache_folder
from pillsnap.data.prepare import prepare
from pillsnap.data.row_file import DATA_FILE, ORIGIN_FILE

SPEC = PreprocessingSpec(target_size=24)
IMAGES = 46


@pytest.fixture
def manifest(prepared_once, tmp_path):
    """Of a data set of one's own."""
    return Manifest.load(shutil.copytree(prepared_once.parent, tmp_path / "own", symlinks=True) / prepared_once.name)


@pytest.fixture
def prepared(monkeypatch):
    """Names of the pictures that were prepared."""
    names = []
    whole = InferencePreprocessor.prepare_for_model

    def spy(self, data, name="image", box=None):
        names.append(name)
        return whole(self, data, name, box)

    monkeypatch.setattr(InferencePreprocessor, "prepare_for_model", spy)
    return names


def build(manifest, folder, spec=SPEC, **more):
    return PreparedCache.build(manifest, spec, folder, **{"workers": 2, **more})


def expected_row(manifest, row):
    path, sha256 = manifest.rows["path"][row].as_py(), manifest.rows["sha256"][row].as_py()
    return InferencePreprocessor(SPEC).prepare_for_model(manifest.read_image(path, sha256))[0]


def with_boxes(manifest, boxes):
    """The same manifest with a box in some rows."""
    rows = manifest.rows.to_pylist()
    for row, box in boxes.items():
        rows[row] |= {f"box_{name}": value for name, value in box._asdict().items()}
    summary = {key: value for key, value in manifest.summary.items() if key not in ("hash", "manifest_version")}
    return Manifest.build(manifest.root, summary, pa.Table.from_pylist(rows, schema=ROW_SCHEMA), manifest.catalog)


def test_every_row_is_what_serving_gives(manifest, tmp_path):
    cache = build(manifest, tmp_path / "cache")
    assert cache.images_NHWC_u8.shape == (IMAGES, 24, 24, 3)
    assert not cache.images_NHWC_u8.flags.writeable
    for row in range(IMAGES):
        np.testing.assert_array_equal(cache.images_NHWC_u8[row], expected_row(manifest, row))


def test_a_row_with_a_box_is_cut_out_first(manifest, tmp_path, prepared):
    boxes = {3: Box(2, 4, 12, 10), 7: Box(0, 0, 32, 32), 45: Box(30, 1, 2, 31)}
    boxed = with_boxes(manifest, boxes)
    images = build(boxed, tmp_path / "cache").images_NHWC_u8
    assert len(prepared) == IMAGES
    for row in range(IMAGES):
        path, sha256 = boxed.rows["path"][row].as_py(), boxed.rows["sha256"][row].as_py()
        expected = expected_row(boxed, row)
        if row in boxes:
            part = crop_to_box(decode_rgb(boxed.read_image(path, sha256)), boxes[row])
            expected = UnifiedPreprocessor(SPEC).to_model_input(part)
        np.testing.assert_array_equal(images[row], expected)
    assert not np.array_equal(images[3], expected_row(boxed, 3))


def test_a_box_that_is_not_in_the_picture_stops_it(manifest, tmp_path):
    boxed = with_boxes(manifest, {3: Box(20, 20, 20, 20)})
    with pytest.raises(ImageError, match="not within the picture") as caught:
        build(boxed, tmp_path / "cache")
    assert str(caught.value).startswith(str(boxed.root / boxed.rows["path"][3].as_py()))
    assert caught.value.code == "bad_box"


def test_it_is_made_once(manifest, tmp_path):
    build(manifest, tmp_path / "cache")
    stages = []
    build(manifest, tmp_path / "cache", progress=lambda *state: stages.append(state))
    assert stages == []
    PreparedCache.open(manifest, SPEC, tmp_path / "cache")


def test_another_preprocessing_or_manifest_has_another_cache(tiny, raw, manifest, tmp_path, prepared):
    build(manifest, tmp_path / "cache")
    area = PreprocessingSpec(target_size=24, interpolation="area")
    with pytest.raises(DataError, match="build it again"):
        PreparedCache.open(manifest, area, tmp_path / "cache")
    other = prepare(tiny.request(raw, tmp_path / "out2", seed=1)).manifest
    with pytest.raises(DataError, match="build it again"):
        PreparedCache.open(other, SPEC, tmp_path / "cache")
    prepared.clear()
    build(manifest, tmp_path / "cache", area)
    assert len(prepared) == IMAGES, "pixels of another preprocessing were taken"


@pytest.mark.parametrize("change", [("cv2.__version__", "0.0"), ("pillsnap.data.cache.MARGIN", 0.3)])
def test_another_decoder_or_margin_makes_the_old_cache_stale(manifest, tmp_path, monkeypatch, prepared, change):
    build(manifest, tmp_path / "cache")
    monkeypatch.setattr(*change)
    with pytest.raises(DataError, match="no whole prepared cache"):
        PreparedCache.open(manifest, SPEC, tmp_path / "cache")
    prepared.clear()
    build(with_boxes(manifest, {0: Box(0, 0, 9, 9)}), tmp_path / "cache")
    assert len(prepared) == IMAGES
    build(manifest, tmp_path / "cache")
    assert len(prepared) == IMAGES + 1


@pytest.mark.parametrize(
    "damage", ["short", "no key", "bad key", "other key", "no images", "no origins", "short origins"]
)
def test_an_incomplete_cache_is_made_again(manifest, tmp_path, damage):
    folder = tmp_path / "cache"
    expected = np.array(build(manifest, folder).images_NHWC_u8)
    target = cache_folder(manifest, SPEC, folder)
    match damage:
        case "short":
            os.truncate(target / DATA_FILE, 1000)
        case "no key":
            (target / KEY_FILE).unlink()
        case "bad key":
            (target / KEY_FILE).write_text("{")
        case "other key":
            key = json.loads((target / KEY_FILE).read_text())
            (target / KEY_FILE).write_text(json.dumps({**key, "manifest_hash": "0" * 64}))
        case "no images":
            (target / DATA_FILE).unlink()
        case "no origins":
            (target / ORIGIN_FILE).unlink()
        case "short origins":
            os.truncate(target / ORIGIN_FILE, 10)
    with pytest.raises(DataError, match="no whole prepared cache"):
        PreparedCache.open(manifest, SPEC, folder)
    np.testing.assert_array_equal(build(manifest, folder).images_NHWC_u8, expected)


def test_changed_and_missing_pictures_stop_it_and_what_was_done_is_kept(manifest, tmp_path, prepared):
    path = manifest.root / manifest.rows["path"][13].as_py()
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    with pytest.raises(TamperedError, match="was changed after the manifest was made"):
        build(manifest, tmp_path / "cache")
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        build(manifest, tmp_path / "cache")
    assert not cache_folder(manifest, SPEC, tmp_path / "cache").exists()
    path.write_bytes(data)
    prepared.clear()
    images = build(manifest, tmp_path / "cache").images_NHWC_u8
    assert len(prepared) == IMAGES - 13
    np.testing.assert_array_equal(images[13], expected_row(manifest, 13))


CHILD = """
import os, signal, sys
from pathlib import Path
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing import InferencePreprocessor, PreprocessingSpec
from pillsnap.data import cache

root, folder, moment = sys.argv[1:]
spec = PreprocessingSpec(target_size=24)
cache.RECORD_SECONDS = 0
prepared = []
prepare = InferencePreprocessor.prepare_for_model
InferencePreprocessor.prepare_for_model = lambda *args: prepared.append(0) or prepare(*args)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def on_call(name, number, before):
    "Die at a call: before it, or in the middle."
    call, left = getattr(os, name), iter(range(number - 1))
    def dying(*args):
        if next(left, None) is None:
            before(*args)
            die()
        return call(*args)
    setattr(os, name, dying)

pwrite = os.pwrite
match moment:
    case "half a row is written":
        on_call("pwrite", 20, lambda file, data, position: pwrite(file, data[:900], position))
    case "rows are written and not recorded":
        on_call("fdatasync", 3, lambda *args: None)
    case "all is done but the name":
        on_call("rename", 1, lambda *args: None)

def progress(stage, done, total):
    print(stage, done, total, flush=True)
    if (stage.partition(" ")[0], done) == ("preparing" if moment == "preparing" else "copying", 20) and moment:
        die()

cache.PreparedCache.build(Manifest.load(Path(root)), spec, Path(folder), 2, progress)
print("prepared", len(prepared), flush=True)
"""


def start(manifest, folder, moment=""):
    command = [sys.executable, "-c", CHILD, str(manifest.root), str(folder), moment]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_at(manifest, folder, moment):
    child = start(manifest, folder, moment)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert not cache_folder(manifest, SPEC, folder).exists()


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("preparing", IMAGES - 19),
        ("half a row is written", None),
        ("rows are written and not recorded", IMAGES - 2),
        ("all is done but the name", 0),
    ],
)
def test_a_killed_build_goes_on_where_it_stopped(manifest, tmp_path, prepared, moment, left):
    undisturbed = build(manifest, tmp_path / "undisturbed").folder
    kill_at(manifest, tmp_path / "cache", moment)
    prepared.clear()
    stages = {}
    again = build(manifest, tmp_path / "cache", progress=lambda stage, done, total: stages.update({stage: done})).folder
    for name in (DATA_FILE, ORIGIN_FILE, KEY_FILE):
        assert (again / name).read_bytes() == (undisturbed / name).read_bytes()
    assert len(prepared) == (left if left is not None else len(prepared))
    assert stages.get("kept from the interrupted build", 0) == IMAGES - len(prepared)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [f".{again.name}.lock", again.name]


def test_a_build_that_is_killed_again_and_again_still_ends(manifest, tmp_path, prepared):
    """Each time 20 more are prepared, of which 19 are recorded."""
    whole = build(manifest, tmp_path / "undisturbed").images_NHWC_u8
    kill_at(manifest, tmp_path / "cache", "preparing")
    kill_at(manifest, tmp_path / "cache", "preparing")
    prepared.clear()
    np.testing.assert_array_equal(build(manifest, tmp_path / "cache").images_NHWC_u8, whole)
    assert len(prepared) == IMAGES - 38


def test_a_killed_copy_goes_on_and_copies_from_an_interrupted_cache(manifest, tmp_path, prepared):
    folder = tmp_path / "cache"
    kill_at(manifest, folder, "all is done but the name")
    boxed = with_boxes(manifest, {0: Box(0, 0, 9, 9)})
    boxed.save()
    kill_at(boxed, folder, "copying")
    stages = {}
    images = build(boxed, folder, progress=lambda stage, done, total: stages.update({stage: done})).images_NHWC_u8
    assert prepared == [str(boxed.root / boxed.rows["path"][0].as_py())]
    part = f".{cache_folder(manifest, SPEC, folder).name}.part"
    assert stages == {
        "kept from the interrupted build": 19,
        f"copying images from {part}": IMAGES - 20,
        "preparing images": 1,
    }
    for row in range(1, IMAGES):
        np.testing.assert_array_equal(images[row], expected_row(boxed, row))


def test_what_an_interrupted_build_of_another_way_has_left_is_not_used(manifest, tmp_path, prepared, monkeypatch):
    kill_at(manifest, tmp_path / "cache", "all is done but the name")
    monkeypatch.setattr("cv2.__version__", "0.0")
    build(manifest, tmp_path / "cache")
    assert len(prepared) == IMAGES


def test_a_second_process_waits_and_takes_the_cache_of_the_first(manifest, tmp_path, prepared):
    children = []

    def start_another(stage, done, total):
        if done == 10 and not children:
            children.append(start(manifest, tmp_path / "cache"))
            assert children[0].stdout.readline() == "waiting for the process that builds this cache 0 1\n"

    build(manifest, tmp_path / "cache", progress=start_another)
    assert len(prepared) == IMAGES
    output, _ = children[0].communicate(timeout=60)
    assert output == "prepared 0\n"
    assert children[0].returncode == 0


def test_of_many_processes_at_once_one_prepares_each_picture(manifest, tmp_path):
    whole = build(manifest, tmp_path / "undisturbed").images_NHWC_u8
    children = [start(manifest, tmp_path / "cache") for _ in range(3)]
    counts = [int(child.communicate(timeout=60)[0].split()[-1]) for child in children]
    assert sorted(counts) == [0, 0, IMAGES]
    np.testing.assert_array_equal(PreparedCache.open(manifest, SPEC, tmp_path / "cache").images_NHWC_u8, whole)


def test_only_new_pictures_are_read_when_the_data_grows(tiny, raw, manifest, tmp_path, prepared):
    folder = tmp_path / "cache"
    old = build(manifest, folder).folder
    tiny.picture(raw / "real_photos" / tiny.kcodes[0] / f"{tiny.kcodes[0]}_4_2_0_0_90_000_200.jpg", "new")
    grown = prepare(tiny.request(raw, tmp_path / "out2")).manifest
    known = set(manifest.rows["sha256"].to_pylist())
    new = [path for path, sha in zip(grown.rows["path"].to_pylist(), grown.rows["sha256"].to_pylist(), strict=True)
           if sha not in known]  # fmt: skip
    assert new
    prepared.clear()
    stages = {}
    images = build(grown, folder, progress=lambda stage, done, total: stages.update({stage: (done, total)}))
    assert sorted(prepared) == sorted(str(grown.root / path) for path in new)
    shared = grown.rows.num_rows - len(new)
    assert stages == {f"copying images from {old.name}": (shared, shared), "preparing images": (len(new), len(new))}
    for row in range(grown.rows.num_rows):
        np.testing.assert_array_equal(images.images_NHWC_u8[row], expected_row(grown, row))


def test_a_row_is_copied_only_with_the_same_box(manifest, tmp_path, prepared):
    folder = tmp_path / "cache"
    first, second = Box(1, 2, 9, 9), Box(1, 3, 9, 9)
    build(with_boxes(manifest, {0: first, 1: first}), folder)
    prepared.clear()
    images = build(with_boxes(manifest, {0: first, 1: second}), folder).images_NHWC_u8
    assert prepared == [str(manifest.root / manifest.rows["path"][1].as_py())]
    prepared.clear()
    build(manifest, folder)
    assert len(prepared) == 2
    assert not np.array_equal(images[0], expected_row(manifest, 0))


@pytest.mark.parametrize("damage", ["short", "no key", "no origins"])
def test_nothing_is_copied_from_a_damaged_cache(manifest, tmp_path, prepared, damage):
    other = build(manifest, tmp_path / "cache").folder
    match damage:
        case "short":
            os.truncate(other / DATA_FILE, 24 * 24 * 3 * (IMAGES - 1) + 5)
        case "no key":
            (other / KEY_FILE).unlink()
        case "no origins":
            (other / ORIGIN_FILE).unlink()
    prepared.clear()
    build(with_boxes(manifest, {0: Box(0, 0, 9, 9)}), tmp_path / "cache")
    assert len(prepared) == IMAGES


def test_too_little_room_is_said_before_it_starts(manifest, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    old = build(with_boxes(manifest, {0: Box(0, 0, 9, 9)}), tmp_path / "cache").folder
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 2**20))
    with pytest.raises(DataError, match=rf"1 MiB are free.*may be deleted: {old.name} \(0 MiB\)"):
        build(manifest, tmp_path / "cache")


def test_a_disk_that_fills_up_meanwhile_loses_nothing(manifest, tmp_path, monkeypatch, prepared):
    calls = itertools.count(1)
    write = os.pwrite

    def filling(*args):
        if next(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", filling)
        with pytest.raises(DataError, match=r"No space left on device.*goes on with what is there"):
            build(manifest, tmp_path / "cache", workers=1)
    prepared.clear()
    images = build(manifest, tmp_path / "cache").images_NHWC_u8
    assert len(prepared) == IMAGES - 20
    for row in range(IMAGES):
        np.testing.assert_array_equal(images[row], expected_row(manifest, row))


@pytest.mark.parametrize(("seconds", "times"), [(0, IMAGES), (1000, 1)])
def test_rows_are_recorded_now_and_then_and_at_the_end(manifest, tmp_path, monkeypatch, seconds, times):
    monkeypatch.setattr(cache_module, "RECORD_SECONDS", seconds)
    synced = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    build(manifest, tmp_path / "cache")
    assert len(synced) == times


def test_ctrl_c_keeps_what_is_done(manifest, tmp_path, prepared):
    def interrupt(stage, done, total):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(manifest, tmp_path / "cache", progress=interrupt)
    prepared.clear()
    build(manifest, tmp_path / "cache")
    assert len(prepared) == IMAGES - 8


def test_memory_does_not_grow_with_the_number_of_images(manifest, tmp_path):
    spec = PreprocessingSpec(target_size=256)
    build(manifest, tmp_path / "warm")
    tracemalloc.start()
    try:
        build(manifest, tmp_path / "cache", spec)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    image = 256 * 256 * 3
    assert image < peak < IMAGES * image / 3  # two workers hold a few copies each


def test_a_manifest_without_images_is_refused(manifest, tmp_path):
    empty = Manifest.build(manifest.root, {}, ROW_SCHEMA.empty_table(), manifest.catalog)
    with pytest.raises(DataError, match="holds no images"):
        build(empty, tmp_path / "cache")


def test_a_folder_that_cannot_be_made_is_said(manifest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        build(manifest, tmp_path / "file" / "cache")


def test_where_the_lock_was_deleted_the_slower_takes_the_cache_of_the_faster(manifest, tmp_path):
    folder = tmp_path / "cache"

    def be_overtaken(stage, done, total):
        if done == total:
            build(manifest, tmp_path / "other")
            cache_folder(manifest, SPEC, tmp_path / "other").rename(cache_folder(manifest, SPEC, folder))

    assert build(manifest, folder, progress=be_overtaken).images_NHWC_u8.shape[0] == IMAGES
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1


def test_something_in_the_way_is_said(manifest, tmp_path):
    target = cache_folder(manifest, SPEC, tmp_path / "cache")

    def put_in_the_way(stage, done, total):
        if done == total:
            (target / "mine").mkdir(parents=True)

    with pytest.raises(DataError, match="is in the way"):
        build(manifest, tmp_path / "cache", progress=put_in_the_way)
