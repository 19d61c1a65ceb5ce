"""A bundle as an MLflow model: the very same bytes come back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mlflow.models
import onnx
import pytest
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import BundleError, StoreError
from pillsnap.core.files import sha256_file
from pillsnap.tracking import models
from pillsnap.tracking.fetching import MODEL_URI_TAG, fetched_bundle
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.run_model import log_bundle


@pytest.fixture
def bundle(toys: SimpleNamespace, tmp_path: Path) -> Path:
    return toys.save_bundle(tmp_path / "pillsnap.onnx", toys.toy_colors(3))


def test_the_bytes_are_kept(store: MlflowClient, bundle: Path, tmp_path: Path) -> None:
    with tracked_run("r", experiment="exp") as tracked:
        tracked.log_config({"seed": 7})
        uri = log_bundle(tracked, bundle)
    assert uri.startswith("models:/m-")
    assert store.get_run(tracked.run_id).data.tags[MODEL_URI_TAG] == uri
    with fetched_bundle(uri) as kept:
        assert sha256_file(kept) == sha256_file(bundle)
    assert not kept.exists(), "the copy is removed afterwards"
    logged = store.get_logged_model(uri.removeprefix("models:/"))
    assert (logged.name, logged.source_run_id, logged.experiment_id) == (
        "bundle",
        tracked.run_id,
        tracked.experiment_id,
    )
    facts = {"backbone": "toy", "pixels": "32", "classes": "3", "precision": "float32", "engine": "onnxruntime"}
    params = {"cfg.seed": "7", **{f"bundle.{key}": value for key, value in facts.items()}}
    assert (logged.status, logged.params) == ("READY", params)
    assert store.get_run(tracked.run_id).data.params == params
    assert (tmp_path / "mlartifacts" / "exp" / "models").is_dir(), "beside the run's other artifacts"
    assert [output.model_id for output in store.get_run(tracked.run_id).outputs.model_outputs] == [logged.model_id]
    info = mlflow.models.get_model_info(uri)
    assert info.run_id == tracked.run_id
    assert info.metadata["bundle_sha256"] == sha256_file(bundle)
    assert info.metadata["manifest_hash"] == "0" * 64
    inputs = info.signature.inputs.to_dict()[0]
    assert (inputs["name"], inputs["tensor-spec"]) == ("image", {"dtype": "uint8", "shape": (-1, 32, 32, 3)})
    assert [output["name"] for output in info.signature.outputs.to_dict()] == ["logits", "probabilities"]


def test_other_bytes_than_those_that_were_sent(
    store: MlflowClient, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "load", lambda path, load=onnx.load: _changed(load(path)))
    with (
        pytest.raises(StoreError, match="keeps other bytes"),
        tracked_run("r", experiment="exp") as tracked,
    ):
        log_bundle(tracked, bundle)


def _changed(model: onnx.ModelProto) -> onnx.ModelProto:
    model.doc_string = "changed on the way"
    return model


def test_a_plain_onnx_file_is_not_logged(store: MlflowClient, toys: SimpleNamespace, tmp_path: Path) -> None:
    plain = toys.save_model(tmp_path / "plain.onnx", toys.toy_graph(toys.toy_colors(2)), {})
    with (
        pytest.raises(BundleError, match="without PillSnap's metadata"),
        tracked_run("r", experiment="exp") as tracked,
    ):
        log_bundle(tracked, plain)


def test_no_such_model(store: MlflowClient) -> None:
    for uri in ("models:/none/1", "models:/none@champion", f"models:/m-{'0' * 32}"):
        with pytest.raises(StoreError), fetched_bundle(uri):
            pass


def test_a_model_that_is_no_bundle(store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.mlflow.artifacts, "download_artifacts", lambda **_: str(tmp_path))
    with pytest.raises(StoreError, match=r"holds no model\.onnx"), fetched_bundle("models:/sklearn/1"):
        pass
