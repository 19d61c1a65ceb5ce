"""Commands in processes of their own: signals, and an environment without torch."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

PROJECT = Path(__file__).parents[2]

WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from pillsnap.cli.main import main

folder, out = sys.argv[1:3]
photo, bundle, data = f"{folder}/data/00040.png", f"{folder}/bundle.onnx", f"{folder}/data"
for command in (
    ["identify", photo, "--bundle", bundle],
    ["evaluate", bundle, "--manifest", data, "--out", f"{out}/evaluation"],
    ["gate", f"{out}/evaluation/evidence.json", "--bundle", bundle, "--manifest", data],
    ["train", "--data", data, "--config", f"{folder}/tiny.yaml", "--workspace", f"{out}/w"],
):
    sys.argv = ["pillsnap", *command]
    try:
        main()
    except SystemExit as end:
        print(f"{command[0]} ended with {end.code}", file=sys.stderr, flush=True)
assert "torch" not in sys.modules
"""


def _hear_interrupts() -> None:
    """A shell makes what it starts in the background, and all that comes of it, deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _ended_by(number: int, process: subprocess.Popen[bytes], said_in: Path) -> str:
    """Send a signal after the first epoch; what the process has said when it ended."""
    deadline = time.monotonic() + 300
    while "epoch 1 of" not in said_in.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(timeout=60)
    return said_in.read_text()


@pytest.mark.e2e
def test_signals_during_training(
    prepared: Path, tmp_path: Path, environment: dict[str, str], store: MlflowClient
) -> None:
    """Ctrl-C, SIGTERM and a closed terminal end the MLflow run in a terminal status, the command with 1."""
    signals = {
        "int": (signal.SIGINT, "data.workers=0"),
        "term": (signal.SIGTERM, "data.workers=1"),
        "hup": (signal.SIGHUP, "data.workers=0"),
    }
    started = {}
    for name, (_, setting) in signals.items():
        arguments = ["--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path / name]
        command = [sys.executable, "-m", "pillsnap", "run", *map(str, arguments)]
        command += ["--set", "training.epochs=1000000", "--set", setting]
        with (tmp_path / f"{name}.err").open("w") as sink:
            started[name] = subprocess.Popen(
                command, cwd=PROJECT, env=environment, stderr=sink, preexec_fn=_hear_interrupts
            )
    try:
        said = {
            name: _ended_by(signals[name][0], process, tmp_path / f"{name}.err") for name, process in started.items()
        }
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    for name, process in started.items():
        assert process.returncode == 1, said[name]
        assert "error: interrupted" in said[name]
        assert "Traceback" not in said[name]
    found = store.get_experiment_by_name("pillsnap")
    assert found is not None
    runs = store.search_runs([found.experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3
    for run in runs:
        assert run.data.tags["ended_because"].startswith("KeyboardInterrupt")
        assert run.data.metrics["val/top1"] >= 0, "what was measured before is kept"


def test_without_torch(prepared: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """The base install answers, evaluates and judges; training says what it needs."""
    command = [sys.executable, "-c", WITHOUT_TORCH, str(prepared), str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "K-990002  가상정1" in done.stdout
    assert (tmp_path / "evaluation" / "report.md").is_file()
    assert "Top-1                   100.0 %" in done.stdout
    for ended in ("identify ended with 0", "evaluate ended with 0", "gate ended with 1", "train ended with 1"):
        assert ended in done.stderr
    assert "verdict: HOLD" in done.stdout, "all right, on too few images"
    assert re.search(r"needs the package (torch|timm): pip install 'pillsnap\[train\]'", done.stderr)
    assert "fault in PillSnap" not in done.stderr
