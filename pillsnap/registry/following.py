"""What a server needs to follow an alias: seeing that it has moved, proving the version, and keeping a proven copy.

The copy is for a start without the registry. It is proven again from its own files and envelope, with the keys that are
trusted then: whoever changes it on disk gains nothing.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from mlflow.entities.model_registry import ModelVersion

from pillsnap.core.errors import GateRefusedError, PillSnapError
from pillsnap.core.files import flush_to_disk, read_json, sha256_json, write_json
from pillsnap.gate.admission import check_bound, check_verdict, facts_of
from pillsnap.gate.envelope import ENVELOPE_TAG, Statement, open_envelope
from pillsnap.gate.keys import KeyRing
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry.versions import aliased_version, check_alias, proven_files
from pillsnap.tracking.fetching import MODEL_FILE, model_digests
from pillsnap.tracking.store import connect

_log = logging.getLogger(__name__)
_POINTER = "proven.json"
Mark = str
"""Changes when the alias moves, when the version is judged anew, and when the trusted keys change."""


@dataclass(frozen=True)
class Proven:
    """Files that the gate has signed for an alias."""

    folder: Path
    """All files of the MLflow model."""
    bundle: Path
    envelope: str
    statement: Statement


def marked(name: str, alias: str) -> tuple[ModelVersion | None, Mark | None]:
    """The version that carries an alias now, with its mark; (None, None): no version does.

    Raises:
        ConfigError: an alias that the platform does not have.
        StoreError: the registry does not answer.
    """
    check_alias(alias)
    entry = aliased_version(connect(), name, alias)
    if entry is None:
        return None, None
    keys = {key.key_id: str(key.revoked) for key in TrustRoot.find().ring().keys.values()}
    facts = [str(entry.version), entry.creation_timestamp, entry.tags.get(ENVELOPE_TAG, ""), keys]
    return entry, sha256_json(facts)


@contextmanager
def prove(entry: ModelVersion, alias: str) -> Iterator[Proven]:
    """The files of a version, verified. Raises GateRefusedError: it has not proven itself; StoreError."""
    try:
        with proven_files(entry, alias, TrustRoot.find().ring()) as (files, statement):
            yield Proven(files.bundle.parent, files.bundle, entry.tags[ENVELOPE_TAG], statement)
    except GateRefusedError as error:
        raise GateRefusedError(
            f"{entry.name} version {entry.version} is {alias}, but is not loaded: it has not proven itself. {error}"
        ) from error


def keep(proven: Proven, home: Path, alias: str) -> bool:
    """Keep a copy of proven files. Whether it is there: one that cannot be written is said in the log."""
    folder = _folder(home, proven.statement.model_name, alias)
    target = folder / proven.statement.decision_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists() and not _is_whole(target, proven.statement):
            shutil.rmtree(target)
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
                copy = Path(part) / "model"
                shutil.copytree(proven.folder, copy)
                for path in (*(entry for entry in copy.rglob("*") if entry.is_file()), copy):
                    flush_to_disk(path)
                try:
                    copy.rename(target)
                except OSError:
                    if not target.is_dir():  # another worker was faster
                        raise
        write_json(folder / _POINTER, {"folder": target.name, "envelope": proven.envelope})
        for other in folder.iterdir():
            if other.is_dir() and other != target and not other.name.startswith("."):
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        _log.warning("%s: the proven model could not be kept for a start without the registry (%s)", folder, error)
        return False
    return True


def kept(home: Path, name: str, alias: str, ring: KeyRing) -> Proven | None:
    """The copy of the last proven files, proven again; None: there is none, or it does not stand the check."""
    folder = _folder(home, name, alias)
    pointer = folder / _POINTER
    try:
        if not pointer.is_file():
            return None
        raw = read_json(pointer)
        envelope = str(raw["envelope"])
        statement = open_envelope(envelope, ring)
        check_verdict(statement, alias)
        if statement.model_name != name:
            raise GateRefusedError(f"{pointer}: a copy of {statement.model_name}, not of {name}")
        model = folder / statement.decision_id
        _check_whole(model, statement)
        return Proven(model, model / MODEL_FILE, envelope, statement)
    except (PillSnapError, OSError, KeyError, TypeError, ValueError) as error:
        _log.warning("%s: the kept copy is not loaded: %s", folder, error)
        return None


def _folder(home: Path, name: str, alias: str) -> Path:
    """Of one model's alias: servers of several models may share a home."""
    return home / alias / quote(name, safe="").replace(".", "%2E")


def _check_whole(folder: Path, statement: Statement) -> None:
    """Raise GateRefusedError, DataError or OSError where these are not the files that were judged."""
    bundle_sha256, artifact_sha256 = model_digests(folder)
    check_bound(statement, replace(facts_of(statement), bundle_sha256=bundle_sha256, artifact_sha256=artifact_sha256))


def _is_whole(folder: Path, statement: Statement) -> bool:
    try:
        _check_whole(folder, statement)
    except (PillSnapError, OSError) as error:
        _log.warning("%s: the kept copy is written anew: %s", folder, error)
        return False
    return True
