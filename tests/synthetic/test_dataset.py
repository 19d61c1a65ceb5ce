"""The folder: same bytes however rendered, reused when whole, mended when not, never at another's cost."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import shutil
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest

from pillsnap.core.errors import ConfigError, DataError
from pillsnap.synthetic.dataset import DemoSpec, render_dataset

SPEC = DemoSpec(drugs=4, seed=5, studio_per_drug=4, real_per_drug=30, workers=1)
SMALLER = DemoSpec(drugs=2, seed=5, studio_per_drug=2, real_per_drug=30, workers=1)
STUDIO_NAME = re.compile(r"(K-99\d{4})_0_[0-2]_[01]_[0-2]_(60|70|75|90)_(\d{3})_200\.png")
REAL_NAME = re.compile(r"(K-99\d{4})_[0-4]_[0-2]_[01]_0_90_(\d{3})_200\.jpg")


def _bytes_of(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "raw"
    render_dataset(root, SPEC)
    return root


@pytest.fixture
def copy(rendered: Path, tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    shutil.copytree(rendered, root)
    return root


def test_same_bytes_with_two_workers(rendered: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    spec = DemoSpec(drugs=4, seed=5, studio_per_drug=4, real_per_drug=30, workers=2)
    deaf: dict[int | None, bool] = {}

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        for worker in multiprocessing.active_children():
            status = Path(f"/proc/{worker.pid}/status").read_text()
            deaf[worker.pid] = bool(int(status.partition("SigBlk:")[2].split()[0], 16) >> (signal.SIGINT - 1) & 1)

    report = render_dataset(tmp_path / "two", spec, progress)
    assert _bytes_of(tmp_path / "two") == _bytes_of(rendered)
    assert calls == [(34 * n, 136) for n in (0, 1, 2, 3, 4)], "and a sign of life before the first is done"
    assert (report.reused, report.studio_images, report.real_images) == (False, 16, 120)
    assert list(deaf.values()) == [True, True], "Ctrl-C is for the process that started them"


def test_file_names_follow_the_protocols(rendered: Path) -> None:
    for pattern, domain, step, count in ((STUDIO_NAME, "studio", 20, 16), (REAL_NAME, "real_photos", 45, 120)):
        files = [path for path in (rendered / domain).rglob("*") if path.is_file()]
        assert len(files) == count
        for path in files:
            match = pattern.fullmatch(path.name)
            assert match is not None
            assert match[1] == path.parent.name
            assert int(match[match.lastindex or 0]) % step == 0


def test_pictures_decode_and_the_list_names_the_folders(rendered: Path) -> None:
    document = json.loads((rendered / "drugs.json").read_text(encoding="utf-8"))
    codes = {drug["kcode"] for drug in document["drugs"]}
    assert codes == {folder.name for folder in (rendered / "studio").iterdir()}
    assert codes == {folder.name for folder in (rendered / "real_photos").iterdir()}
    studio = cv2.imread(str(next((rendered / "studio").rglob("*.png"))))
    real = cv2.imread(str(next((rendered / "real_photos").rglob("*.jpg"))))
    assert studio is not None
    assert real is not None
    assert studio.shape == (320, 244, 3)
    assert real.shape == (300, 400, 3)
    assert cv2.imread(str(rendered / "contact_sheet.png")) is not None


def test_stamp_tells_the_digest_over_all_files(rendered: Path) -> None:
    stamp = json.loads((rendered / "render.json").read_text(encoding="utf-8"))
    files = {path: sha256 for path, sha256 in _bytes_of(rendered).items() if path != "render.json"}
    lines = "".join(sorted(f"{path} {sha256}\n" for path, sha256 in files.items()))
    assert stamp["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert stamp["files"] == len(files)
    assert "workers" not in stamp["spec"]


def test_whole_folder_is_reused_untouched(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    report = render_dataset(copy, SPEC)
    assert report.reused
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "no stamp"])
def test_damaged_folder_is_mended(copy: Path, rendered: Path, damage: str) -> None:
    victim = next((copy / "studio").rglob("*.png"))
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:100])
    else:
        victim.unlink()
    victim.with_name(victim.name + ".part").write_bytes(b"half")
    if damage == "no stamp":
        (copy / "render.json").unlink()
    report = render_dataset(copy, SPEC)
    assert not report.reused
    assert report.removed == 1
    assert _bytes_of(copy) == _bytes_of(rendered)


def test_files_of_another_spec_go_and_strange_ones_stay(copy: Path, tmp_path: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    report = render_dataset(copy, SMALLER)
    assert report.removed > 0
    (copy / "notes.txt").unlink()
    render_dataset(tmp_path / "fresh", SMALLER)
    assert _bytes_of(copy) == _bytes_of(tmp_path / "fresh")
    assert len(list((copy / "studio").iterdir())) == 2


@pytest.mark.parametrize(
    "name",
    [
        "holiday.jpg",
        "drugs.json",
        "render.json",
        "contact_sheet.png",
        "studio/K-000573/K-000573_0_0_0_0_90_000_200.png",
    ],
)
def test_foreign_folder_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    before = _bytes_of(tmp_path)
    with pytest.raises(DataError, match="not of the demo data set"):
        render_dataset(tmp_path, SMALLER)
    assert _bytes_of(tmp_path) == before


def test_file_or_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        render_dataset(tmp_path / "file", SMALLER)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "studio").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link"):
        render_dataset(tmp_path / "root", SMALLER)


@pytest.mark.parametrize(
    "values",
    [{"drugs": 1}, {"seed": -1}, {"studio_per_drug": 1297}, {"real_per_drug": 241}, {"workers": 0}],
)
def test_spec_out_of_range_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        DemoSpec(**values)


def test_ctrl_c_is_for_the_process_that_started_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to all of them, and a worker that dies of it, still importing, prints a trace. What comes
    while they are started draws no more pictures."""
    blocked: list[bool] = []
    shut: list[bool] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *call: Any, **named: Any) -> Any:
            blocked.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            signal.raise_signal(signal.SIGINT)
            return Future()

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            shut.append(cancel_futures)
            super().shutdown(wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(
        "pillsnap.synthetic.dataset.ProcessPoolExecutor", lambda workers, mp_context, initializer: Pool(workers)
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it
    try:
        with pytest.raises(KeyboardInterrupt):
            render_dataset(tmp_path, replace(SMALLER, workers=2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert blocked == [True] * 3, "each piece of work starts a worker"
    assert shut[0]
