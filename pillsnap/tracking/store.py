"""Which MLflow store is used, and whether it can be reached.

The store is MLFLOW_TRACKING_URI, or ``sqlite:///mlflow.db`` in the current folder with its artifacts in
``mlartifacts`` beside it. Errors of MLflow become `StoreError` with what to do next.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import mlflow
import requests
import sqlalchemy.exc
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import StoreError
from pillsnap.core.passwords import hide_passwords
from pillsnap.tracking.names import EXPERIMENT

_log = logging.getLogger(__name__)
_BEING_MADE = ("already exists", "duplicate column name")
"""What a database says to the second of two that make its tables at once."""
GATED = "gated+"
"""Before the URI of a database: the registry store that enforces the gate (``pillsnap.registry.store``)."""
_DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
_ATTEMPTS = 10
_PAUSE_S = 2.0


def tracking_uri() -> str:
    """The URI of the store, absolute: a relative sqlite path means another file in another folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + str(Path(uri.removeprefix(prefix)).resolve())
    return uri


def registry_uri(uri: str) -> str:
    """The registry that belongs to a store: a database is opened through the gate, a server has its own.

    ``MLFLOW_REGISTRY_URI`` names another one; a database there is opened through the gate too.
    """
    # by name, and not by the entry points of the plain schemes: where PillSnap is not installed, this fails
    named = os.environ.get("MLFLOW_REGISTRY_URI") or uri
    is_database = named.split("://")[0].split("+")[0] in _DATABASES
    return f"{GATED}{named}" if is_database else named


def connect() -> MlflowClient:
    """Point MLflow at the store and make sure that it answers.

    Raises:
        StoreError: it does not.
    """
    uri = tracking_uri()
    _settle_mlflow()
    with store_errors():
        _knock(uri)
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(registry_uri=registry_uri(uri))
        _ask(client)
    return client


def _ask(client: MlflowClient) -> None:
    """One question. Who is second at a new database finds tables that the first one is just making, and asks again."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            client.search_experiments(max_results=1)
            return
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
            if attempt == _ATTEMPTS or not any(words in str(error) for words in _BEING_MADE):
                raise
            time.sleep(_PAUSE_S)


def experiment_name() -> str:
    """The experiment that trainings and studies go to: MLFLOW_EXPERIMENT_ID's or _NAME's, where they are set.

    Raises:
        StoreError: the store has no experiment of this id.
    """
    name, number = os.environ.get("MLFLOW_EXPERIMENT_NAME"), os.environ.get("MLFLOW_EXPERIMENT_ID")
    if not number:
        return name or EXPERIMENT
    try:
        client = connect()
        with store_errors():
            found = str(client.get_experiment(number).name)
    except StoreError as error:
        raise StoreError(f"MLFLOW_EXPERIMENT_ID={number}: {error}") from error
    if name and name != found:  # `mlflow run` sets the id, and is told the name by an option too
        _log.warning("MLFLOW_EXPERIMENT_ID=%s (%s) is taken, not MLFLOW_EXPERIMENT_NAME=%s", number, found, name)
    return found


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, made where it is missing; artifacts of a local store lie beside its database."""
    with store_errors():
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=_artifact_location(name)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)  # another process was faster


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn what MLflow, requests, SQLAlchemy and the file system raise into `StoreError`."""
    with _errors_of("the MLflow store", tracking_uri, "MLFLOW_TRACKING_URI"):
        yield


@contextmanager
def registry_errors() -> Iterator[None]:
    """The same where the registry was asked, which may be another one than the store."""
    variable = "MLFLOW_REGISTRY_URI" if os.environ.get("MLFLOW_REGISTRY_URI") else "MLFLOW_TRACKING_URI"
    with _errors_of("the model registry", lambda: registry_uri(tracking_uri()).removeprefix(GATED), variable):
        yield


@contextmanager
def _errors_of(what: str, address: Callable[[], str], variable: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        what = f"{what} {hide_passwords(address())}"
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise StoreError(f"{what} says: {first_line(error)[:300]}") from error
        raise StoreError(f"{what} cannot be used: {first_line(error)[:300]}. {_advice(error, variable)}") from error


def _advice(error: Exception, variable: str) -> str:
    status = error.get_http_status_code() if isinstance(error, MlflowException) else None
    if status == HTTPStatus.UNAUTHORIZED:
        return "Check the login: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if status == HTTPStatus.FORBIDDEN:
        return "This login may not, or there is no such thing at this server"
    return f"Check {variable} and that the server runs (pillsnap doctor)"


def first_line(error: Exception) -> str:
    """What an error says first. MLflow puts addresses into it: they are shown without their passwords."""
    return hide_passwords((str(error).strip().splitlines() or [type(error).__name__])[0])


def _artifact_location(name: str) -> str | None:
    uri = tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name).as_uri()


def _knock(uri: str) -> None:
    """One attempt at a database server, before MLflow makes ten that take minutes."""
    if "://" not in uri or uri.startswith(("sqlite:", "http:", "https:", "file:")):
        return
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    try:
        engine = sqlalchemy.create_engine(uri)
    except sqlalchemy.exc.NoSuchModuleError:
        return  # not a database: MLflow knows the scheme, or says that it does not
    except ModuleNotFoundError as error:
        raise StoreError(
            f"the MLflow store {hide_passwords(uri)} needs the Python package {error.name}: install it"
        ) from error
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _settle_mlflow() -> None:
    """MLflow retries for minutes by default, a person at a prompt wants to know within seconds; and no bars."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # MLflow takes the jitter of its retries from the global generator, which random erasing draws from too: with it an
    # outage would change what a training learns
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"] = "0"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # files come through the server: before an S3 store MLflow hands out addresses that perhaps only its server reaches,
    # and its client asks them for minutes
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    # the server's slim environment has no database: nobody there needs the stores that MLflow cannot register
    warnings.filterwarnings("ignore", message="Failure attempting to register store", category=UserWarning)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
