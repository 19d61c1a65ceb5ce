"""The checkpoint behind ``model.weights`` or ``distillation.teacher``: which run's, fetched as a file.

A bundle's graph cannot give its weights back (batch norms are folded into the convolutions), so a model version, a
logged model and a bundle all lead to the run that made them, and to the best checkpoint that this run has logged.
Knows nothing of what is in a checkpoint.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
import onnx
from mlflow.tracking import MlflowClient

from pillsnap.core.bundle import BundleMetadata
from pillsnap.core.errors import BundleError, ConfigError, StoreError
from pillsnap.core.files import sha256_file
from pillsnap.tracking.names import BEST_EPOCH
from pillsnap.tracking.store import connect, store_errors

CHECKPOINTS = "checkpoints"
"""Where the runs keep them, among their artifacts."""
_URI = re.compile(
    r"(?:runs:/(?P<run>[^/]+)(?:/(?P<file>.+\.pt))?)"
    r"|(?:models:/(?P<logged>m-[0-9a-f]{32}))"
    r"|(?:models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+|latest)))"
)


@dataclass(frozen=True)
class FetchedWeights:
    """A checkpoint on the local disk, and the run that it is from."""

    path: Path
    run_id: str


def fetch_weights(weights: str, folder: Path, key: str = "model.weights") -> FetchedWeights:
    """Fetch the checkpoint that ``runs:/…``, ``models:/…`` or a bundle stands for.

    Args:
        weights: ``runs:/RUN_ID``, ``runs:/RUN_ID/checkpoints/best-007.pt``, ``models:/NAME/VERSION`` (or ``latest``),
            ``models:/NAME@ALIAS``, ``models:/m-…``, or the path of an ``.onnx`` bundle.
        folder: the file comes here, named by its sha256: fetched again, it is the same file.
        key: of the experiment file, for the messages.

    Raises:
        ConfigError: none of these forms.
        BundleError: an ``.onnx`` file that is no bundle, or one that does not say which run made it.
        StoreError: the store cannot be reached, has no such run or version, or the run has no checkpoint.
    """
    parts = _URI.fullmatch(weights)
    if parts is None and not weights.endswith(".onnx"):
        raise ConfigError(
            f"{key}: {weights!r}: expected runs:/RUN_ID, models:/NAME/VERSION, models:/NAME@ALIAS, or a file"
        )
    client = connect()
    run_id = _run_of_bundle(Path(weights), key) if parts is None else _run_of(client, parts, f"{key}: {weights}")
    artifact = (parts and parts["file"]) or _best_checkpoint(client, run_id, f"{key}: {weights}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        with store_errors():
            fetched = Path(
                mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact, dst_path=temporary)
            )
        kept = folder / f"{sha256_file(fetched)}.pt"
        os.replace(fetched, kept)
    return FetchedWeights(kept, run_id)


def _run_of(client: MlflowClient, parts: re.Match[str], asked: str) -> str:
    if parts["run"]:
        return str(parts["run"])
    with store_errors():
        if parts["logged"]:
            run_id = client.get_logged_model(parts["logged"]).source_run_id
        elif parts["alias"]:
            run_id = client.get_model_version_by_alias(parts["name"], parts["alias"]).run_id
        elif parts["version"] == "latest":
            versions = client.search_model_versions(f"name = '{parts['name']}'")
            if not versions:
                raise StoreError(f"{asked}: the registry has no version of {parts['name']!r}")
            run_id = max(versions, key=lambda version: int(version.version)).run_id
        else:
            run_id = client.get_model_version(parts["name"], parts["version"]).run_id
    if not run_id:
        raise StoreError(f"{asked} does not say which run made it; give that run as runs:/RUN_ID")
    return str(run_id)


def _run_of_bundle(path: Path, key: str) -> str:
    if not path.is_file():
        raise BundleError(f"{key}: {path}: no such file (a relative path starts at {Path.cwd()})")
    try:
        props = {prop.key: prop.value for prop in onnx.load(path, load_external_data=False).metadata_props}
    except Exception as error:  # protobuf raises kinds of its own; all mean: not an ONNX file
        raise BundleError(f"{key}: {path}: is not an ONNX file ({type(error).__name__})") from error
    run_id = BundleMetadata.from_props(props, str(path)).provenance.run_id
    if not run_id:
        raise BundleError(
            f"{key}: {path}: this bundle does not say which run made it, and its own graph holds the weights "
            "in another form; give the training's checkpoint (.pt)"
        )
    return run_id


def _best_checkpoint(client: MlflowClient, run_id: str, asked: str) -> str:
    """The artifact path of the best checkpoint: the only one, or that of the epoch that the run calls its best."""
    with store_errors():
        files = [entry.path for entry in client.list_artifacts(run_id, CHECKPOINTS) if entry.path.endswith(".pt")]
        best_epoch = client.get_run(run_id).data.metrics.get(BEST_EPOCH)
    if len(files) > 1 and best_epoch is not None:
        files = [file for file in files if file.endswith(f"best-{int(best_epoch):03d}.pt")] or files
    if len(files) == 1:
        return str(files[0])
    found = ", ".join(files) or "none"
    raise StoreError(
        f"{asked}: run {run_id} has logged no one best checkpoint under {CHECKPOINTS}/ ({found}); "
        f"name it as runs:/{run_id}/{CHECKPOINTS}/FILE.pt"
    )
