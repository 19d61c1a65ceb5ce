"""A store of one's own, and coloured pictures that a tiny net trains on in a second."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import TrainingData

_tracking = runpy.run_path(str(Path(__file__).parents[1] / "tracking" / "conftest.py"))
fresh_store, store = _tracking["fresh_store"], _tracking["store"]
pytest_collection_modifyitems = _tracking["pytest_collection_modifyitems"]

TINY: dict[str, Any] = {
    "name": "tiny",
    "preprocessing": {"target_size": 32, "interpolation": "area", "clahe": {"enabled": False}},
    "model": {
        "backbone": "resnet18",
        "pretrained": False,
        "kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64], "stem_width": 8},
    },
    "data": {"batch_size": 8, "workers": 0},
    "training": {"epochs": 2, "warmup_epochs": 0.5},
    "tuning": {"trials": 3, "epochs": 1, "pruning_warmup_epochs": 0, "pruning_startup_trials": 1},
}


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Two threads on a tiny net wait for each other, all the more where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> ExperimentConfig:
    return ExperimentConfig.build(TINY, None, "tiny.yaml")


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory, toys: SimpleNamespace) -> TrainingData:
    folder = tmp_path_factory.mktemp("tuning")
    domains = ("real", "studio")
    images = [(n % 3, n % 3, "train", domains[n % 2]) for n in range(24)]
    images += [(n % 3, n % 3, "val", domains[n % 2]) for n in range(9)]
    manifest = toys.save_manifest(folder / "data", toys.toy_colors(3), images)
    config = ExperimentConfig.build(TINY, None, "tiny.yaml")
    cache = PreparedCache.build(manifest, config.preprocessing, folder / "cache")
    return TrainingData.of(manifest, cache, config)
