"""Which MLflow store is used, and whether it can be reached.

The store is MLFLOW_TRACKING_URI, or ``sqlite:///mlflow.db`` in the current folder with its artifacts in
``mlartifacts`` beside it. Errors of MLflow become `StoreError` with what to do next.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import StoreError

DEFAULT_EXPERIMENT = "pillsnap"


def tracking_uri() -> str:
    """The URI of the store, absolute: a relative sqlite path means another file in another folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + str(Path(uri.removeprefix(prefix)).resolve())
    return uri


def connect() -> MlflowClient:
    """Point MLflow at the store and make sure that it answers.

    Raises:
        StoreError: it does not.
    """
    uri = tracking_uri()
    _fail_fast()
    with store_errors():
        mlflow.set_tracking_uri(uri)
        client = MlflowClient()
        client.search_experiments(max_results=1)
    return client


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made where it is missing; artifacts of a local store lie beside its database."""
    with store_errors():
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)
        return str(client.create_experiment(name, artifact_location=_artifact_location(name)))


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what MLflow, requests and SQLAlchemy raise into `StoreError`."""
    try:
        yield
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StoreError(
            f"the MLflow store {without_password(tracking_uri())} cannot be used: {first_line[:300]}. "
            "Check MLFLOW_TRACKING_URI and that the server runs (pillsnap doctor)"
        ) from error


def without_password(uri: str) -> str:
    """A URI that may be shown."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def _artifact_location(name: str) -> str | None:
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name).as_uri()


def _fail_fast() -> None:
    """MLflow retries for minutes by default; a person at a prompt wants to know within seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
