"""Workers of a study as forks of a process that has torch loaded. Imported by the workers' processes too."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def in_environment(environment: dict[str, str], target: Callable[..., None], *arguments: Any) -> None:
    """A fork has the environment of the process it is forked from, not of its parent."""
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


@dataclass(frozen=True)
class Forked:
    """In place of the context that spawns."""

    context: Any

    def Process(self, *, target: Callable[..., None], args: tuple[Any, ...], name: str) -> Any:
        return self.context.Process(target=in_environment, args=(dict(os.environ), target, *args), name=name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)
