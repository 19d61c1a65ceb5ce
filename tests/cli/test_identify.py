"""A first answer right after the installation: by the bundle beside the photos, and only where there is no registry."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def examples(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> Path:
    """A folder with two photos and a bundle, seen from a folder without a store."""
    folder = tmp_path / "examples"
    folder.mkdir()
    for name in ("00000.png", "00001.png"):
        shutil.copy(prepared / "data" / name, folder)
    shutil.copy(prepared / "bundle.onnx", folder)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_bundle_beside_the_photos_answers_and_says_what_it_is(call: Call, examples: Path) -> None:
    status, out, err = call("identify", *sorted(examples.glob("*.png")))
    assert (status, err) == (0, "")
    assert f"model: {examples / 'bundle.onnx'} (beside the photos; no gate has promoted it), sha256" in out
    assert out.count("  1. ") == 2
    assert not Path("mlflow.db").exists()


@pytest.mark.parametrize("asked", ["store", "environment", "name", "alias", "other folder", "two bundles"])
def test_a_registry_or_a_question_to_it_is_never_passed_over(
    call: Call, examples: Path, monkeypatch: pytest.MonkeyPatch, asked: str, tmp_path: Path
) -> None:
    options: tuple[object, ...] = ()
    if asked == "store":
        Path("mlflow.db").touch()
    elif asked == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    elif asked == "other folder":
        options = (shutil.copy(examples / "00000.png", tmp_path / "other.png"),)
    elif asked == "two bundles":
        shutil.copy(examples / "bundle.onnx", examples / "second.onnx")
    else:
        options = (f"--{asked}", "champion" if asked == "alias" else "pillsnap")
    asked_registry = []

    def no_champion(*arguments: object) -> None:
        asked_registry.append(arguments)
        raise LookupError

    monkeypatch.setattr("pillsnap.registry.champion.champion_session", no_champion)
    status, out, _ = call("identify", examples / "00000.png", *options)
    assert status == 1
    assert asked_registry
    assert "beside the photos" not in out


def test_photos_that_are_not_there_are_said_before_a_model_is_looked_for(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    status, _, err = call("identify", tmp_path / "nofile.jpg", tmp_path / "a\nb.jpg")
    assert status == 1
    assert err.splitlines() == [
        f"error: {tmp_path}/nofile.jpg: no such file", f"{tmp_path}/a\\nb.jpg: no such file",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [], "no store was made"
