"""The files of a version as the registry's server sees them, and their digests. Computed anew at every question.

Nothing is cached: 82 MB hash in 0.05 s, and what a cache would trust (times, sizes, names) can be set by whoever can
overwrite the files.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import validate_path_is_safe

from pillsnap.core.bundle import LARGEST_BUNDLE
from pillsnap.core.errors import DataError, GateRefusedError, PillSnapError
from pillsnap.gate.admission import VersionFacts
from pillsnap.registry.versions import version_facts
from pillsnap.tracking.fetching import MODEL_FILE, model_digests

_DESTINATION = "_MLFLOW_SERVER_ARTIFACT_DESTINATION"
"""Where MLflow's server keeps what it serves under ``mlflow-artifacts:``; it tells its workers by this variable."""
_MOST_FILES = 100
_TOO_MUCH = f"its files are more than {_MOST_FILES} or larger than {LARGEST_BUNDLE // 10**6} MB: no bundle is"
_STORES = {"s3", "gs", "wasbs", "abfss"}
"""Schemes that are fetched. Not http and the like: whoever registers a version would send the server anywhere."""


class BehindProxyError(GateRefusedError):
    """The files lie behind an artifact proxy that another process runs."""


def facts_at(entry: ModelVersion, location: str) -> VersionFacts:
    """What a version is, with the digests of its files at an artifact location. Raises as `digests`, with its name."""
    try:
        return version_facts(entry, digests(location))
    except GateRefusedError as error:
        raise type(error)(f"{entry.name} version {entry.version}: {error}") from error


def digests(location: str) -> tuple[str, str]:
    """(sha256 of model.onnx, sha256 of all files) at an artifact location.

    Raises:
        GateRefusedError: these are not the files of a bundle: no model.onnx, links, too many or too large.
        BehindProxyError: they can only be had through MLflow's server.
    """
    with _local_folder(location) as folder:
        bundle = folder / MODEL_FILE
        if not bundle.is_file() or bundle.is_symlink():
            raise GateRefusedError(f"its files hold no {MODEL_FILE}: only a PillSnap bundle can be judged and promoted")
        try:
            _check_size(folder)
            return model_digests(folder)
        except (DataError, OSError) as error:
            raise GateRefusedError(f"its files cannot be hashed: {error}") from error


@contextmanager
def _local_folder(location: str) -> Iterator[Path]:
    uri = _behind_the_proxy(location)
    scheme = urlsplit(uri).scheme
    if scheme in {"", "file"}:
        yield Path(local_file_uri_to_path(uri))
        return
    if scheme not in _STORES:
        raise GateRefusedError(
            f"its files lie at {scheme}:, where the registry does not look (only {', '.join(sorted(_STORES))} and the "
            "server's own artifacts); register it by: pillsnap registry register RUN_ID"
        )
    with tempfile.TemporaryDirectory(prefix="pillsnap-") as folder:
        try:
            repository = get_artifact_repository(uri)
            _check_listing(repository)
            local = Path(repository.download_artifacts("", folder))
        except PillSnapError:
            raise
        except Exception as error:  # every cloud's client has errors of its own
            raise GateRefusedError(f"its files cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
        yield local


def _check_listing(repository: ArtifactRepository) -> None:
    """Before anything is downloaded: not more, and not larger, than a bundle can be."""
    waiting, files, size = [""], 0, 0
    while waiting:
        for entry in repository.list_artifacts(waiting.pop() or None):
            files += 1
            size += entry.file_size or 0
            if files > _MOST_FILES or size > LARGEST_BUNDLE:
                raise GateRefusedError(_TOO_MUCH)
            if entry.is_dir:
                waiting.append(entry.path)


def _behind_the_proxy(location: str) -> str:
    """Of a run: where its files lie. Of the proxy: clients say ``mlflow-artifacts:/…``, the server has a folder."""
    if location.startswith("runs:"):
        try:
            location = RunsArtifactRepository.get_underlying_uri(location)
        except MlflowException as error:
            raise GateRefusedError(f"the run of its files cannot be found: {str(error.message)[:200]}") from error
    parts = urlsplit(location)
    if parts.scheme != "mlflow-artifacts":
        return location
    destination = os.environ.get(_DESTINATION)
    if not destination:
        raise BehindProxyError("its files lie behind an artifact proxy that this process does not run")
    path = unquote(parts.path).strip("/")
    try:
        safe = validate_path_is_safe(path)  # MLflow's: it unquotes until nothing changes, as a path may be read twice
    except MlflowException as error:
        raise GateRefusedError("its files' path leaves the artifact store") from error
    return f"{destination.rstrip('/')}/{safe}"


def _check_size(folder: Path) -> None:
    files = size = 0
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root) / name
            state = path.lstat()
            if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
                raise GateRefusedError(f"among its files {path.relative_to(folder)} is a link or a device, not a file")
            files += 1
            size += state.st_size
            if files > _MOST_FILES or size > LARGEST_BUNDLE:
                raise GateRefusedError(_TOO_MUCH)
