from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from pillsnap.cli.main import cli
from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import ConfigError, ImageError
from pillsnap.core.files import sha256_file
from pillsnap.core.images import decode_rgb
from pillsnap.evaluation import benchmark as module
from pillsnap.evaluation.benchmark import STAGES, WHOLE, Photo, drawn_photos, run_benchmark, time_stages
from pillsnap.inference.session import PillSession


@pytest.fixture
def bundle(toys: SimpleNamespace, tmp_path: Path) -> Path:
    return toys.save_bundle(tmp_path / "model.onnx", toys.toy_colors(6))


@pytest.fixture
def photo() -> Photo:
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    return Photo("pill.png", cv2.imencode(".png", picture)[1].tobytes())


def test_what_is_timed_is_what_is_served(bundle: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    session = PillSession.load(bundle)
    ranked = []
    rank = PillSession.rank
    monkeypatch.setattr(PillSession, "rank", lambda *args: (ranked.append(rank(*args)), ranked[-1])[1])
    stages = time_stages(session, photo.data)
    assert tuple(stages) == (*STAGES, WHOLE)
    assert stages[WHOLE] == pytest.approx(sum(stages[stage] for stage in STAGES))
    assert min(stages.values()) > 0
    monkeypatch.undo()
    assert ranked == [session.answer(photo.data).candidates]


def test_every_combination_is_timed_in_turns(
    toys: SimpleNamespace, bundle: Path, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = toys.save_bundle(tmp_path / "other.onnx", toys.toy_colors(5))
    asked: list[str] = []
    stages_of = module.time_stages
    monkeypatch.setattr(
        module, "time_stages", lambda session, *rest: (asked.append(session.source), stages_of(session, *rest))[1]
    )
    told: list[tuple[str, int, int]] = []
    result = run_benchmark(
        [bundle, other],
        [photo],
        threads=[1, 2],
        batches=[1, 3],
        runs=7,
        warm_up=1,
        progress=lambda *now: told.append(now),
    )
    assert len({stage for stage, done, total in told if done == total}) == 2 * (1 + 2)
    found = {(t.bundle, t.threads, t.what, t.batch) for t in result.timings}
    for name in ("model", "other"):
        for threads in (1, 2):
            assert {(name, threads, what, 1) for what in (WHOLE, *STAGES)} <= found
            assert (name, threads, "inference", 3) in found
    assert all(0 <= t.least_ms <= t.p50_ms <= t.p95_ms <= t.p99_ms for t in result.timings)
    assert {t.runs for t in result.timings if t.photo} == {7}
    turns = (
        [str(bundle)] + [str(other)] + ([str(bundle)] * 6 + [str(other)] * 6) + ([str(bundle)] * 3 + [str(other)] * 3)
    )
    assert asked[: len(turns)] == turns
    assert len(result.timings) == 2 * 2 * (6 + 2)


def test_the_threads_go_up_to_the_cores() -> None:
    assert module._doubling(1) == [1]
    assert module._doubling(2) == [1, 2]
    assert module._doubling(6) == [1, 2, 4, 6]


def test_the_drawn_photos_are_a_cameras_and_a_clients() -> None:
    client, camera = drawn_photos()
    assert decode_rgb(camera.data).shape == (3024, 4032, 3)
    assert decode_rgb(client.data).shape == (512, 512, 3)
    assert camera.words.startswith("camera (4032×3024 JPEG, ")
    assert drawn_photos()[1].data == camera.data


def test_the_command_names_machine_engine_and_figures(bundle: Path, photo: Photo, tmp_path: Path) -> None:
    (tmp_path / "pill.png").write_bytes(photo.data)
    target = tmp_path / "b.json"
    arguments = ["benchmark", str(bundle), str(tmp_path / "pill.png"), "--json", str(target), "--runs", "5"]
    done = CliRunner().invoke(cli, [*arguments, "--warm-up", "0", "--threads", "1", "--batch", "2"])
    assert done.exit_code == 0, done.output
    assert "model: float32, CPUExecutionProvider (onnxruntime" in done.output
    assert "| model | 1 | 1 | CLAHE | pill.png (90×60 PNG" in done.output
    report = json.loads(target.read_text())
    assert report["hardware"]
    assert report["cores"] == usable_cores()
    assert report["bundles"][0]["sha256"] == sha256_file(bundle)
    assert report["bundles"][0]["precision"] == "float32"
    assert {"python", "opencv", "numpy", "system"} <= report["environment"].keys()
    assert {timing["batch"] for timing in report["timings"]} == {1, 2}


def test_what_cannot_be_timed_is_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 run"):
        run_benchmark([bundle], [], runs=0)
    with pytest.raises(ConfigError, match="named twice"):
        run_benchmark([bundle, bundle], [], runs=1)
    with pytest.raises(ImageError, match=r"^note\.txt: "):
        run_benchmark([bundle], [Photo("note.txt", b"not a picture")], threads=[1], runs=1, warm_up=0)
