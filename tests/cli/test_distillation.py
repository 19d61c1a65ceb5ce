"""A net that is taught by a former training, by the commands."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.core.files import sha256_file
from pillsnap.core.manifest import Manifest

Call = Callable[..., tuple[int, str, str]]
runs: Callable[[MlflowClient], list[Run]] = runpy.run_path(str(Path(__file__).with_name("test_weights.py")))["runs"]


def test_taught_by_a_run(call: Call, store: MlflowClient, prepared: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path]
    status, _, err = call(*arguments)
    assert status == 0, err
    [first] = runs(store)
    assert not [tag for tag in first.data.tags if tag.startswith("teacher.")]
    assert "train/distillation_loss" not in first.data.metrics
    folder = tmp_path / "runs" / first.info.run_id
    best_epoch = int(first.data.metrics["best_epoch"])
    checkpoint = folder / "checkpoints" / f"best-{best_epoch:03d}.pt"
    taught = ["--set", f"distillation.teacher=runs:/{first.info.run_id}", "--set", "distillation.weight=0.5"]
    status, _, err = call(*arguments, *taught, "--set", "logging.every_steps=1")
    assert status == 0, err
    second = runs(store)[1]
    assert second.data.params["cfg.distillation.teacher"] == f"runs:/{first.info.run_id}", "as it was asked for"
    assert second.data.params["cfg.distillation.weight"] == "0.5"
    tags = {key: value for key, value in second.data.tags.items() if key.startswith("teacher.")}
    assert Path(tags.pop("teacher.source")).name == f"{sha256_file(checkpoint)}.pt"
    assert tags == {
        "teacher.run_id": first.info.run_id,
        "teacher.sha256": sha256_file(checkpoint),
        "teacher.backbone": "resnet18",
        "teacher.epoch": str(best_epoch),
        "teacher.manifest_hash": Manifest.load(prepared / "data").hash,
    }
    for kind in ("train/", "train/step_"):
        whole, labels, teacher = (
            second.data.metrics[f"{kind}{part}"] for part in ("loss", "label_loss", "distillation_loss")
        )
        assert whole == pytest.approx(0.5 * labels + 0.5 * teacher, rel=1e-4)
    report = (tmp_path / "runs" / second.info.run_id / "report.md").read_text()
    assert "| of the labels | of the teacher |" in report
    assert "was trained on other data" not in err
    status, out, err = call(*arguments, "--set", f"distillation.teacher={folder}", "--dry-run")
    assert status == 0, err
    assert re.search(r"loss \d\.\d+, \d\.\d+ to its teacher; validated", out)


@pytest.mark.parametrize("command", [("train",), ("train", "--dry-run"), ("run",), ("run", "--dry-run"), ("tune",)])
@pytest.mark.parametrize(
    ("teacher", "status", "said"),
    [
        ("models:/pillsnap@champion", 1, "pillsnap"),
        ("models:/pillsnap", 2, "distillation.teacher: 'models:/pillsnap': expected runs:/RUN_ID"),
        ("none.pt", 1, "distillation.teacher: none.pt: no such file"),
        ("none.onnx", 1, "distillation.teacher: none.onnx: no such file"),
        ("FOLDER", 1, "is not the folder of a training"),
        ("OTHER", 1, "does not answer with the drugs of this data set"),
    ],
)
def test_a_teacher_that_is_none(
    call: Call,
    store: MlflowClient,
    prepared: Path,
    other_teacher: Path,
    tmp_path: Path,
    command: tuple[str, ...],
    teacher: str,
    status: int,
    said: str,
) -> None:
    teacher = {"FOLDER": str(tmp_path), "OTHER": str(other_teacher)}.get(teacher, teacher)
    arguments = ["--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w"]
    found, _, err = call(*command, *arguments, "--set", f"distillation.teacher={teacher}")
    assert (found, said in err) == (status, True), err
    assert not (tmp_path / "w" / "cache").exists(), "said before any picture is prepared"
    assert "Traceback" not in err
    assert "RUNNING" not in {run.info.status for run in runs(store)}


@pytest.fixture(scope="session")
def other_teacher(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same net for other drugs."""
    from pillsnap.core.experiment import ExperimentConfig
    from pillsnap.training.backbone import create_net
    from pillsnap.training.checkpoint import Checkpoint

    config = ExperimentConfig.load(prepared / "tiny.yaml")
    kcodes = ("K-000001", "K-000002", "K-000003")
    state = create_net(config.model, config.preprocessing, 3).state_dict()
    path = tmp_path_factory.mktemp("other") / "other.pt"
    Checkpoint(config, kcodes, "a" * 64, 1, {"val_top1": 0.5, "val_loss": 1.0}, state).save(path)
    return path
