import os

from pillsnap.core.files import sha256_file
from pillsnap.data.names import Domain
from pillsnap.data.parallel import no_progress
from pillsnap.data.scan import Picture, known_paths, scan


def picture(path, kcode="K-000059", domain: Domain = "real"):
    return Picture(f"real_photos/{kcode}/{path.name}", path, kcode, domain)


def test_hashes_only_where_the_name_tells_nothing(tiny, tmp_path):
    plain = picture(tiny.picture(tmp_path / "IMG_1.jpg"))
    named = picture(tiny.picture(tmp_path / "K-000059_0_0_0_0_90_000_200.jpg"))
    readings = scan([plain, named], tmp_path / "scan.parquet", 1, no_progress)
    assert len(readings[plain.path].dhash) == len(readings[plain.path].phash) == 16
    assert readings[named.path].dhash == ""
    assert readings[named.path].sha256 == sha256_file(named.source)
    assert known_paths(tmp_path / "scan.parquet") == {plain.path, named.path}


def test_a_changed_file_is_read_again(tiny, tmp_path):
    one = picture(tiny.picture(tmp_path / "IMG_1.jpg"))
    before = scan([one], tmp_path / "scan.parquet", 1, no_progress)[one.path]
    tiny.picture(one.source, "something else")
    os.utime(one.source, ns=(1, 1))
    after = scan([one], tmp_path / "scan.parquet", 1, no_progress)[one.path]
    assert after.sha256 == sha256_file(one.source) != before.sha256


def test_a_file_that_is_gone_is_a_fault(tmp_path):
    one = picture(tmp_path / "gone.jpg")
    assert "cannot be read" in scan([one], tmp_path / "scan.parquet", 1, no_progress)[one.path].fault
