"""The demo's journey, once for all tests of this folder, by the real commands in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

PROJECT = Path(__file__).parents[2]
TINY = """\
name: tiny
preprocessing: {target_size: 32, interpolation: area, clahe: {enabled: false}}
model: {backbone: resnet18, pretrained: false, kwargs: {layers: [1,1,1,1], channels: [8,16,32,64], stem_width: 8}}
data: {batch_size: 8, workers: 0}
training: {epochs: 2, warmup_epochs: 0.5}
tuning: {trials: 2, epochs: 1}
"""
LOOSE = """\
policy_version: 2
at_least:
  top1:      {target: 0, minimum: 0}
  top5:      {target: 0, minimum: 0}
  real_top1: {target: 0, minimum: 0}
below:
  latency_p95_ms: {target: 5000, minimum: 5000}
  size_mb:        {target: 100, minimum: 150}
minimum_test_images: {real: 1, total: 1, per_class: 0}
latency_profile: {provider: "*", most_threads: 1000, hardware: ["*"]}
champion: {margin: {top1: 1, real_top1: 1}}
test_manifest: {trusted: [], max_age_days: null}
decision_max_age_days: null
"""


@dataclass(frozen=True)
class Site:
    """A folder with an experiment, a loose policy, a workspace and a store."""

    folder: Path
    environment: dict[str, str] = field(repr=False)

    @property
    def store(self) -> MlflowClient:
        return MlflowClient(self.environment["MLFLOW_TRACKING_URI"])

    @property
    def demo_command(self) -> list[str]:
        options = ["--workspace", self.folder / "w", "--drugs", 4, "--studio-per-drug", 30]
        options += ["--config", self.folder / "tiny.yaml"]
        return [sys.executable, "-m", "pillsnap", "demo", *map(str, options)]

    def mlflow_run(self, entry: str = "main", **parameters: object) -> list[str]:
        named = [part for key, value in parameters.items() for part in ("-P", f"{key}={value}")]
        experiment = ("--experiment-name", "elsewhere")
        start = (sys.executable, "-m", "mlflow", "run", str(PROJECT), "-e", entry, "--env-manager", "local")
        return [*start, *experiment, *named]

    def start(self, command: list[str], cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory, fresh_store: Path) -> Site:
    folder = tmp_path_factory.mktemp("site")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "loose.yaml").write_text(LOOSE)
    (folder / "trust").mkdir()
    shutil.copy(PROJECT / "registry" / "policy.yaml", folder / "trust")
    shutil.copy(fresh_store, folder / "mlflow.db")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PILLSNAP_TRUST_ROOT": str(folder / "trust"),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",  # a tiny net on busy cores
    }
    environment.pop("MLFLOW_RUN_ID", None)
    return Site(folder, environment)


@pytest.fixture(scope="package")
def journey(site: Site) -> tuple[int, str]:
    """Exit status and output of ``pillsnap demo``."""
    process = site.start(site.demo_command, PROJECT)
    output, _ = process.communicate(timeout=580)
    return process.returncode, output
