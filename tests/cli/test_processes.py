"""The base install, in a process of its own: an environment without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
