"""Which code is running: the git commit, and how it was changed.

Only a repository that tracks this very package is asked. One that merely lies around it (a project of the user's with a
virtual environment in it) is somebody else's code, and its changes may hold anything.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
BUILT_FROM = "built_from.json"
"""Beside the package's modules where it was built (``setup.py``): the commit of the tree."""
COMMIT_VARIABLE = "PILLSNAP_COMMIT"
"""Of a build that has no git: the commit of its tree, with ``-dirty`` behind it where files were changed."""
_UNKNOWN = "unknown"
_MAX_DIFF = 1_000_000  # characters


@dataclass(frozen=True)
class CodeVersion:
    """A git commit; ``unknown`` where nobody can tell."""

    commit: str
    dirty: bool

    @classmethod
    def current(cls) -> CodeVersion:
        """Of the checkout that this package is imported from, or the one that it was built from."""
        return _of_checkout() or _built_in() or cls(_UNKNOWN, False)

    def __str__(self) -> str:
        return f"{self.commit}{' (with uncommitted changes)' if self.dirty else ''}"


def uncommitted_diff() -> str:
    """The changes of tracked files since the commit, as a patch; empty where there are none, or no git.

    Files that git does not track are left out: they may hold anything, keys too. A longer patch is cut, and says so.
    """
    if not _is_tracked():
        return ""
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--", ".") or ""
    if len(diff) > _MAX_DIFF:
        return f"{diff[:_MAX_DIFF]}\n[cut here: {len(diff)} characters in all]\n"
    return diff


def to_build_in() -> str:
    """What `BUILT_FROM` is to hold: JSON."""
    said = os.environ.get(COMMIT_VARIABLE, "").strip()
    version = CodeVersion(said.removesuffix("-dirty"), said.endswith("-dirty")) if said else CodeVersion.current()
    return json.dumps({"commit": version.commit, "dirty": version.dirty}) + "\n"


def _of_checkout() -> CodeVersion | None:
    commit = _git("rev-parse", "HEAD") if _is_tracked() else None
    if commit is None:
        return None
    return CodeVersion(commit.strip(), bool((_git("status", "--porcelain", "--", ".") or "").strip()))


def _built_in() -> CodeVersion | None:
    try:
        built = json.loads((PACKAGE / BUILT_FROM).read_text(encoding="utf-8"))
        return CodeVersion(str(built["commit"]), bool(built["dirty"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:  # pip's note of an installation straight from a git address
        note = importlib.metadata.distribution("pillsnap").read_text("direct_url.json")
        return CodeVersion(str(json.loads(note or "{}")["vcs_info"]["commit_id"]), False)
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_tracked() -> bool:
    return _git("ls-files", "--error-unmatch", "--", f"{PACKAGE.name}/__init__.py") is not None


def _git(*arguments: str) -> str | None:
    """What git prints in the folder that holds the package; None where it fails or is not there."""
    # of a git hook that calls us: they would point at the hook's repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=20, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.decode(errors="replace") if result.returncode == 0 else None
