"""Bundles as MLflow models: logging one to a run, and fetching one by its URI, byte for byte."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import onnx
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from pillsnap.core.bundle import INPUT_NAME, OUTPUT_NAMES, BundleMetadata
from pillsnap.core.errors import StoreError
from pillsnap.core.files import sha256_file
from pillsnap.tracking.run import TrackedRun
from pillsnap.tracking.store import connect, store_errors

MODEL_NAME = "bundle"
_MODEL_FILE = "model.onnx"
MODEL_URI_TAG = "pillsnap.model_uri"


def log_bundle(run: TrackedRun, bundle: Path) -> str:
    """Log a bundle as an ONNX model of a run.

    Returns:
        Its URI, ``models:/m-…``; also kept as a tag of the run.

    Raises:
        StoreError: the store cannot be reached, or has kept other bytes than those that were sent.
    """
    model = onnx.load(bundle)
    metadata = BundleMetadata.from_props({prop.key: prop.value for prop in model.metadata_props}, str(bundle))
    client = connect()
    with store_errors(), _quiet():
        # left to itself, MLflow keeps the model in the experiment "Default", apart from its run
        kept_as = client.create_logged_model(
            run.experiment_id, MODEL_NAME, source_run_id=run.run_id, params=client.get_run(run.run_id).data.params
        )
        info = Model.log(
            artifact_path=None,
            model_id=kept_as.model_id,
            flavor=mlflow.onnx,
            run_id=run.run_id,
            onnx_model=model,
            signature=_signature(metadata),
            save_as_external_data=False,
            pip_requirements=[f"onnxruntime=={version('onnxruntime')}", f"numpy=={version('numpy')}"],
            metadata={"bundle_sha256": sha256_file(bundle), "manifest_hash": metadata.provenance.manifest_hash},
        )
    run.set_tags({MODEL_URI_TAG: info.model_uri})
    with fetched_bundle(info.model_uri) as kept:
        if sha256_file(kept) != sha256_file(bundle):
            raise StoreError(f"{info.model_uri}: MLflow keeps other bytes than {bundle}; the evidence would not fit it")
    return str(info.model_uri)


@contextlib.contextmanager
def fetched_bundle(model_uri: str) -> Iterator[Path]:
    """The bundle of a model URI (``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``models:/m-…``) as a file.

    Raises:
        StoreError: there is no such model, or it holds no ONNX file.
    """
    connect()
    with tempfile.TemporaryDirectory(prefix="pillsnap-") as folder:
        with store_errors(), _quiet():
            local = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=folder))
        file = local / _MODEL_FILE
        if not file.is_file():
            raise StoreError(f"{model_uri}: holds no {_MODEL_FILE}; register a bundle with: pillsnap registry register")
        yield file


def _signature(metadata: BundleMetadata) -> ModelSignature:
    size = metadata.preprocessing.target_size
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (-1, len(metadata.classes)), name) for name in OUTPUT_NAMES
    ]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3), INPUT_NAME)]), outputs=Schema(outputs)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow's hints at logging a model say nothing to our users."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
