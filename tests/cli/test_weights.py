"""A training that starts from a former one, by the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.core.files import sha256_file
from pillsnap.core.manifest import Manifest

Call = Callable[..., tuple[int, str, str]]


def runs(store: MlflowClient) -> list[Run]:
    """The oldest first."""
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    return store.search_runs(experiments, order_by=["attributes.start_time ASC"])


def test_fine_tuning_from_a_run(call: Call, store: MlflowClient, prepared: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path]
    status, _, err = call(*arguments)
    assert status == 0, err
    [first] = runs(store)
    assert first.data.tags["weights.source"] == "random"
    assert "weights.sha256" not in first.data.tags
    [checkpoint] = (tmp_path / "runs" / first.info.run_id / "checkpoints").glob(
        f"best-{int(first.data.metrics['best_epoch']):03d}.pt"
    )
    start = ["--set", "model.pretrained=true", "--set", f"model.weights=runs:/{first.info.run_id}"]
    status, _, err = call(*arguments, *start, "--set", "training.freeze_epochs=1", "--set", "training.layer_decay=0.8")
    assert status == 0, err
    second = runs(store)[1]
    assert second.data.params["cfg.model.weights"] == f"runs:/{first.info.run_id}", "as it was asked for"
    tags = second.data.tags
    assert (tags["weights.run_id"], tags["weights.head"]) == (first.info.run_id, "kept")
    assert tags["weights.sha256"] == sha256_file(checkpoint)
    assert tags["weights.manifest_hash"] == Manifest.load(prepared / "data").hash
    assert "was trained on other data" not in err


@pytest.mark.parametrize("command", ["train", "run", "tune"])
@pytest.mark.parametrize(
    ("weights", "status", "said"),
    [
        ("models:/pillsnap@champion", 1, "pillsnap"),
        ("models:/pillsnap", 2, "model.weights: 'models:/pillsnap': expected runs:/RUN_ID"),
        ("none.pt", 1, "model.weights: none.pt: no such file"),
        ("none.onnx", 1, "model.weights: none.onnx: no such file"),
    ],
)
def test_weights_that_are_not_there(
    call: Call, store: MlflowClient, prepared: Path, tmp_path: Path, command: str, weights: str, status: int, said: str
) -> None:
    arguments = ["--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w"]
    start = ["--set", "model.pretrained=true", "--set", f"model.weights={weights}"]
    found, _, err = call(command, *arguments, *start)
    assert (found, said in err) == (status, True), err
    assert not (tmp_path / "w" / "cache").exists(), "said before any picture is prepared"
    assert "Traceback" not in err
    assert "RUNNING" not in {run.info.status for run in runs(store)}
