"""A store of one's own, and finished runs with toy bundles and any evidence that a test wants."""

from __future__ import annotations

import itertools
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from pillsnap.core.evidence import ClassResult, Evidence, Latency, Metric
from pillsnap.core.files import sha256_file
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.run_model import log_bundle

_tracking = runpy.run_path(str(Path(__file__).parents[1] / "tracking" / "conftest.py"))
fresh_store, store = _tracking["fresh_store"], _tracking["store"]
pytest_collection_modifyitems = _tracking["pytest_collection_modifyitems"]

MANIFEST = "a" * 64
GOOD = {"top1": 0.9, "top5": 0.97, "real_top1": 0.85, "latency_p95_ms": 40.0, "size_mb": 81.5}
Candidate = Callable[..., str]


def _evidence(values: dict[str, float], bundle_sha256: str, manifest_hash: str, run_id: str) -> Evidence:
    counts = {"top1": 500, "top5": 500, "real_top1": 350}
    classes = tuple(
        ClassResult(kcode=f"K-{i:06d}", drug_name="d", images=9, top1=1.0, real_top1=None, confused_with=None)
        for i in range(3)
    )
    return Evidence(
        bundle_sha256=bundle_sha256,
        manifest_hash=manifest_hash,
        run_id=run_id,
        created="2026-11-01T00:00:00+00:00",
        metrics={name: Metric(value=value, images=counts.get(name)) for name, value in values.items()},
        slices={},
        classes=classes,
        failures=(),
        confusions=(),
        latency=Latency(p50_ms=1, p95_ms=2, runs=200, image="i", threads=2, provider="CPU", hardware="Some CPU"),
        environment={},
    )


@pytest.fixture
def candidate(store: MlflowClient, toys: SimpleNamespace, tmp_path: Path) -> Candidate:
    """Make a run as ``pillsnap run`` leaves it. Figures that are not given are good ones; returns its id."""
    numbers = itertools.count()

    def make(*, bundle_sha256: str = "", manifest_hash: str = MANIFEST, **figures: float) -> str:
        number = next(numbers)
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        bundle = toys.save_bundle(folder / "pillsnap.onnx", toys.toy_colors(3) + number, MANIFEST)
        with tracked_run("candidate", experiment="exp") as run:
            log_bundle(run, bundle)
            digest = bundle_sha256 or sha256_file(bundle)
            _evidence({**GOOD, **figures}, digest, manifest_hash, run.run_id).save(folder / "evidence.json")
            run.log_file(folder / "evidence.json", "evaluation")
        return run.run_id

    return make
