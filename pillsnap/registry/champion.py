"""The champion as it may be served: whoever set the alias, envelope and files are checked again, here.

A champion that was set by writing into the database, or whose files were changed afterwards, is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pillsnap.core.errors import GateRefusedError, StoreError
from pillsnap.gate.admission import CHAMPION
from pillsnap.gate.trust import TrustRoot
from pillsnap.inference.session import PillSession
from pillsnap.registry.versions import aliased_version, check_alias, proven_files
from pillsnap.tracking.store import connect


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
