import gc
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pillsnap.core.boxes import Box
from pillsnap.core.errors import DataError
from pillsnap.core.image_quality import Figures
from pillsnap.data import scan
from pillsnap.data.names import Condition, Domain
from pillsnap.data.parallel import no_progress
from pillsnap.data.reading import Reading, read_picture
from pillsnap.data.scan import ScanStore
from pillsnap.data.sources import Picture

trees = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("trees.py"))))
ONE, TWO = "K-000059", "K-030864"
SOUND = Figures(10, 200, 90, 50, 1)


def write(path, key=None):
    trees.write(path, trees.picture_bytes(key or path.name, path.suffix))
    return path


def picture(path, kcode=ONE, domain: Domain = "real", **more):
    return Picture(f"real_photos/{kcode}/{path.name}", path, kcode, domain, **more)


@pytest.fixture
def folder(tmp_path):
    """Three pictures."""
    return [picture(write(tmp_path / "raw" / f"{name}.png")) for name in "abc"]


@pytest.fixture
def read_names(monkeypatch):
    """Names of the pictures that were read, in order."""
    names = []

    def spy(picture):
        names.append(picture.source.name)
        return read_picture(picture)

    monkeypatch.setattr(scan, "read_picture", spy)
    return names


def run(path, pictures, kcode=ONE):
    with ScanStore.open(path) as store:
        store.sync(iter(pictures))
        store.read_missing(1, no_progress)
        return {one.path: (one, reading) for one, reading in store.of_class(kcode)}


def fill(path, readings):
    """A store of these (picture, reading), without a file of them."""
    found = {picture.path: reading for picture, reading in readings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "read_picture", lambda picture: found[picture.path])
        run(path, [picture for picture, _ in readings])


class TestWhatIsReadAgain:
    def test_nothing_that_is_unchanged(self, tmp_path, folder, read_names):
        first = run(tmp_path / "scan.db", folder)
        assert read_names == ["a.png", "b.png", "c.png"]
        assert run(tmp_path / "scan.db", folder) == first
        assert len(read_names) == 3

    def test_a_changed_size(self, tmp_path, folder, read_names):
        run(tmp_path / "scan.db", folder)
        with folder[1].source.open("ab") as file:
            file.write(b"more")
        run(tmp_path / "scan.db", folder)
        assert read_names[3:] == ["b.png"]

    def test_a_changed_time(self, tmp_path, folder, read_names):
        run(tmp_path / "scan.db", folder)
        os.utime(folder[1].source, ns=(1, 1))
        run(tmp_path / "scan.db", folder)
        assert read_names[3:] == ["b.png"]

    def test_another_content_of_the_same_size_under_a_forged_time(self, tmp_path, folder, read_names):
        before = run(tmp_path / "scan.db", folder)[folder[1].path][1]
        path, status = folder[1].source, folder[1].source.stat()
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        after = run(tmp_path / "scan.db", folder)[folder[1].path][1]
        assert read_names[3:] == ["b.png"]
        assert after.sha256 != before.sha256

    def test_a_label_that_came_changed_and_went(self, tmp_path, read_names):
        stem = trees.name(ONE)
        source = write(tmp_path / f"{stem}.png")
        label = trees.write(tmp_path / "label.json", trees.label(stem, ONE, None))
        without, labelled = picture(source, domain="studio"), picture(source, domain="studio", label=label)
        run(tmp_path / "scan.db", [without])
        run(tmp_path / "scan.db", [labelled])
        assert len(read_names) == 2
        label.write_text(trees.label(stem, ONE, None, camera_la=60))
        notes = [reading.notes for _, reading in run(tmp_path / "scan.db", [labelled]).values()]
        assert notes == [("the label says elevation 60, the name 90",)]
        notes = [reading.notes for _, reading in run(tmp_path / "scan.db", [without]).values()]
        assert notes == [()]
        assert len(read_names) == 4

    def test_a_name_that_is_no_longer_believed(self, tmp_path, folder, read_names):
        run(tmp_path / "scan.db", folder)
        run(tmp_path / "scan.db", [picture(one.source, named=False) for one in folder])
        assert len(read_names) == 6

    def test_another_version_of_the_reader(self, tmp_path, folder, read_names, monkeypatch):
        run(tmp_path / "scan.db", folder)
        monkeypatch.setattr(scan, "READER_VERSION", scan.READER_VERSION + 1)
        run(tmp_path / "scan.db", folder)
        assert len(read_names) == 6

    def test_not_a_tree_that_is_mounted_elsewhere(self, tmp_path, folder, read_names):
        before = run(tmp_path / "scan.db", folder)
        (tmp_path / "raw").rename(tmp_path / "moved")
        moved = [picture(tmp_path / "moved" / one.source.name) for one in folder]
        after = run(tmp_path / "scan.db", moved)
        assert len(read_names) == 3
        assert [one for one, _ in after.values()] == moved
        assert [reading for _, reading in after.values()] == [reading for _, reading in before.values()]

    def test_a_picture_that_could_not_be_read_is_tried_again(self, tmp_path, folder, read_names, monkeypatch):
        def away(_):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.read_bytes", away)
            found = run(tmp_path / "scan.db", folder[:1])
        assert [reading.fault_code for _, reading in found.values()] == ["unreadable"]
        found = run(tmp_path / "scan.db", folder[:1])
        assert [reading.fault for _, reading in found.values()] == [""]
        assert len(read_names) == 2

    def test_a_removed_picture_is_forgotten(self, tmp_path, folder):
        run(tmp_path / "scan.db", folder)
        assert list(run(tmp_path / "scan.db", folder[1:])) == [folder[1].path, folder[2].path]
        with ScanStore.open(tmp_path / "scan.db") as store:
            assert store.counts() == store.usable_counts() == {(ONE, "real"): 2}

    def test_a_listing_that_fails_changes_nothing(self, tmp_path, folder):
        run(tmp_path / "scan.db", folder)

        def broken():
            yield folder[0]
            raise DataError("cannot be listed")

        with pytest.raises(DataError, match="cannot be listed"), ScanStore.open(tmp_path / "scan.db") as store:
            store.sync(broken())
        with ScanStore.open(tmp_path / "scan.db") as store:
            assert store.counts() == {(ONE, "real"): 3}

    def test_an_unchanged_scan_writes_nothing(self, tmp_path, folder):
        run(tmp_path / "scan.db", folder)
        before = (tmp_path / "scan.db").stat().st_mtime_ns
        run(tmp_path / "scan.db", folder)
        assert (tmp_path / "scan.db").stat().st_mtime_ns == before


def test_everything_survives_the_store(tmp_path):
    name = f"{ONE}_0_1_0_2_75_040_200.png"
    named = Picture(f"studio/{ONE}/{name}", Path("x"), ONE, "studio", Condition(1, 2, 0, 75, 40), True, Path("y.json"))
    plain = Picture(f"studio/{ONE}/{trees.name(ONE)}.png", Path("z"), ONE, "studio", named=False)
    one = Reading(named.path, "ab", 976, 1280, "d" * 16, "e" * 16, bytes(256), SOUND, Box(1, 2, 3, 4), ("말", "둘"))
    two = Reading(plain.path, "cd", fault_code="truncated", fault="is cut off")
    fill(tmp_path / "scan.db", [(named, one), (plain, two)])
    with ScanStore.open(tmp_path / "scan.db") as store:
        assert store.of_class(ONE) == [(plain, two), (named, one)]  # in the order of their paths
        assert store.of_class(TWO) == []
        assert store.counts() == {(ONE, "studio"): 2}
        assert store.usable_counts() == {(ONE, "studio"): 1}


class TestAcrossClasses:
    def one(self, name, kcode, sha256, hashed="0" * 16, **more):
        fault = more.pop("fault", "")
        found = Picture(f"studio/{kcode}/{name}", Path(name), kcode, "studio", **more)
        figures = None if fault else SOUND
        return found, Reading(found.path, sha256, 9, 9, hashed, hashed, b"", figures, fault=fault, fault_code=fault)

    def test_copies(self, tmp_path):
        fill(
            tmp_path / "scan.db",
            [
                self.one("a", ONE, "s1"),
                self.one("b", TWO, "s1"),
                self.one("c", ONE, "s2"),
                self.one("d", ONE, "s2"),  # copies under one drug are no label error
                self.one("e", ONE, "s3", combination=True),
                self.one("e", TWO, "s3", combination=True),
                self.one("f", ONE, "s4"),
                self.one("f", TWO, "s4", fault="label_of_another_drug"),  # it is known which one is wrong
            ],
        )
        with ScanStore.open(tmp_path / "scan.db") as store:
            assert store.copies_across_classes() == {"s1": (f"studio/{ONE}/a", f"studio/{TWO}/b")}

    def test_alike(self, tmp_path):
        fill(
            tmp_path / "scan.db",
            [
                self.one("a", ONE, "s1", "1" * 16),
                self.one("b", TWO, "s2", "1" * 16),
                self.one("c", ONE, "s3", "2" * 16),
                self.one("d", ONE, "s4", "2" * 16),  # alike under one drug: near-duplicates
                self.one("e", ONE, "s5", "3" * 16),
                self.one("e", TWO, "s5", "3" * 16),  # the same file: see copies
                self.one("f", ONE, "s6", "4" * 16, combination=True),
                self.one("g", TWO, "s7", "4" * 16, combination=True),
            ],
        )
        with ScanStore.open(tmp_path / "scan.db") as store:
            assert store.alike_across_classes() == {"1" * 32: (f"studio/{ONE}/a", f"studio/{TWO}/b")}

    def test_sizes_and_figures(self, tmp_path):
        pairs = []
        for number, (size, sharpness) in enumerate([((40, 30), 1), ((30, 40), 100), ((20, 20), 0)]):
            found = Picture(f"real_photos/{ONE}/{number}", Path("x"), ONE, "real")
            figures = Figures(0, 255, 90, sharpness, 1)
            pairs.append((found, Reading(found.path, str(number), *size, figures=figures)))
        broken = Picture(f"real_photos/{ONE}/broken", Path("x"), ONE, "real")
        fill(tmp_path / "scan.db", [*pairs, (broken, Reading(broken.path, "b", fault="x", fault_code="truncated"))])
        with ScanStore.open(tmp_path / "scan.db") as store:
            assert store.usual_sizes() == {"studio": {}, "real": {(40, 30): 2, (20, 20): 1}}
            edges, counts = store.figure_histogram("sharpness", log=True, bins=4)["real"]
            np.testing.assert_allclose(edges, [-2, -1, 0, 1, 2], atol=1e-5)
            assert counts.tolist() == [1, 0, 1, 1]
            assert sum(store.figure_histogram("mean")["real"][1]) == 3  # of one value only
            with pytest.raises(ValueError, match="none of"):
                store.figure_histogram("fault")


class TestDamage:
    def test_a_file_that_is_no_database_is_read_anew(self, tmp_path, folder, read_names, caplog):
        (tmp_path / "scan.db").write_bytes(b"not a database" * 100)
        assert len(run(tmp_path / "scan.db", folder)) == 3
        assert "all pictures are read again" in caplog.text

    def test_a_store_of_another_version_is_read_anew(self, tmp_path, folder, read_names):
        connection = sqlite3.connect(tmp_path / "scan.db")
        connection.execute("CREATE TABLE picture (path TEXT PRIMARY KEY, size INTEGER)")
        connection.commit()
        connection.close()
        assert len(run(tmp_path / "scan.db", folder)) == 3
        assert len(read_names) == 3

    def test_damage_within_is_told_and_mended_by_the_next_run(self, tmp_path, read_names):
        pictures = [picture(write(tmp_path / "raw" / f"{number}.png")) for number in range(60)]
        path = tmp_path / "scan.db"
        run(path, pictures)
        data = path.read_bytes()
        path.write_bytes(data[:8192] + b"\xa5" * (len(data) - 8192))
        with pytest.raises(DataError, match=r"scan.db: was damaged .*run it again"):
            run(path, pictures)
        assert len(run(path, pictures)) == 60

    def test_another_process_holds_it(self, tmp_path, folder, monkeypatch):
        monkeypatch.setattr(scan, "_BUSY_S", 0.05)
        run(tmp_path / "scan.db", folder)
        holder = sqlite3.connect(tmp_path / "scan.db")
        holder.execute("BEGIN IMMEDIATE")
        holder.execute("DELETE FROM picture")
        with pytest.raises(DataError, match=r"scan.db: database is locked; .*does another preparation run\?"):
            run(tmp_path / "scan.db", folder[:2])
        holder.rollback()
        holder.close()
        assert len(run(tmp_path / "scan.db", folder[:2])) == 2

    def test_a_full_disk(self, tmp_path, monkeypatch):
        pictures = [picture(write(tmp_path / "raw" / f"{number}.png")) for number in range(200)]
        connect = sqlite3.connect

        def small_disk(*args, **options):
            connection = connect(*args, **options)
            connection.execute("PRAGMA max_page_count = 16")
            return connection

        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", small_disk)
            with pytest.raises(DataError, match=r"scan.db: database or disk is full; is the disk full"):
                run(tmp_path / "scan.db", pictures)
        assert len(run(tmp_path / "scan.db", pictures)) == 200  # nothing is damaged by it


@pytest.mark.parametrize(("fewer", "more"), [(2_000, 6_000), pytest.param(2_000, 20_000, marks=pytest.mark.long)])
def test_memory_stays_flat_however_many_pictures(tmp_path, monkeypatch, fewer, more):
    def listed(count):
        for number in range(count):
            yield Picture(f"real_photos/{ONE}/{number:07d}.jpg", tmp_path / "gone.jpg", ONE, "real")

    def read(picture):
        return Reading(picture.path, "0" * 64, 9, 9, "0" * 16, "0" * 16, bytes(256), SOUND)

    monkeypatch.setattr(scan, "read_picture", read)
    # On a busy machine the clock would end some chunks early, and others not: here their size alone does.
    monkeypatch.setattr(scan, "_COMMIT_S", float("inf"))

    def peak_bytes(count, turn):
        with ScanStore.open(tmp_path / f"{count}-{turn}.db") as store:
            tracemalloc.start()
            assert store.sync(listed(count)) == count
            store.read_missing(2, no_progress)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert store.usable_counts() == {(ONE, "real"): count}
        return peak

    gc.collect()
    gc.freeze()  # among the objects of a whole test session, garbage would wait longer to be collected
    try:
        # pathlib interns names, and the interpreter's table of them grows now and then, by megabytes: not in every turn
        few, many = (min(peak_bytes(count, turn) for turn in range(3)) for count in (fewer, more))
    finally:
        gc.unfreeze()
    assert many < 1.3 * few


KILLED = """
import sys, time
from pathlib import Path
from pillsnap.data import scan
from pillsnap.data.parallel import no_progress
from pillsnap.data.sources import CaptureSource
from pillsnap.data.reading import read_picture

def slow(picture):
    time.sleep(0.004)
    return read_picture(picture)

scan.read_picture = slow
scan._COMMIT_S = 0.05
root, database = Path(sys.argv[1]), Path(sys.argv[2])
source = CaptureSource(root)
(folder,) = source.folders(["K-000059"])["K-000059"]
with scan.ScanStore.open(database) as store:
    store.sync(source.pictures(folder, "K-000059", "real_photos/K-000059"))
    store.read_missing(2, lambda stage, done, total: print(done, flush=True))
"""


def test_a_killed_scan_goes_on_where_it_stopped(tmp_path, read_names):
    pictures = [picture(write(tmp_path / "raw" / ONE / f"{number:03d}.jpg")) for number in range(300)]
    database = tmp_path / "scan.db"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "raw"), str(database)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 120:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    totals = set()
    with ScanStore.open(database) as store:
        kept = sum(store.usable_counts().values())
        assert 0 < kept < 300
        store.sync(pictures)
        store.read_missing(2, lambda stage, done, total: totals.add((stage, total)))
        resumed = store.of_class(ONE)
    assert totals == {("reading pictures", 300 - kept)}
    assert len(read_names) == 300 - kept
    assert {one.path: (one, reading) for one, reading in resumed} == run(tmp_path / "undisturbed.db", pictures)


def test_results_are_committed_as_they_come(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(scan, "_COMMIT_S", 0.0)
    seen = []

    def progress(stage, done, total):
        other = sqlite3.connect(tmp_path / "scan.db")
        seen.append(other.execute("SELECT count(*) FROM picture WHERE read_stamp = stamp").fetchone()[0])
        other.close()

    with ScanStore.open(tmp_path / "scan.db") as store:
        store.sync(folder)
        store.read_missing(1, progress)
    assert seen == [0, 0, 1, 2]


def test_an_exception_keeps_what_was_read(tmp_path, folder, monkeypatch):
    def read(picture):
        if picture.source.name == "c.png":
            raise KeyboardInterrupt
        return read_picture(picture)

    with monkeypatch.context() as patch, ScanStore.open(tmp_path / "scan.db") as store:
        patch.setattr(scan, "read_picture", read)
        store.sync(folder)
        with pytest.raises(KeyboardInterrupt):
            store.read_missing(1, no_progress)
    with ScanStore.open(tmp_path / "scan.db") as store:
        assert store.usable_counts() == {(ONE, "real"): 2}
