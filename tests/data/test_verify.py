from pillsnap.data.prepare import prepare
from pillsnap.data.verify import verify


def test_what_differs_is_found(tiny, raw, tmp_path):
    manifest = prepare(tiny.request(raw, tmp_path / "out")).manifest
    assert verify(manifest).is_clean
    first, second = manifest.rows["path"].to_pylist()[:2]
    (manifest.root / first).write_bytes(b"other")
    (manifest.root / second).unlink()
    tiny.picture(raw / "real_photos" / "K-000059" / "new.jpg")
    report = verify(manifest, workers=1)
    assert report.changed == (first,)
    assert report.missing == (second,)
    assert report.extra == ("real_photos/K-000059/new.jpg",)
    assert not report.is_clean
