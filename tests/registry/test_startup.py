"""What commands load: an import takes seconds of the processor, and a command that computes nothing needs few."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pillsnap.cli.main import cli
from pillsnap.cli.registry import registry
from pillsnap.registry.versions import find_version
from pillsnap.tracking.store import connect

COMPUTES = {
    *("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "cv2", "matplotlib", "sklearn", "optuna"),
    *("scipy.stats", "scipy.optimize", "flask", "tensorboard"),
}
"""What is needed only to compute, to draw or to serve. MLflow itself loads pandas, pyarrow and scipy.sparse."""
MLFLOW = {"mlflow", "sqlalchemy", "fastapi", "pandas"}
RUN = """
import json, sys
from pillsnap.cli.main import cli
done = {}
for command in json.loads(sys.argv[1]):
    try:
        status = cli.main(command, standalone_mode=False)
        done[" ".join(command)] = "done" if not status else str(status)
    except BaseException as error:
        done[" ".join(command)] = f"{type(error).__name__}: {error}"
print(json.dumps({"done": done, "modules": sorted(sys.modules)}))
"""


def modules_after(*commands: list[str]) -> set[str]:
    """The modules of a process that has run these commands, each of them to a good end."""
    process = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)], env=os.environ, capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    assert set(told["done"].values()) == {"done"}, told["done"]
    return set(told["modules"])


def test_commands_that_only_talk_to_the_registry_load_nothing_that_computes(
    candidate: Callable[..., str], gate: Any
) -> None:
    first, second = candidate(), candidate()
    gate.judge(first)
    gate.judge(second)
    run_id = find_version(connect(), "pills", first).run_id
    name = ["--name", "pills"]
    loaded = modules_after(
        ["registry", "register", run_id, *name],
        ["registry", "submit", "latest", *name],
        ["registry", "promote", first, *name],
        ["registry", "status", *name],
        ["registry", "history", *name],
        ["registry", "verify"],
        ["registry", "diff", first, second, *name],
        ["registry", "keys"],
    )
    assert "pillsnap.registry.store" in loaded  # the plugin of MLflow's server: it was asked here too
    assert not loaded & COMPUTES


def test_pictures_are_made_and_read_without_mlflow_and_torch(tmp_path: Path, toys: SimpleNamespace) -> None:
    bundle = toys.save_bundle(tmp_path / "toy.onnx", toys.toy_colors(2), "0" * 64)
    raw = tmp_path / "raw"
    render = ["data", "render", "--out", str(raw), "--drugs", "2", "--studio-per-drug", "2", "--real-per-drug", "2"]
    loaded = modules_after([*render, "--workers", "1"])
    assert not loaded & (COMPUTES - {"cv2"} | MLFLOW | {"pyarrow"})
    photo = str(next((raw / "real_photos").rglob("*.jpg")))
    loaded = modules_after(["identify", photo, "--bundle", str(bundle)])
    assert not loaded & (COMPUTES - {"cv2", "onnx", "onnxruntime"} | MLFLOW | {"pyarrow"})


def test_the_package_itself_loads_nothing() -> None:
    code = "import os, sys; before = set(sys.modules); import pillsnap; print(*sorted(set(sys.modules) - before))"
    found = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert found == ["pillsnap", "pillsnap.core", "pillsnap.core.process_environment"], "what sets the environment"


def test_doctor_does_not_load_timm(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("pillsnap.training.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)  # importing it fails
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "trains on" in result.output


@pytest.mark.parametrize(("command", "collects"), [("status", False), ("judge", True)])
def test_short_commands_run_without_the_garbage_collector(
    command: str, collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setitem(
        registry.commands, command, click.Command(command, callback=lambda: seen.append(gc.isenabled()))
    )
    assert CliRunner().invoke(registry, [command]).exit_code == 0
    assert seen == [collects]
    assert gc.isenabled()
