"""Which code is running: the git commit, and how it was changed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_MAX_DIFF = 1_000_000  # characters


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
        return cls(commit.strip(), bool((_git("status", "--porcelain") or "").strip()))

    def __str__(self) -> str:
        return f"{self.commit}{' (with uncommitted changes)' if self.dirty else ''}"


def uncommitted_diff() -> str:
    """The changes of tracked files since the commit, as a patch; empty where there are none, or no git.

    Files that git does not track are left out: they may hold anything, keys too. A longer patch is cut, and says so.
    """
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv") or ""
    if len(diff) > _MAX_DIFF:
        return f"{diff[:_MAX_DIFF]}\n[cut here: {len(diff)} characters in all]\n"
    return diff


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(PROJECT_ROOT), *arguments], capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.decode(errors="replace") if result.returncode == 0 else None
