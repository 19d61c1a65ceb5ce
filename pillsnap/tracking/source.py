"""Which code is running: the git commit, and whether it was changed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class CodeVersion:
    """A git commit; ``unknown`` where there is no git."""

    commit: str
    dirty: bool

    @classmethod
    def current(cls) -> CodeVersion:
        """Of the checkout that this package was imported from."""
        commit = _git("rev-parse", "HEAD")
        if commit is None:
            return cls("unknown", False)
        return cls(commit, bool(_git("status", "--porcelain")))

    def __str__(self) -> str:
        return f"{self.commit}{' (with uncommitted changes)' if self.dirty else ''}"


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
