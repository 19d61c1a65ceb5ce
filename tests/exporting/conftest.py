"""A tiny training on coloured squares, exported once."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import onnx
import openvino as ov
import pytest
import torch

from pillsnap.data.cache import PreparedCache
from pillsnap.exporting.export import export_bundle
from pillsnap.training.batches import TrainingData
from pillsnap.training.checkpoint import Checkpoint
from pillsnap.training.trainer import fit


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def squares() -> SimpleNamespace:
    """The builders of the training's tests."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "training" / "squares.py")))


@pytest.fixture(scope="session")
def house(squares: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``manifest``, the ``checkpoint`` of 4 epochs, the ``bundle`` and the ``result`` of its export."""
    root = tmp_path_factory.mktemp("house")
    manifest = squares.save_squares(root / "manifest")
    own_spec = {"preprocessing.mean": [0.4, 0.5, 0.6], "preprocessing.std": [0.2, 0.25, 0.3]}
    config = squares.tiny_config({"training.epochs": 4, **own_spec, "preprocessing.clahe.enabled": True})
    cache = PreparedCache.build(manifest, config.preprocessing, root / "cache", workers=1)
    observer = SimpleNamespace(on_step=lambda *_: None, on_epoch=lambda *_: None)
    trained = fit(config, TrainingData.of(manifest, cache, config), root / "checkpoints", observer)
    checkpoint = Checkpoint.load(trained.best_checkpoint)
    bundle = root / "out" / "pillsnap.onnx"
    result = export_bundle(checkpoint, manifest, bundle, run_id="run-7", git_commit="abc123")
    return SimpleNamespace(manifest=manifest, checkpoint=checkpoint, bundle=bundle, result=result)


@pytest.fixture(scope="session")
def openvino_layers() -> Callable[[onnx.ModelProto], Counter[str]]:
    """How often OpenVINO computes each kind of layer, once it has fused what it can."""

    def count(model: onnx.ModelProto) -> Counter[str]:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
        return Counter(op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops())

    return count
