"""``pillsnap data prepare``, killed at the worst moments, twice at once, and on a full disk."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pillsnap.core import manifest as manifest_module
from pillsnap.core.errors import DataError
from pillsnap.core.file_lock import FileLock
from pillsnap.core.manifest import Manifest
from pillsnap.data import links as links_module
from pillsnap.data.audit import AuditLimits
from pillsnap.data.prepare import PrepareRequest, prepare

DRIVER = """
import os, signal, sys
from pillsnap.cli.main import main
import pillsnap.cli.data, pillsnap.data.prepare, matplotlib.figure

out, fatal = sys.argv[1], int(sys.argv[2])
count = 0

def watch(event, arguments):
    '''Counts what is opened for writing, renamed and linked in the output.'''
    global count
    if event not in ("os.rename", "os.symlink", "open"):
        return
    target = arguments[0] if event == "open" else arguments[1]
    if not str(target).startswith(out) or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
sys.argv = ["pillsnap", "data", "prepare", "--out", out, *sys.argv[3:]]
try:
    main()
finally:
    print(count)
"""
DATA_SET = ("manifest.json", "rows.parquet", "splits.json", "class_mapping.json", "pictures.parquet", "report.json")


def contents(out, names=DATA_SET):
    return {name: (out / name).read_bytes() for name in names}


def links(out):
    return {str(path.relative_to(out)): os.readlink(path) for path in out.rglob("*") if path.is_symlink()}


def drive(raw, out, fatal):
    """Run the command in a process of its own that is killed at one of its steps. Returns its status and its steps."""
    environment = {**os.environ, "PYTHONPATH": str(Path(manifest_module.__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, "-c", DRIVER, str(out), str(fatal), "--raw", str(raw), "--min-side", "16", "--workers", "2"],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    return run.returncode, run.stdout.split()[-1] if run.returncode == 0 else ""


def run(raw, out):
    """The same without being killed, in this process."""
    layout = {"drugs": raw / "drugs.json", "studio": raw / "studio", "real": raw / "real_photos"}
    return prepare(PrepareRequest(**layout, out=out, workers=2, limits=AuditLimits(min_side_px=16)))


@pytest.fixture(scope="module")
def grown(tiny, tmp_path_factory):
    """A data set, the pictures that come next, and what an undisturbed run makes of them."""
    root = tmp_path_factory.mktemp("grown")
    raw = tiny.raw(root / "raw")
    run(raw, root / "before")
    for kcode in tiny.kcodes:
        for name in tiny.real_names(kcode, backgrounds=5)[16:]:
            tiny.picture(raw / "real_photos" / kcode / name, f"real {name}")
        for number in range(3):
            tiny.picture(raw / "real_photos" / kcode / f"IMG_{number}.jpg", f"{kcode} {number}")
    tiny.drug_list(raw / "drugs.json", [*tiny.kcodes, "K-000777"])
    for name in tiny.real_names("K-000777"):
        tiny.picture(raw / "real_photos" / "K-000777" / name, f"real {name}")
    shutil.copytree(root / "before", root / "after", symlinks=True)
    status, steps = drive(raw, root / "after", 0)
    assert status == 0
    return raw, root / "before", root / "after", int(steps)


@pytest.fixture(scope="module")
def whole(grown, tmp_path_factory):
    """What an undisturbed first run makes of these pictures."""
    return run(grown[0], tmp_path_factory.mktemp("whole") / "out").manifest.root


@pytest.mark.parametrize("part", [4, *(pytest.param(part, marks=pytest.mark.long) for part in range(10) if part != 4)])
def test_killed_and_run_again(grown, part):
    """Every step of putting things in their place, where the run is most of the way."""
    raw, before, after, steps = grown
    assert steps >= 12
    fatal = steps - part
    out = before.with_name(f"killed{part}")
    shutil.copytree(before, out, symlinks=True)
    former = Manifest.load(out)
    assert drive(raw, out, fatal)[0] == -9
    ledger = {row["sha256"]: row["split"] for row in pq.read_table(out / "pictures.parquet").to_pylist()}
    assert all(ledger[row["sha256"]] == row["split"] for row in former.rows.to_pylist())
    run(raw, out)
    assert contents(out) == contents(after)
    assert links(out) == links(after)
    assert Manifest.load(out).hash == Manifest.load(after).hash != former.hash
    shutil.rmtree(out)


@pytest.mark.parametrize("fatal", [5, *(pytest.param(fatal, marks=pytest.mark.long) for fatal in (1, 2))])
def test_a_first_run_that_is_killed(grown, whole, tmp_path, fatal):
    raw = grown[0]
    assert drive(raw, tmp_path / "out", fatal)[0] == -9
    assert not (tmp_path / "out" / "manifest.json").exists()
    run(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_two_at_once(tiny, raw, tmp_path):
    """The second waits for the first, and finds what it has made."""
    request = tiny.request(raw, tmp_path / "out")
    waits, results = threading.Event(), []

    def second():
        def said(stage, done, total):
            if stage.startswith("waiting for the preparation"):
                waits.set()

        results.append(prepare(request, said))

    thread = threading.Thread(target=second)

    def first(stage, done, total):
        if stage == "listed":
            thread.start()
            assert waits.wait(30)

    result = prepare(request, first)
    thread.join(60)
    assert [one.reused for one in results] == [True]
    assert results[0].manifest.hash == result.manifest.hash


def test_the_memory_is_read_under_the_lock(tiny, raw, tmp_path, monkeypatch):
    """Else a run that waited outside would go on from what another has replaced meanwhile."""
    request = tiny.request(raw, tmp_path / "out")
    prepare(request)

    def load(folders, seed):
        with FileLock() as lock:
            assert not lock.take(request.out / ".lock")
        raise InterruptedError

    monkeypatch.setattr("pillsnap.data.prepare.load_earlier", load)
    with pytest.raises(InterruptedError):
        prepare(request)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["rows", "splits", "ledger", "links"])
def test_a_full_disk_leaves_the_former_data_set(tiny, raw, tmp_path, monkeypatch, where):
    request = tiny.request(raw, tmp_path / "out")
    former = prepare(request).manifest.hash
    before, linked = contents(request.out, DATA_SET[:4]), links(request.out)
    ledger = (request.out / "pictures.parquet").read_bytes()
    tiny.picture(raw / "real_photos" / "K-000059" / "new.jpg")
    match where:
        case "rows":
            monkeypatch.setattr(manifest_module.pq, "write_table", full_disk)
        case "splits":
            monkeypatch.setattr(manifest_module, "write_json", full_disk)
        case "ledger":
            monkeypatch.setattr("pillsnap.data.ledger.LedgerWriter.add", full_disk)
        case "links":
            shutil.rmtree(request.out / "studio")
            monkeypatch.setattr(links_module.Path, "symlink_to", full_disk)
    with pytest.raises((OSError, DataError), match="No space left"):
        prepare(request)
    monkeypatch.undo()
    assert contents(request.out, DATA_SET[:4]) == before
    assert Manifest.load(request.out).hash == former
    assert not list(request.out.rglob("*.part"))
    if where in ("ledger", "links"):
        assert (request.out / "pictures.parquet").read_bytes() == ledger
    if where != "links":
        assert links(request.out) == linked
    assert "new.jpg" in str(prepare(request).manifest.rows["path"].to_pylist())
