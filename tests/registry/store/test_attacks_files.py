"""What can be done to the files of a version, before, at and after its judgement: none promotes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pillsnap.core.errors import BundleError
from pillsnap.inference.session import PillSession
from pillsnap.registry import artifacts

pytestmark = pytest.mark.usefixtures("still_works")


@pytest.mark.parametrize("name", ["model.onnx", "MLmodel", "added.py", "deep/pickle.pkl"])
def test_attack_files_changed_after_the_judgement(shelf: Any, name: str) -> None:
    version = shelf.judged()
    path = shelf.files(version) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(path.read_bytes() + b" " if path.exists() else b"evil")
    with shelf.refused("changed afterwards"):
        shelf.promote(version)


def test_attack_files_changed_between_measuring_and_handing_in(shelf: Any) -> None:
    version = shelf.version()
    statement = shelf.statement(version)
    (shelf.files(version) / "model.onnx").write_bytes(b"worse")
    with shelf.refused("is not the one that was judged"):
        shelf.hand_in(statement, version)


def test_attack_files_changed_while_they_were_champion(shelf: Any) -> None:
    shelf.promote(shelf.judged())
    shelf.promote(shelf.judged())
    (shelf.files("1") / "model.onnx").write_bytes(b"worse")
    with shelf.refused("is not the one that was judged"):
        shelf.promote("1")  # a former champion needs its very files all the same


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("model.onnx", lambda path: path.symlink_to(path.parent / "MLmodel"), "hold no model.onnx|is a link"),
        ("weights", lambda path: path.symlink_to("/etc"), "is a link or a device"),
        ("weights.data", lambda path: path.symlink_to("/etc/hostname"), "is a link or a device"),
        ("pipe", os.mkfifo, "is a link or a device"),
        ("model.onnx", lambda path: path.mkdir(), "hold no model.onnx"),
        ("model.pkl", lambda path: path.write_bytes(b"pickle"), "hold no model.onnx"),
    ],
)
def test_attack_files_that_are_no_bundle(shelf: Any, name: str, make: Any, words: str) -> None:
    version = shelf.judged()
    path = shelf.files(version) / name
    if name.startswith("model."):
        (path.parent / "model.onnx").unlink()
    make(path)
    with shelf.refused(words):
        shelf.promote(version)


def test_attack_huge_files_and_very_many(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    version = shelf.judged()
    with (shelf.files(version) / "model.onnx").open("ab") as stream:
        stream.truncate(artifacts.LARGEST_BUNDLE + 1)  # sparse
    with shelf.refused("more than 100 or larger than 1000 MB"):
        shelf.promote(version)
    second = shelf.judged()
    for number in range(101):
        (shelf.files(second) / f"{number}").touch()
    with shelf.refused("more than 100 or larger than 1000 MB"):
        shelf.promote(second)


SOURCES = [
    "http://169.254.169.254/latest", "https://example.org/model", "ftp://example.org/x", "dbfs:/x", "file:///",
    "file:///nowhere", "mlflow-artifacts:/../../etc", "mlflow-artifacts:/%252e%252e/%252e%252e/etc", "relative/path",
    "file:///proc/self/fd",
]  # fmt: skip


def test_attack_a_source_somewhere_else(shelf: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", tmp_path.as_uri())
    for source in SOURCES:
        version = shelf.registered(source)
        with shelf.refused(f"pills version {version}: its files"):
            shelf.promote(version)


def test_attack_a_store_that_lists_too_much_is_not_downloaded(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(*_: Any) -> str:
        raise AssertionError("it was downloaded")

    listing = [SimpleNamespace(path="model.onnx", is_dir=False, file_size=artifacts.LARGEST_BUNDLE + 1)]
    repository = SimpleNamespace(list_artifacts=lambda path: listing, download_artifacts=no_download)
    monkeypatch.setattr(artifacts, "get_artifact_repository", lambda uri: repository)
    version = shelf.registered("s3://bucket/model")
    with shelf.refused("larger than 1000 MB"):
        shelf.promote(version)


def test_attack_a_pickle_where_a_model_is_expected(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(BundleError):
        PillSession.load(tmp_path / "model.onnx")
