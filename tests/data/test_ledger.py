import pyarrow.parquet as pq
import pytest

from pillsnap.core.errors import DataError, ManifestError
from pillsnap.data.ledger import GONE, SCHEMA, SEED_KEY, ledger_paths, writing_ledger


def row(shots, path, split="train", **changes):
    row = {
        "path": path, "kcode": "K-000059", "domain": "real", "sha256": shots.digest(path), "used": split is not None,
        "split": split, "group": "g", "code": None, "reason": None,
    }  # fmt: skip
    return {**row, **changes}


def write(path, *rows, carry=()):
    with writing_ledger(path, 3) as ledger:
        ledger.add(rows)
        ledger.carry_over(carry)
    return path


def codes(path):
    return {(one["path"], one["code"], one["split"], one["used"]) for one in pq.read_table(path).to_pylist()}


def test_what_is_written_is_read(shots, tmp_path):
    path = write(tmp_path / "ledger", row(shots, "a"), row(shots, "b", None, code="truncated", reason="cut off"))
    table = pq.read_table(path)
    assert table.schema.names == SCHEMA.names
    assert table.to_pylist()[1]["reason"] == "cut off"
    assert table.schema.metadata[SEED_KEY] == b"3"
    assert ledger_paths(path) == {"a", "b"}
    assert ledger_paths(tmp_path / "none") == frozenset()


def test_a_ledger_that_says_the_same_is_left_alone(shots, tmp_path):
    path = write(tmp_path / "ledger", row(shots, "a"))
    before = path.stat()
    write(path, row(shots, "a"))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write(path, row(shots, "b"))
    assert path.stat().st_ino != before.st_ino


def test_what_is_gone_is_remembered(shots, tmp_path):
    old = write(tmp_path / "old", row(shots, "a"), row(shots, "b", "test"), row(shots, "c", None, code="blurred"))
    new = write(tmp_path / "new", row(shots, "d"), row(shots, "renamed", sha256=shots.digest("a")), carry=[old])
    assert codes(new) == {("d", None, "train", True), ("renamed", None, "train", True), ("b", GONE, "test", False)}
    assert ledger_paths(new) == {"d", "renamed"}
    third = write(tmp_path / "third", row(shots, "d"), carry=[new, old])
    assert ("b", GONE, "test", False) in codes(third)
    assert len(codes(third)) == 3
    back = write(tmp_path / "back", row(shots, "b", "test"), carry=[third])
    assert ("b", None, "test", True) in codes(back)
    assert ledger_paths(back) == {"b"}


def test_copies_are_remembered_once(shots, tmp_path):
    old = write(tmp_path / "old", row(shots, "a"), row(shots, "a2", sha256=shots.digest("a"), code="duplicate"))
    assert codes(write(tmp_path / "new", row(shots, "b"), carry=[old])) >= {("a", GONE, "train", False)}
    assert pq.read_table(tmp_path / "new").num_rows == 2


def test_nothing_is_left_of_a_run_that_fails(shots, tmp_path):
    path = write(tmp_path / "ledger", row(shots, "a"))
    before = path.read_bytes()
    with pytest.raises(KeyError), writing_ledger(path, 0) as ledger:
        ledger.add([row(shots, "b"), {}["nothing"]])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_ledger(tmp_path):
    (tmp_path / "ledger").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ManifestError, match="bring it back from a backup"):
        ledger_paths(tmp_path / "ledger")


def test_a_file_in_two_splits_is_refused(shots, tmp_path):
    """A combination trains in one class, and lies alone in the folder of another drug, where it would test."""
    path = write(tmp_path / "ledger", row(shots, "a"))
    before = path.read_bytes()
    twin = row(shots, "b", "test", sha256=shots.digest("x"))
    with pytest.raises(DataError, match=f"1 files lie in a combination's folder .* {shots.digest('x')[:16]}"):
        write(path, row(shots, "x"), twin)
    assert path.read_bytes() == before
    write(path, row(shots, "x"), {**twin, "split": "train"})


def test_a_sitting_is_remembered_when_its_pictures_are_called_otherwise(tmp_path):
    from pillsnap.data.earlier import EarlierSplits
    from pillsnap.data.ledger import writing_ledger

    old = {
        "path": "real_photos/K-030864/K-030864_0_0_0_0_90_315_200.jpg", "kcode": "K-030864", "domain": "real",
        "sha256": "ab" * 32, "used": True, "split": "val", "group": "K-030864/real/b0-s0-e90", "code": None,
        "reason": None,
    }  # fmt: skip
    new = {**old, "path": "real_photos/K-030864/renamed.jpg", "group": "K-030864/real/nabababababababab"}
    path = tmp_path / "pictures.parquet"
    written = []
    for rows in ([old], [new], [new]):
        earlier = [path] if path.is_file() else []
        with writing_ledger(path, 0) as ledger:
            ledger.add(rows)
            ledger.carry_over(earlier)
        written.append(path.read_bytes())
        assert EarlierSplits.load([path]).sittings["K-030864/real/b0-s0-e90"] == "val"
    assert written[1] == written[2] != written[0]
