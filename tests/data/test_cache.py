import json
import os
from collections import namedtuple

import numpy as np
import pytest

from pillsnap.core.errors import DataError, ImageError, TamperedError
from pillsnap.core.images import decode_rgb
from pillsnap.core.preprocessing import PreprocessingSpec, UnifiedPreprocessor
from pillsnap.data.cache import IMAGES_FILE, KEY_FILE, PreparedCache, cache_folder
from pillsnap.data.prepare import prepare

SPEC = PreprocessingSpec(target_size=24)


@pytest.fixture
def manifest(tiny, raw, tmp_path):
    return prepare(tiny.request(raw, tmp_path / "out")).manifest


def build(manifest, folder, spec=SPEC, **more):
    return PreparedCache.build(manifest, spec, folder, workers=2, **more)


def test_every_row_is_what_the_preprocessor_gives(manifest, tmp_path):
    cache = build(manifest, tmp_path / "cache")
    assert cache.images_NHWC_u8.shape == (46, 24, 24, 3)
    assert not cache.images_NHWC_u8.flags.writeable
    for row, (path, sha256) in enumerate(
        zip(manifest.rows["path"].to_pylist(), manifest.rows["sha256"].to_pylist(), strict=True)
    ):
        expected = UnifiedPreprocessor(SPEC).to_model_input(decode_rgb(manifest.read_image(path, sha256)))
        np.testing.assert_array_equal(cache.images_NHWC_u8[row], expected)


def test_it_is_made_once(manifest, tmp_path):
    build(manifest, tmp_path / "cache")
    stages = []
    build(manifest, tmp_path / "cache", progress=lambda *state: stages.append(state))
    assert stages == []
    PreparedCache.open(manifest, SPEC, tmp_path / "cache")


def test_another_preprocessing_or_manifest_has_another_cache(tiny, raw, manifest, tmp_path):
    build(manifest, tmp_path / "cache")
    with pytest.raises(DataError, match="build it again"):
        PreparedCache.open(manifest, PreprocessingSpec(target_size=24, interpolation="area"), tmp_path / "cache")
    other = prepare(tiny.request(raw, tmp_path / "out2", seed=1)).manifest
    with pytest.raises(DataError, match="build it again"):
        PreparedCache.open(other, SPEC, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["short", "no key", "bad key", "other key", "no images"])
def test_an_incomplete_cache_is_made_again(manifest, tmp_path, damage):
    folder = tmp_path / "cache"
    expected = np.array(build(manifest, folder).images_NHWC_u8)
    target = cache_folder(manifest, SPEC, folder)
    match damage:
        case "short":
            os.truncate(target / IMAGES_FILE, 1000)
        case "no key":
            (target / KEY_FILE).unlink()
        case "bad key":
            (target / KEY_FILE).write_text("{")
        case "other key":
            key = json.loads((target / KEY_FILE).read_text())
            (target / KEY_FILE).write_text(json.dumps({**key, "manifest_hash": "0" * 64}))
        case "no images":
            (target / IMAGES_FILE).unlink()
    with pytest.raises(DataError, match="no whole prepared cache"):
        PreparedCache.open(manifest, SPEC, folder)
    np.testing.assert_array_equal(build(manifest, folder).images_NHWC_u8, expected)


def test_leftovers_of_dead_processes_are_removed(manifest, tmp_path):
    target = cache_folder(manifest, SPEC, tmp_path / "cache")
    dead = target.with_name(f".{target.name}.part-999999999")
    dead.mkdir(parents=True)
    alive = target.with_name(f".{target.name}.part-1")
    alive.mkdir()
    build(manifest, tmp_path / "cache")
    assert not dead.exists()
    assert alive.exists()


def test_changed_and_missing_pictures_stop_it(manifest, tmp_path):
    path = manifest.root / manifest.rows["path"][3].as_py()
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(TamperedError, match="was changed after the manifest was made"):
        build(manifest, tmp_path / "cache")
    path.unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        build(manifest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_too_little_room_is_said_before_it_starts(manifest, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 2**20))
    with pytest.raises(DataError, match="1 MiB are free"):
        build(manifest, tmp_path / "cache")


def test_a_slower_process_takes_the_cache_of_the_faster(manifest, tmp_path):
    folder = tmp_path / "cache"

    def be_overtaken(stage, done, total):
        if done == total:
            build(manifest, tmp_path / "other")
            if not cache_folder(manifest, SPEC, folder).exists():
                cache_folder(manifest, SPEC, tmp_path / "other").rename(cache_folder(manifest, SPEC, folder))

    assert build(manifest, folder, progress=be_overtaken).images_NHWC_u8.shape[0] == 46
    assert len(list(folder.iterdir())) == 1
