"""Bundles as MLflow models: making one the model of a run, and fetching one by its URI, byte for byte."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from mlflow.entities import LoggedModelStatus, Run
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema, TensorSpec

from pillsnap.core.bundle import INPUT_NAME, OUTPUT_NAMES, BundleMetadata
from pillsnap.core.errors import BundleError, StoreError
from pillsnap.core.files import sha256_file, sha256_files, sha256_json
from pillsnap.tracking.store import connect, store_errors

MODEL_NAME = "bundle"
MODEL_FILE = "model.onnx"
ADDED_BY_DOWNLOAD = "registered_model_meta"
"""MLflow writes it beside what it downloads of a registered model; it is no part of the model."""
MODEL_URI_TAG = "pillsnap.model_uri"


def send_bundle(client: MlflowClient, run_id: str, bundle: Path) -> str:
    """Make a bundle the model of a run; where it is already, only say its URI.

    Raises:
        BundleError: it is not a bundle.
        StoreError: the store has kept other bytes than those that were sent.
        MlflowException: the store does not answer or says no.
    """
    run = client.get_run(run_id)
    known = run.data.tags.get(MODEL_URI_TAG)
    if known is not None:
        return str(known)
    model, metadata = load_bundle(bundle)
    with _quiet():
        info = Model.log(
            artifact_path=None,
            model_id=_model_entry(client, run),
            flavor=mlflow.onnx,
            run_id=run_id,
            onnx_model=model,
            signature=_signature(metadata),
            save_as_external_data=False,
            pip_requirements=[f"onnxruntime=={version('onnxruntime')}", f"numpy=={version('numpy')}"],
            metadata={"bundle_sha256": sha256_file(bundle), "manifest_hash": metadata.provenance.manifest_hash},
        )
    with fetched_bundle(info.model_uri) as kept:
        if sha256_file(kept) != sha256_file(bundle):
            raise StoreError(f"{info.model_uri}: MLflow keeps other bytes than {bundle}; the evidence would not fit it")
    client.set_tag(run_id, MODEL_URI_TAG, info.model_uri)
    return str(info.model_uri)


def _model_entry(client: MlflowClient, run: Run) -> str:
    """The id of the run's model that waits for its files; made where there is none."""
    wanted = f"source_run_id = '{run.info.run_id}' AND name = '{MODEL_NAME}'"
    for model in client.search_logged_models([run.info.experiment_id], filter_string=wanted):
        if model.status != LoggedModelStatus.READY:
            return str(model.model_id)  # an earlier attempt came no further
    # left to itself, MLflow keeps the model in the experiment "Default", apart from its run
    made = client.create_logged_model(
        run.info.experiment_id, MODEL_NAME, source_run_id=run.info.run_id, params=run.data.params
    )
    return str(made.model_id)


def load_bundle(bundle: Path) -> tuple[onnx.ModelProto, BundleMetadata]:
    """The model of a file, and what its metadata say. Raises BundleError: it is not a bundle."""
    try:
        model = onnx.load(bundle)
    except DecodeError as error:
        raise BundleError(f"{bundle}: is no ONNX file ({error})") from error
    return model, BundleMetadata.from_props({prop.key: prop.value for prop in model.metadata_props}, str(bundle))


@contextlib.contextmanager
def fetched_bundle(model_uri: str) -> Iterator[Path]:
    """The bundle of a model URI (``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``models:/m-…``) as a file.

    Raises:
        StoreError: there is no such model, or it holds no ONNX file.
    """
    with fetched_model(model_uri) as model:
        yield model.bundle


@dataclass(frozen=True)
class FetchedModel:
    """The files of an MLflow model, as they were downloaded."""

    folder: Path
    bundle: Path


def model_digests(folder: Path) -> tuple[str, str]:
    """(sha256 of model.onnx, sha256 over all files) of an MLflow model's folder that holds one; each file is read once.

    Raises:
        DataError: a file cannot be read, or is a link.
    """
    found = sha256_files(folder, leave_out={ADDED_BY_DOWNLOAD})
    return found[MODEL_FILE], sha256_json(found)


@contextlib.contextmanager
def fetched_model(model_uri: str) -> Iterator[FetchedModel]:
    """All files of a model URI.

    Raises:
        StoreError: there is no such model, or it holds no ONNX file.
    """
    connect()
    with tempfile.TemporaryDirectory(prefix="pillsnap-") as folder:
        with store_errors(), _quiet():
            local = Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=folder))
        file = local / MODEL_FILE
        if not file.is_file():
            raise StoreError(f"{model_uri}: holds no {MODEL_FILE}; register a bundle with: pillsnap registry register")
        yield FetchedModel(local, file)


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
