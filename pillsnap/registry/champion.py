"""The champion as it may be served: whoever set the alias, envelope and files are checked again, here.

A champion that was set by writing into the database, or whose files were changed afterwards, is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.entities.model_registry import ModelVersion

from pillsnap.core.errors import GateRefusedError, StoreError
from pillsnap.gate.admission import CHAMPION, check_bound, check_verdict
from pillsnap.gate.envelope import Statement
from pillsnap.gate.keys import KeyRing
from pillsnap.gate.trust import TrustRoot
from pillsnap.inference.session import PillSession
from pillsnap.registry.versions import VersionFiles, aliased_version, check_alias, trusted_statement, version_files
from pillsnap.tracking.store import connect


@contextmanager
def proven_files(entry: ModelVersion, alias: str, ring: KeyRing) -> Iterator[tuple[VersionFiles, Statement]]:
    """The files of a version that has proven itself for ``alias``, with what the gate signed of them.

    Raises:
        GateRefusedError: no envelope of a trusted key, or one for another version, other files or too low a verdict.
        StoreError: the files cannot be had.
    """
    statement = trusted_statement(entry, ring)
    check_verdict(statement, alias)
    with version_files(entry) as files:
        check_bound(statement, files.facts)
        yield files, statement


@contextmanager
def champion_session(name: str, alias: str = CHAMPION) -> Iterator[tuple[PillSession, str]]:
    """The session of the version that carries an alias, and its version number.

    Raises:
        ConfigError: an alias that the platform does not have.
        StoreError: there is none.
        GateRefusedError: the alias was set past the gate, or the files are not those that were judged.
    """
    check_alias(alias)
    entry = aliased_version(connect(), name, alias)
    if entry is None:
        raise StoreError(
            f"the registry has no {alias} of {name!r}; set one with: pillsnap registry promote VERSION --name {name} "
            f"--alias {alias}"
        )
    try:
        with proven_files(entry, alias, TrustRoot.find().ring()) as (files, _):
            session = PillSession.load(files.bundle)
    except GateRefusedError as error:
        raise GateRefusedError(
            f"{name} version {entry.version} is {alias}, but is not loaded: it has not proven itself. {error}"
        ) from error
    yield session, str(entry.version)
