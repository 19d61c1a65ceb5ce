"""A store of one's own, coloured pictures that a tiny net trains on in a second, studies, and a database server."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch

from pillsnap.core import interruption
from pillsnap.core.experiment import ExperimentConfig
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import TrainingData
from pillsnap.tuning.storage import open_storage
from pillsnap.tuning.study import open_study
from pillsnap.tuning.supervisor import Supervisor
from pillsnap.tuning.worker import Order, do_one_trial

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
def tiny_manifest(tmp_path_factory: pytest.TempPathFactory, toys: SimpleNamespace) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    domains = ("real", "studio")
    images = [(n % 3, n % 3, "train", domains[n % 2]) for n in range(24)]
    images += [(n % 3, n % 3, "val", domains[n % 2]) for n in range(9)]
    images += [(n % 3, n % 3, "test", domains[n % 2]) for n in range(3)]
    toys.save_manifest(folder / "data", toys.toy_colors(3), images)
    return folder / "data"


@pytest.fixture(scope="session")
def training_data(tiny_manifest: Path) -> TrainingData:
    from pillsnap.core.manifest import Manifest

    manifest = Manifest.load(tiny_manifest)
    config = ExperimentConfig.build(TINY, None, "tiny.yaml")
    cache = PreparedCache.build(manifest, config.preprocessing, tiny_manifest.parent / "cache")
    return TrainingData.of(manifest, cache, config)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of a database that is not there yet."""
    return f"sqlite:///{tmp_path}/optuna.db"


@pytest.fixture
def toy_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """``toy_job(mischief=…)``: see ``toy_job.py``. The workers' processes find it by the path that they inherit."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from toy_job import ToyJob  # type: ignore[import-not-found]

    folder = tmp_path / "toy"
    folder.mkdir(exist_ok=True)
    return lambda **options: ToyJob(folder, **options)


@pytest.fixture
def fresh_study(url: str) -> Callable[..., optuna.Study]:
    """``fresh_study(config)``: the study of an experiment in this test's database, without heartbeats."""

    def make(config: ExperimentConfig, name: str = "tiny-1") -> optuna.Study:
        return open_study(config, name, open_storage(url))

    return make


@pytest.fixture
def one_trial(url: str) -> Callable[..., None]:
    """``one_trial(config, job)``: what a worker does, in this process."""

    def run(config: ExperimentConfig, job: Any, name: str = "tiny-1", trials: int = 100, stop: Any = None) -> None:
        order = Order(config, name, url, trials, "here:0:0", 0, job)
        do_one_trial(order, lambda: None, stop or nullcontext())

    return run


@pytest.fixture
def supervise(url: str) -> Iterator[Callable[..., Supervisor]]:
    """``supervise(config, job, workers=2)``: a supervisor of worker processes on this test's database."""

    opened: list[Any] = []

    def make(config: ExperimentConfig, job: Any, workers: int = 2, **options: Any) -> Supervisor:
        database = options.pop("storage_url", url)
        storage = open_storage(database, heartbeat_s=config.tuning.heartbeat_s)
        opened.append(storage)
        study = open_study(config, "tiny-1", storage)
        order = Order(config, "tiny-1", database, config.tuning.trials, "", 0, job)
        return Supervisor(study, order, workers, options.pop("deadline", None), options.pop("on_lost", lambda: None))

    yield make
    for storage in opened:
        storage.engine.dispose()


@pytest.fixture
def postgres_url(postgres: Any) -> str:
    """Of an empty database on the server."""
    return str(postgres.create(f"t{uuid.uuid4().hex}"))


@pytest.fixture
def spawned() -> None:
    """The workers of this test are spawned, as by the product."""


@pytest.fixture(autouse=True)
def _forked_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, forkserver: Any) -> None:
    """But for the long tests and for who asks for `spawned`: only the import of torch is left out."""
    if request.node.get_closest_marker("long") or "spawned" in request.fixturenames:
        return
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from forked import Forked  # type: ignore[import-not-found]

    real = multiprocessing.get_context
    monkeypatch.setattr(
        "pillsnap.tuning.supervisor.multiprocessing.get_context",
        lambda method=None: Forked(forkserver) if method == "spawn" else real(method),
    )


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """No test leaves a thread that beats for a trial, or a supervisor that was told to stop."""
    yield
    interruption._told_s = None
    names = [thread.name for thread in threading.enumerate() if "record_heartbeat" in thread.name]
    assert not names
    sys.modules.pop("toy_job", None)
