"""The files of a version as the registry's server sees them, and their digests. Computed anew at every question.

Nothing is cached: 82 MB hash in 0.05 s, and what a cache would trust (times, sizes, names) can be set by whoever can
overwrite the files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.file_utils import local_file_uri_to_path

from pillsnap.core.errors import DataError, GateRefusedError
from pillsnap.core.files import sha256_file, sha256_tree
from pillsnap.inference.session import LARGEST_BUNDLE
from pillsnap.tracking.models import ADDED_BY_DOWNLOAD, MODEL_FILE

_DESTINATION = "_MLFLOW_SERVER_ARTIFACT_DESTINATION"
"""Where MLflow's server keeps what it serves under ``mlflow-artifacts:``; it tells its workers by this variable."""
_MOST_FILES = 100


def digests(location: str) -> tuple[str, str]:
    """(sha256 of model.onnx, sha256 of all files) at an artifact location.

    Raises:
        GateRefusedError: these are not the files of a bundle: no model.onnx, links, too many or too large.
    """
    with _local_folder(location) as folder:
        bundle = folder / MODEL_FILE
        if not bundle.is_file() or bundle.is_symlink():
            raise GateRefusedError(f"its files hold no {MODEL_FILE}: only a PillSnap bundle can be judged and promoted")
        _check_size(folder)
        try:
            return sha256_file(bundle), sha256_tree(folder, leave_out={ADDED_BY_DOWNLOAD})
        except DataError as error:
            raise GateRefusedError(f"its files cannot be hashed: {error}") from error


@contextmanager
def _local_folder(location: str) -> Iterator[Path]:
    uri = _behind_the_proxy(location)
    if not urlsplit(uri).scheme or uri.startswith("file:"):
        yield Path(local_file_uri_to_path(uri))
        return
    with tempfile.TemporaryDirectory(prefix="pillsnap-") as folder:
        try:
            yield Path(get_artifact_repository(uri).download_artifacts("", folder))
        except MlflowException as error:
            raise GateRefusedError(f"its files cannot be read: {str(error.message)[:200]}") from error


def _behind_the_proxy(location: str) -> str:
    """``mlflow-artifacts:/1/models/m-…`` is what clients call it; the server has it under its own destination."""
    parts = urlsplit(location)
    if parts.scheme != "mlflow-artifacts":
        return location
    destination = os.environ.get(_DESTINATION)
    if not destination:
        raise GateRefusedError("its files lie behind an artifact proxy that this process does not run")
    path = unquote(parts.path).strip("/")
    if ".." in path.split("/"):
        raise GateRefusedError("its files' path leaves the artifact store")
    return f"{destination.rstrip('/')}/{path}"


def _check_size(folder: Path) -> None:
    files = size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            files += 1
            size += (Path(root) / name).lstat().st_size
            if files > _MOST_FILES or size > LARGEST_BUNDLE:
                raise GateRefusedError(
                    f"its files are more than {_MOST_FILES} or larger than {LARGEST_BUNDLE // 10**6} MB: no bundle is"
                )
