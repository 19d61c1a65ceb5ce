"""No command asks for a host that the user did not name: the check is in the fixture ``environment``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SESSION = "import pillsnap, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"
COMMANDS = (
    ("identify", "examples/1.jpg", "--bundle", "{bundle}"),
    ("doctor",),
    ("train", "--data", "{data}", "--config", "{config}", "--workspace", "{out}", "--set", "training.epochs=1"),
    ("run", "--data", "{data}", "--config", "{config}", "--workspace", "{out}", "--set", "training.epochs=1"),
    ("tune", "--data", "{data}", "--config", "{config}", "--workspace", "{out}", "--out", "{out}/best.yaml"),
    ("evaluate", "{bundle}", "--manifest", "{data}", "--out", "{out}"),
    ("benchmark", "{bundle}", "examples/1.jpg", "--runs", "2"),
    ("registry", "status"),
)


@pytest.mark.parametrize(
    "command", [pytest.param(command, id=command[0], marks=pytest.mark.long) for command in COMMANDS]
)
def test_a_command(prepared: Path, tmp_path: Path, environment: dict[str, str], command: tuple[str, ...]) -> None:
    bundle, data, config = (prepared / name for name in ("bundle.onnx", "data", "tiny.yaml"))
    words = [word.format(bundle=bundle, data=data, config=config, out=tmp_path / "out") for word in command]
    done = subprocess.run(
        [sys.executable, "-m", "pillsnap", *words], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1), done.stderr


@pytest.mark.long
@pytest.mark.parametrize("silent", [True, False])
def test_the_check_itself(
    lookups_library: Path, prepared: Path, tmp_path: Path, environment: dict[str, str], silent: bool
) -> None:
    """ONNX Runtime does report where nobody stops it: else this file would find nothing whatever happens."""
    home, lookups = tmp_path / "elsewhere", tmp_path / "asked"
    home.mkdir()
    lookups.touch()
    own = {"HOME": str(home), "LOOKUPS": str(lookups)} | ({} if silent else {"ORT_DISABLE_TELEMETRY": "0"})
    code = f"{SESSION}; import time; time.sleep(30)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(prepared / "bundle.onnx")], env=environment | own
    ) as process:
        until = time.monotonic() + 30
        while process.poll() is None and not lookups.read_text() and time.monotonic() < until:
            time.sleep(0.2)
        process.kill()
    assert bool(lookups.read_text()) is (home / ".cache" / "Microsoft").exists() is not silent


def test_a_session(prepared: Path, environment: dict[str, str]) -> None:
    """The short form: who loads a bundle as a function of the library."""
    subprocess.run([sys.executable, "-c", SESSION, str(prepared / "bundle.onnx")], env=environment, check=True)
