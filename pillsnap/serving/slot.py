"""The model that answers now, as one reference: a request takes it once and keeps it to its end.

So a change of model is one assignment between two requests; the former one goes when its last request is answered.
"""

from __future__ import annotations

from dataclasses import dataclass

from pillsnap.gate.envelope import Statement
from pillsnap.inference.session import PillSession
from pillsnap.serving.problems import ProblemError


@dataclass(frozen=True)
class LoadedModel:
    """A session, and by what right it answers."""

    session: PillSession
    name: str
    version: str | None
    """Of the registry; None: a bundle that was given as a file."""
    alias: str | None
    statement: Statement | None
    """What the gate signed of it; None: it was given as a file, and nobody vouches for it."""
    kept: bool = False
    """Proven again from the copy on disk, because the registry did not answer."""

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.name} (a file)" if self.version is None else f"{self.name} version {self.version}"


class Slot:
    """Holds the present model. Safe to share between threads: reading and assigning a reference are atomic."""

    def __init__(self) -> None:
        self.model: LoadedModel | None = None

    def take(self) -> LoadedModel:
        """The model for one request. Raises ProblemError (``not_ready``): there is none yet."""
        model = self.model
        if model is None:
            raise ProblemError("not_ready", {"Retry-After": "5"})
        return model
