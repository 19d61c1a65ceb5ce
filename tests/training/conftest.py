"""A tiny data set of coloured squares and a training on it, made once."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pillsnap.core.experiment import ExperimentConfig
from pillsnap.data.cache import PreparedCache
from pillsnap.training.batches import TrainingData
from pillsnap.training.trainer import _Trainer, fit

TRAINED = {
    "training.epochs": 8,
    "training.warmup_epochs": 1,
    "checkpoints.every_epochs": 3,
    "checkpoints.keep_best": 2,
    "logging.every_steps": 4,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.epochs: list[tuple[int, dict[str, float]]] = []
        self.resumed: list[tuple[int, int]] = []

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append((step, metrics))

    def on_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        self.epochs.append((epoch, metrics))

    def on_resume(self, epoch: int, step: int) -> None:
        self.resumed.append((epoch, step))


@pytest.fixture(scope="session")
def squares() -> SimpleNamespace:
    """The builders of ``squares.py``."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "squares.py")))


@pytest.fixture(scope="session")
def tiny_config(squares: SimpleNamespace) -> Callable[..., ExperimentConfig]:
    """``tiny_config({dotted key: value})``."""
    return squares.tiny_config


@pytest.fixture(scope="session")
def data(squares: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """6 classes; 96 images to train, 24 to validate, 24 to test; class 0 weighs three times as much."""
    root = tmp_path_factory.mktemp("squares")
    manifest = squares.save_squares(root / "manifest", weights=(3.0,))
    config = squares.tiny_config()
    cache = PreparedCache.build(manifest, config.preprocessing, root / "cache", workers=1)
    return TrainingData.of(manifest, cache, config)


@pytest.fixture(scope="session")
def trained(
    tiny_config: Callable[..., ExperimentConfig], data: TrainingData, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A whole training of 8 epochs with the reference's augmentation."""
    config, folder, seen = tiny_config(TRAINED), tmp_path_factory.mktemp("trained"), Recorder()
    return SimpleNamespace(config=config, folder=folder, seen=seen, result=fit(config, data, folder, seen))


@pytest.fixture
def trainer(squares: SimpleNamespace, data: TrainingData, tmp_path: Path) -> Callable[[dict[str, Any]], _Trainer]:
    """``trainer({dotted key: value})``: ready to train, with nothing on but what is asked for."""

    def build(overrides: dict[str, Any]) -> _Trainer:
        config = squares.tiny_config({**squares.PLAIN, **overrides})
        chosen = TrainingData.of(data.manifest, data.cache, config)
        return _Trainer(config, chosen, tmp_path / "checkpoints", Recorder())

    return build
