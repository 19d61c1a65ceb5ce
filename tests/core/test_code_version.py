from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pillsnap.core import code_version
from pillsnap.core.code_version import BUILT_FROM, CodeVersion, to_build_in, uncommitted_diff

PROJECT = Path(code_version.__file__).parents[2]
UNKNOWN = CodeVersion("unknown", False)
Git = Callable[..., str]


@pytest.fixture
def repository(tmp_path: Path) -> SimpleNamespace:
    """A git repository in ``folder`` with one commit, and a caller of git in it."""
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (folder / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    return SimpleNamespace(folder=folder, git=git)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Puts the package at a place, as far as this module can see."""

    def put(folder: Path) -> Path:
        package = folder / "pillsnap"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        monkeypatch.setattr(code_version, "PACKAGE", package)
        monkeypatch.setattr("importlib.metadata.distribution", lambda _: SimpleNamespace(read_text=lambda _: None))
        return package

    return put


def test_its_own_repository(repository: SimpleNamespace, package: Callable[[Path], Path]) -> None:
    package(repository.folder)
    repository.git("add", ".")
    repository.git("commit", "-qm", "ours")
    commit = repository.git("rev-parse", "HEAD")
    assert CodeVersion.current() == CodeVersion(commit, False)
    assert uncommitted_diff() == ""
    (repository.folder / ".env").write_text("TOKEN=secret")
    (repository.folder / "code.py").write_text("a = 2\n")
    diff = uncommitted_diff()
    assert "-a = 1\n+a = 2\n" in diff
    assert "secret" not in diff, "a file that git does not know"
    assert CodeVersion.current() == CodeVersion(commit, True)
    subprocess.run(["git", "-C", str(repository.folder), "apply", "-R"], input=diff.encode(), check=True)
    assert (repository.folder / "code.py").read_text() == "a = 1\n", "what was logged is a patch that fits"


def test_a_long_diff_is_cut(
    repository: SimpleNamespace, package: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(repository.folder)
    repository.git("add", ".")
    (repository.folder / "code.py").write_text("a = 3\n")
    monkeypatch.setattr(code_version, "_MAX_DIFF", 10)
    assert uncommitted_diff().startswith("diff --git\n[cut here: ")


@pytest.mark.parametrize("ignored", [True, False])
def test_a_repository_around_it_is_somebody_elses(
    repository: SimpleNamespace, package: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    """In a virtual environment inside another project, whose uncommitted changes hold a secret."""
    package(repository.folder / ".venv" / "lib" / "site-packages")
    if ignored:
        (repository.folder / ".gitignore").write_text(".venv\n")
    (repository.folder / "code.py").write_text("token = 'secret'\n")
    assert CodeVersion.current() == UNKNOWN
    assert uncommitted_diff() == ""
    monkeypatch.setenv("GIT_DIR", str(repository.folder / ".git"))  # as a hook of that repository has it
    monkeypatch.setenv("GIT_WORK_TREE", str(repository.folder))
    assert (CodeVersion.current(), uncommitted_diff()) == (UNKNOWN, "")


def test_changes_beside_it_are_not_its_own(repository: SimpleNamespace, package: Callable[[Path], Path]) -> None:
    """A repository that keeps a copy of the whole project in a folder."""
    package(repository.folder / "third_party" / "pillsnap")
    repository.git("add", ".")
    repository.git("commit", "-qm", "with a copy")
    (repository.folder / "code.py").write_text("token = 'secret'\n")
    assert CodeVersion.current() == CodeVersion(repository.git("rev-parse", "HEAD"), False)
    assert uncommitted_diff() == ""


def test_without_git_or_a_repository(
    tmp_path: Path, package: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path / "somewhere")
    assert CodeVersion.current() == UNKNOWN
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (str(CodeVersion.current()), uncommitted_diff()) == ("unknown", "")
    assert str(CodeVersion("abc", True)) == "abc (with uncommitted changes)"


@pytest.mark.parametrize(
    ("said", "expected"), [("abc", CodeVersion("abc", False)), ("abc-dirty", CodeVersion("abc", True)), ("", UNKNOWN)]
)
def test_what_was_built_in(
    tmp_path: Path,
    package: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    expected: CodeVersion,
) -> None:
    installed = package(tmp_path / "site-packages")
    monkeypatch.setenv("PILLSNAP_COMMIT", said)
    (installed / BUILT_FROM).write_text(to_build_in())
    assert CodeVersion.current() == expected
    (installed / BUILT_FROM).write_text("[]")
    assert CodeVersion.current() == UNKNOWN, "a damaged note says nothing"


def test_an_installation_from_a_git_address(
    tmp_path: Path, package: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path / "site-packages")
    note = '{"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: SimpleNamespace(read_text=lambda _: note))
    assert CodeVersion.current() == CodeVersion("abc", False)


def test_the_build_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real build step, on a tree without git: as an image is built."""
    tree = tmp_path / "tree"
    shutil.copytree(PROJECT / "pillsnap", tree / "pillsnap", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, tree)
    shutil.copytree(PROJECT / "requirements", tree / "requirements")
    monkeypatch.setenv("PILLSNAP_COMMIT", "abc")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    assert (tmp_path / "built" / "pillsnap" / BUILT_FROM).read_text() == '{"commit": "abc", "dirty": false}\n'
