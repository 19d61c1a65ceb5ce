"""A store, a prepared data set of coloured pictures with a bundle that fits it, and a caller of commands."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pillsnap.cli.main import main
from pillsnap.core.process_environment import REPORTS_TO_NOBODY

PROJECT = Path(__file__).parents[2]
TINY = """\
name: tiny
preprocessing: {target_size: 32, interpolation: area, clahe: {enabled: false}}
model: {backbone: resnet18, pretrained: false, kwargs: {layers: [1,1,1,1], channels: [8,16,32,64], stem_width: 8}}
data: {batch_size: 8, workers: 0}
training: {epochs: 2, warmup_epochs: 0.5}
tuning: {trials: 2, epochs: 1}
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command from the project's folder, in this process; its status, output and errors."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.delenv("PILLSNAP_DEBUG", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pillsnap", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        output = capsys.readouterr()
        return int(exit_info.value.code or 0), output.out, output.err

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, toys: SimpleNamespace) -> Path:
    """A folder with ``data`` (a manifest), ``bundle.onnx`` (which answers it rightly) and ``tiny.yaml``; read only."""
    folder = tmp_path_factory.mktemp("prepared")
    splits = ["train"] * 24 + ["val"] * 9 + ["test"] * 9
    images = [(n % 3, n % 3, split, ("real", "studio")[n % 2]) for n, split in enumerate(splits)]
    manifest = toys.save_manifest(folder / "data", toys.toy_colors(3), images)
    toys.save_bundle(folder / "bundle.onnx", toys.toy_colors(3), manifest.hash)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture
def own(prepared: Path, tmp_path: Path) -> Path:
    """A copy of `prepared` of one's own to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "own"))


@pytest.fixture(scope="session")
def lookups_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tests/lookups.c``, to be preloaded: a resolver that writes down what it is asked."""
    library = tmp_path_factory.mktemp("lookups") / "lookups.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, PROJECT / "tests" / "lookups.c", "-ldl"], check=True)
    return library


@pytest.fixture
def environment(store: object, lookups_library: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a command in a process of its own; one thread, for a tiny net on busy cores.

    No such command may ask for a host that nobody named, or leave a library's device id in the home folder. ``CI``
    silences libraries, so it is not set.
    """
    home, lookups = tmp_path / "home", tmp_path / "lookups"
    home.mkdir()
    lookups.touch()
    silencing = {"CI", *REPORTS_TO_NOBODY}
    kept = {name: value for name, value in os.environ.items() if name not in silencing}
    watched = {"HOME": str(home), "LD_PRELOAD": str(lookups_library), "LOOKUPS": str(lookups)}
    watched["MPLCONFIGDIR"] = str(Path.home() / ".cache" / "matplotlib")  # a list of fonts takes seconds to make
    yield {**kept, **watched, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    assert set(lookups.read_text().split()) <= {"localhost", "127.0.0.1", "::1", socket.gethostname()}
    assert not (home / ".cache" / "Microsoft").exists()
