"""Where the model comes from: the registry's champion, proven at every load, or a bundle that was given as a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import numpy as np
from mlflow.entities.model_registry import ModelVersion

from pillsnap.core.errors import BundleError, GateRefusedError, StoreError
from pillsnap.gate.trust import TrustRoot
from pillsnap.inference.session import PillSession
from pillsnap.registry.following import Mark, Proven, keep, kept, marked, prove
from pillsnap.serving.slot import LoadedModel

_WARM_UP_RUNS = 3
_KEEP_AGAIN_S = 300


class ModelSource(Protocol):
    """What a `Follower` asks; ``look`` from one thread, ``kept`` beside it where the first look takes long."""

    def look(self, present: LoadedModel | None) -> LoadedModel | None:
        """The model that should answer from now on; None: the present one.

        Raises:
            StoreError: the registry does not answer, or names no model.
            PillSnapError: there is another model, but it must not or cannot be served.
        """

    def kept(self) -> LoadedModel | None:
        """The last model that was proven, from disk, proven again; None: there is none that can be."""


class BundleSource:
    """A bundle as a file: loaded once, not followed, vouched for by nobody."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.threads = threads

    def look(self, present: LoadedModel | None) -> LoadedModel | None:
        """The bundle, the first time. Raises BundleError."""
        if present is not None:
            return None
        return LoadedModel(_warm(PillSession.load(self.path, threads=self.threads)), self.path.stem, None, None, None)

    def kept(self) -> None:
        """There is no copy."""
        return None


class RegistrySource:
    """The version that carries an alias. Whatever the registry says, envelope and files are verified here."""

    def __init__(self, name: str, alias: str, home: Path, threads: int) -> None:
        self.name = name
        self.alias = alias
        self.home = home
        self.threads = threads
        self._settled: Mark | None = None
        self._keep_again: float | None = None
        """When a copy is to be written once more that could not be (`time.monotonic`); None: it is there."""
        self._refused: GateRefusedError | BundleError | None = None

    def look(self, present: LoadedModel | None) -> LoadedModel | None:
        """See `ModelSource`. What was refused or cannot be loaded is not downloaded again until something changes."""
        entry, mark = marked(self.name, self.alias)
        if entry is None or mark is None:
            self._settled = None
            raise StoreError(
                f"the registry has no {self.alias} of {self.name!r}; set one with: "
                f"pillsnap registry promote VERSION --name {self.name} --alias {self.alias}"
            )
        if mark == self._settled:
            if self._refused is not None:
                raise self._refused.with_traceback(None)  # else each look would add its frames, and what they hold
            if present is not None and not present.kept:
                self._mend_copy(entry)
                return None
        self._settled, self._refused = None, None
        try:
            with prove(entry, self.alias) as proven:
                model = self._load(proven, kept=False)
                self._keep(proven)
        except (GateRefusedError, BundleError) as error:
            self._settled, self._refused = mark, error.with_traceback(None)
            raise
        self._settled = mark
        return model

    def kept(self) -> LoadedModel | None:
        """See `ModelSource`."""
        proven = kept(self.home, self.name, self.alias, TrustRoot.find().ring())
        return None if proven is None else self._load(proven, kept=True)

    def _keep(self, proven: Proven) -> None:
        self._keep_again = None if keep(proven, self.home, self.alias) else time.monotonic() + _KEEP_AGAIN_S

    def _mend_copy(self, entry: ModelVersion) -> None:
        """A copy of the model before would answer after a start without the registry."""
        if self._keep_again is not None and time.monotonic() >= self._keep_again:
            self._keep_again = time.monotonic() + _KEEP_AGAIN_S  # also where it cannot be had again
            with prove(entry, self.alias) as proven:
                self._keep(proven)

    def _load(self, proven: Proven, kept: bool) -> LoadedModel:
        session = _warm(PillSession.load(proven.bundle, threads=self.threads))
        return LoadedModel(session, self.name, proven.statement.model_version, self.alias, proven.statement, kept)


def _warm(session: PillSession) -> PillSession:
    """The first runs allocate; they happen here, and not to a request."""
    side = session.metadata.preprocessing.target_size
    for _ in range(_WARM_UP_RUNS):
        session.predict(np.zeros((1, side, side, 3), np.uint8))
    return session
