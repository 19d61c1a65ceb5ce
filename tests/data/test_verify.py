import unicodedata

import pytest

from pillsnap.data.audit import AuditLimits
from pillsnap.data.prepare import prepare
from pillsnap.data.verify import verify

KCODE = "K-000059"


@pytest.fixture
def manifest(tiny, raw, tmp_path):
    """Of a data set in which one picture is left out."""
    (raw / "real_photos" / KCODE / "broken.jpg").write_bytes(b"no picture")
    request = tiny.request(raw, tmp_path / "out", limits=AuditLimits(min_side_px=16))
    return prepare(request).manifest


def test_an_untouched_data_set_is_clean(manifest):
    seen = []
    report = verify(manifest, 2, lambda stage, done, total: seen.append((stage, done, total)))
    assert report.is_clean
    total = len(manifest.rows)
    assert seen[-1] == ("verifying", total, total)


def test_what_differs_is_found(tiny, raw, manifest):
    first, second, third = manifest.rows["path"].to_pylist()[:3]
    (manifest.root / first).write_bytes(b"other")
    (manifest.root / second).unlink()
    with (manifest.root / third).open("wb") as file:
        file.truncate(2**27)  # over the limit: not even read
    tiny.picture(raw / "real_photos" / KCODE / "new.jpg")
    report = verify(manifest, workers=1)
    assert report.changed == (first, third)
    assert report.missing == (second,)
    assert report.extra == (f"real_photos/{KCODE}/new.jpg",)
    assert not report.is_clean


def test_names_in_another_unicode_form_are_told(tiny, raw, tmp_path):
    """As a copy over macOS makes them: they look the same, and are others."""
    folder = raw / "real_photos" / KCODE
    photos = [tiny.picture(folder / f"가온정 {number}.jpg", f"photo {number}") for number in range(2)]
    manifest = prepare(tiny.request(raw, tmp_path / "out")).manifest
    for number in range(2):
        name = f"가온정 {number}.jpg"
        (folder / name).rename(folder / unicodedata.normalize("NFD", name))
    report = verify(manifest, workers=1)
    assert (len(report.missing), len(report.extra), report.differ_in_form_only) == (2, 2, 2), photos
    (folder / "another.jpg").write_bytes(b"x")
    assert verify(manifest, workers=1).differ_in_form_only == 2
