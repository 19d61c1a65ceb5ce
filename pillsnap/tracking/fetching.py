"""Fetching from MLflow: a model by its URI, byte for byte, with its digests, and an artifact of a run.

Needs mlflow-skinny only: a server runs it.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from pillsnap.core.errors import StoreError
from pillsnap.core.files import sha256_files, sha256_json
from pillsnap.tracking.store import connect, registry_errors, store_errors

MODEL_FILE = "model.onnx"
MODEL_URI_TAG = "pillsnap.model_uri"
ADDED_BY_DOWNLOAD = "registered_model_meta"
"""MLflow writes it beside what it downloads of a registered model; it is no part of the model."""


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
        StoreError: there is no such model, it cannot be had, or it holds no ONNX file.
    """
    connect()
    with tempfile.TemporaryDirectory(prefix="pillsnap-") as folder:
        with registry_errors(), quiet():
            local = _downloaded(model_uri, folder)
        file = local / MODEL_FILE
        if not file.is_file():
            raise StoreError(f"{model_uri}: holds no {MODEL_FILE}; register a bundle with: pillsnap registry register")
        yield FetchedModel(local, file)


def find_artifact(run_id: str, path: str, folder: Path) -> Path:
    """Download one artifact (a file or a folder) of a run. Raises StoreError."""
    connect()
    with store_errors():
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(folder)))


def _downloaded(model_uri: str, folder: str) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=folder))
    except (MlflowException, OSError):
        raise  # `registry_errors` has words for them
    except Exception as error:  # every cloud's client has errors of its own, and some are not installed
        said = f"{type(error).__name__}: {str(error)[:200]}"
        raise StoreError(f"{model_uri}: its files cannot be had ({said})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """MLflow's hints at logging a model say nothing to our users."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
