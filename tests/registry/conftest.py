"""A store of one's own, a gate with its key, policy and manifest, and runs with toy bundles as good or bad as asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.tracking import MlflowClient

from pillsnap.core.manifest import Manifest
from pillsnap.gate.envelope import Statement
from pillsnap.gate.keys import generate, load_private_key
from pillsnap.gate.trust import VARIABLE, TrustRoot
from pillsnap.registry.judging import judge
from pillsnap.registry.versions import register
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.run_model import log_bundle
from pillsnap.tracking.store import connect

PROJECT = Path(__file__).parents[2]
CLASSES = 6
Candidate = Callable[..., str]


@dataclass(frozen=True)
class Gate:
    """What a gate has: policy and keys, its private key and its manifest."""

    trust: TrustRoot
    key_file: Path
    manifest: Manifest

    @property
    def key(self) -> Ed25519PrivateKey:
        return load_private_key(self.key_file)

    def judge(self, version: str, name: str = "pills", **options: bool) -> Statement:
        return judge(connect(), name, version, self.manifest, self.key, self.trust, **options)

    def set_policy(self, **changes: object) -> None:
        path = self.trust.folder / "policy.yaml"
        document = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            section, _, rest = key.partition("__")
            if rest:
                document[section][rest] = value
            else:
                document[section] = value
        path.write_text(yaml.safe_dump(document))


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of the gate's reports are tested with the evaluation; to draw them takes longer than to judge."""
    monkeypatch.setattr("pillsnap.evaluation.report.draw_all", lambda *_: [])


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrustRoot:
    """A trust root of one's own: the project's policy, but content with the few pictures of a test."""
    folder = tmp_path / "trust"
    (folder / "keys").mkdir(parents=True)
    document = yaml.safe_load((PROJECT / "registry" / "policy.yaml").read_text())
    document["minimum_test_images"] = {"total": 10, "real": 5, "per_class": 1}
    document["champion"]["margin"] = {"top1": 0.1, "real_top1": 0.1}
    (folder / "policy.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv(VARIABLE, str(folder))
    return TrustRoot(folder)


@pytest.fixture
def gate(trust: TrustRoot, toys: SimpleNamespace, tmp_path: Path) -> Gate:
    """A gate: 6 classes, 10 test photos each."""
    images = [(k, k, "test", "real" if n < 7 else "studio") for n in range(10) for k in range(CLASSES)]
    manifest = toys.save_manifest(tmp_path / "gate" / "data", toys.toy_colors(CLASSES), images)
    generate(tmp_path / "gate" / "gate.key", trust.keys_folder, now=datetime.now(UTC))
    return Gate(trust, tmp_path / "gate" / "gate.key", manifest)


@pytest.fixture
def candidate(store: MlflowClient, gate: Gate, toys: SimpleNamespace, tmp_path: Path) -> Candidate:
    """Make a run with a bundle that always answers ``wrong`` of the classes wrongly, register it; the version."""
    numbers = itertools.count()

    def make(wrong: int = 0, *, name: str = "pills", manifest_hash: str = "") -> str:
        number = next(numbers)
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        colors = toys.toy_colors(CLASSES) + number / 10  # other bytes, the same answers
        colors[:wrong] = (number + 1, 1, 1)  # far from everything
        bundle = toys.save_bundle(folder / "pillsnap.onnx", colors, manifest_hash or gate.manifest.hash)
        with tracked_run("candidate", experiment="exp") as run:
            log_bundle(run, bundle)
        return str(register(run.run_id, name).version)

    return make
