"""Where a version's files are found, and that its digests are those that a download gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import GateRefusedError
from pillsnap.core.files import sha256_file, sha256_files, sha256_json
from pillsnap.registry import artifacts
from pillsnap.registry.artifacts import digests


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "destination" / "1" / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "sub" / "more.txt").write_text("more")
    return folder


def test_a_folder_however_it_is_written(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = (sha256_file(model / "model.onnx"), sha256_json(sha256_files(model)))
    for destination in ((tmp_path / "destination").as_uri(), str(tmp_path / "destination") + "/"):
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", destination)
        for location in (
            "mlflow-artifacts:/1/model",
            "mlflow-artifacts://host:5000/1/model",
            model.as_uri(),
            str(model),
        ):
            assert digests(location) == wanted
    (model / "registered_model_meta").write_text("what MLflow adds to a download")
    assert digests(str(model)) == wanted
    monkeypatch.delenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION")
    with pytest.raises(GateRefusedError, match="behind an artifact proxy that this process does not run"):
        digests("mlflow-artifacts:/1/model")


def test_the_files_of_a_run(shelf: Any, database: str, model: Path, tmp_path: Path, kept_uris: None) -> None:
    mlflow.set_tracking_uri(database)
    client = MlflowClient(database)
    run = client.create_run(client.create_experiment("e", (tmp_path / "runs").as_uri()))
    client.log_artifacts(run.info.run_id, str(model), "model")
    version = shelf.registered(f"runs:/{run.info.run_id}/model")
    shelf.hand_in(shelf.statement(version), version)
    shelf.promote(version)
    assert shelf.champion() == version
    unknown = shelf.registered(f"runs:/{'f' * 32}/model")
    with pytest.raises(MlflowException, match="the run of its files cannot be found"):
        shelf.promote(unknown)


def test_a_store_that_must_be_downloaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(path: str | None) -> list[Any]:
        folder = model / (path or "")
        return [
            SimpleNamespace(
                path=entry.relative_to(model).as_posix(),
                is_dir=entry.is_dir(),
                file_size=None if entry.is_dir() else entry.stat().st_size,
            )
            for entry in folder.iterdir()
        ]

    repository = SimpleNamespace(list_artifacts=listed, download_artifacts=lambda path, folder: str(model))
    monkeypatch.setattr(artifacts, "get_artifact_repository", lambda uri: repository)
    assert digests("s3://bucket/model") == (sha256_file(model / "model.onnx"), sha256_json(sha256_files(model)))

    def broken(*_: Any) -> str:
        raise RuntimeError("no credentials")

    repository.download_artifacts = broken
    with pytest.raises(GateRefusedError, match="its files cannot be read: RuntimeError: no credentials"):
        digests("s3://bucket/model")
