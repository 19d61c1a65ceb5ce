"""Bundles as MLflow models: making one the model of a run. Fetching one is `tracking.fetching`."""

from __future__ import annotations

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
from pillsnap.core.files import sha256_file
from pillsnap.tracking.fetching import MODEL_URI_TAG, fetched_bundle, quiet

MODEL_NAME = "bundle"


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
    with quiet():
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


def _signature(metadata: BundleMetadata) -> ModelSignature:
    size = metadata.preprocessing.target_size
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (-1, len(metadata.classes)), name) for name in OUTPUT_NAMES
    ]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, size, size, 3), INPUT_NAME)]), outputs=Schema(outputs)
    )
