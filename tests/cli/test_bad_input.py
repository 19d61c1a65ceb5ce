"""Bad input, one line each: the message, the exit status, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

Call = Callable[..., tuple[int, str, str]]


def statuses(store: MlflowClient) -> list[str]:
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    return [run.info.status for run in store.search_runs(experiments)]


def refused(call: Call, status: int, said: str, *arguments: object) -> None:
    found, _, err = call(*arguments)
    assert (found, said in err) == (status, True), err
    assert "Traceback" not in err
    assert "unexpected" not in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainin: {epochs: 3}", "bad.yaml: trainin: unknown key; is training meant?"),
        ("training: {epoch: 3}", "bad.yaml: training.epoch: unknown key; is training.epochs meant?"),
        ("training: {epochs: many}", "(found 'many')"),
        ("training: {epochs: 2, warmup_epochs: 5}", "warmup_epochs (5.0) must be fewer than epochs (2)"),
        ("training: 3", "bad.yaml: training: "),
        ("- 1", "bad.yaml: expected keys and values, found list"),
        ("training: {epochs: 3", "bad.yaml: line 1: not valid YAML"),
        ("tuning: {space: {training.base_rl: {low: 0.1, high: 1}}}", "'training.base_rl' is not a number of this file"),
    ],
)
@pytest.mark.parametrize("command", ["run", "train", "tune"])
def test_an_experiment_file(
    call: Call, store: MlflowClient, prepared: Path, tmp_path: Path, command: str, text: str, said: str
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    arguments = ("--data", prepared / "data", "--config", tmp_path / "bad.yaml", "--workspace", tmp_path / "w")
    refused(call, 2, said, command, *arguments)
    assert not (tmp_path / "w").exists()
    assert statuses(store) == []


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        (["model.backbone=resnet181"], 2, "timm has no model 'resnet181' (similar: resnet18"),
        (["model.pretrained=true", "model.weights=nothere.pth"], 1, "model.weights: nothere.pth: no such file"),
        (["model.pretrained=true", "model.weights=package:nothere"], 2, "nothere"),
        (["distillation.teacher=nothere.pt"], 1, "distillation.teacher: nothere.pt: no such file"),
        ([], 1, "nothere: holds neither manifest.json (a prepared data set) nor drugs.json"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("run", "--dry-run"), ("train",), ("tune",)])
def test_what_needs_no_picture_is_refused_before_one_is_drawn(
    call: Call, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...], settings: list[str], status: int, said: str,
) -> None:  # fmt: skip
    """Nor is a store made, or a run opened."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setattr("pillsnap.cli.journey.render_demo", lambda *_: pytest.fail("drawn"))
    data = () if settings else ("--data", tmp_path / "nothere")  # the demo is the default
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = (*data, "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w", *options)
    refused(call, status, said, *command, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "training.epochs"), "'training.epochs': expected KEY=VALUE"),
        (("--set", "=3"), "expected KEY=VALUE"),
        (("--set", "training.epochs=many"), "training.epochs: "),
        (
            ("--set", "training.epochz=3"),
            "error: the command line: training.epochz: unknown key; is training.epochs meant?",
        ),
        (("--set", "training.epochs.more=3"), "training.epochs: "),
        (("--set", "seed=["), "the value is not valid YAML"),
        (("--overrides", "seed"), "expected KEY=VALUE"),
        (("--overrides", "seed=1 name='x"), '--overrides "seed=1 name=\'x": No closing quotation'),
        (("--overrides", "seed=-1"), "seed: "),
        (("--config", "none.yaml"), "none.yaml: no such file"),
        (("--policy", "none.yaml"), "none.yaml: no gate policy there"),
    ],
)
def test_options_of_run(
    call: Call, store: MlflowClient, prepared: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    arguments = ("--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w")
    refused(call, 2, said, "run", *arguments, *options)
    assert not (tmp_path / "w").exists()
    assert statuses(store) == []


@pytest.mark.parametrize("command", ["run", "train", "tune"])
def test_data_that_is_not_there(call: Call, store: MlflowClient, prepared: Path, tmp_path: Path, command: str) -> None:
    arguments = ("--data", tmp_path / "none", "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w")
    refused(call, 1, f"{tmp_path}/none: holds neither manifest.json", command, *arguments)
    assert not (tmp_path / "w").exists()
    assert statuses(store) == []


@pytest.mark.parametrize(
    ("drugs", "said"),
    [
        ([{"kcode": "K-", "drug_name": "a"}], "drug 1: K-CODE 'K-' is not of the form K-030864"),
        ([{"kcode": "K-abc", "drug_name": "a"}], "drug 1: K-CODE 'K-abc' is not of the form"),
        ([{"kcode": "K-1", "drug_name": "a"}, {"kcode": "k000001", "drug_name": "b"}], "listed twice (drugs 1 and 2)"),
        ([{"kcode": "K-1", "drug_name": "a"}], "at least 2 drugs are needed, 1 found"),
        ([{"kcode": "K-1"}], "drug 1: drug_name: Field required"),
        ([], "at least 2 drugs are needed, 0 found"),
        ("none", 'expected an object with a list under "drugs"'),
    ],
)
def test_a_drug_list(call: Call, store: MlflowClient, prepared: Path, tmp_path: Path, drugs: object, said: str) -> None:
    raw = tmp_path / "raw"
    (raw / "studio").mkdir(parents=True)
    (raw / "drugs.json").write_text(json.dumps({"drugs": drugs}))
    refused(call, 1, said, "data", "prepare", "--raw", raw, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    arguments = ("--data", raw, "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w")
    refused(call, 1, said, "run", *arguments)
    assert statuses(store) == [], "what is refused before the training leaves no run"
    assert not list(tmp_path.glob("w/**/manifest.json"))


def test_a_drug_without_pictures(call: Call, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    drugs = [{"kcode": f"K-{n}", "drug_name": "a"} for n in (1, 2)]
    (raw / "drugs.json").write_text(json.dumps({"drugs": drugs}))
    refused(call, 2, "neither studio nor real pictures", "data", "prepare", "--raw", raw, "--out", tmp_path / "out")
    (raw / "studio" / "K-000001").mkdir(parents=True)
    for n in range(12):
        picture = np.random.default_rng(n).integers(0, 255, (16, 16, 3), np.uint8)
        cv2.imwrite(str(raw / "studio" / "K-000001" / f"K-000001_0_{n}_0_0_90_000_200.png"), picture)
    refused(call, 1, "K-000002", "data", "prepare", "--raw", raw, "--out", tmp_path / "out")
    assert not list(tmp_path.glob("out/**/manifest.json"))


def test_photos_for_identify(call: Call, prepared: Path, tmp_path: Path) -> None:
    good = prepared / "data" / "00000.png"
    ok, jpeg = cv2.imencode(".jpg", np.full((40, 40, 3), 128, np.uint8))
    assert ok
    (tmp_path / "cut.jpg").write_bytes(jpeg.tobytes()[:-40])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    photos = [tmp_path / name for name in ("cut.jpg", "text.jpg", "empty.jpg", "none.jpg")]
    status, out, err = call("identify", "--bundle", prepared / "bundle.onnx", photos[0], good, *photos[1:], tmp_path)
    assert status == 1
    assert "error: 5 of 6 photos cannot be used:" in err
    assert out.count("not identified") == 5
    assert "cut.jpg: the picture is cut off" in err
    assert "text.jpg: is not a picture that can be decoded" in err
    assert "empty.jpg: the file is empty" in err
    assert "none.jpg: cannot be read (No such file or directory)" in err
    assert "1. " in out, "the good one is answered all the same"
    assert "K-990001  가상정0" in out


def test_identify_is_not_sure_of_a_picture_in_which_nothing_can_be_seen(
    call: Call, prepared: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((64, 64, 3), (40, 40, 200), np.uint8))
    photos = [tmp_path / "red.png", prepared / "data" / "00000.png"]
    status, out, _ = call("identify", "--bundle", prepared / "bundle.onnx", *photos)
    assert status == 0
    red, good = out.split("\n\n")[1:]
    assert "NOT SURE (blank: all of it is between" in red
    assert "NOT SURE" not in good


def test_bundles(call: Call, prepared: Path, tmp_path: Path) -> None:
    photo = prepared / "data" / "00000.png"
    (tmp_path / "text.onnx").write_text("no model")
    refused(call, 1, "none.onnx: cannot be read", "identify", photo, "--bundle", tmp_path / "none.onnx")
    refused(call, 1, "is not an ONNX model", "identify", photo, "--bundle", tmp_path / "text.onnx")
    arguments = ("--manifest", prepared / "data", "--out", tmp_path / "out")
    refused(call, 1, "is not an ONNX model", "evaluate", tmp_path / "text.onnx", *arguments)
    assert not (tmp_path / "out").exists()


def test_photos_that_changed_after_the_manifest(call: Call, store: MlflowClient, own: Path, tmp_path: Path) -> None:
    for photo in (own / "data").glob("*.png"):
        cv2.imwrite(str(photo), np.zeros((32, 32, 3), np.uint8))
    said = "was changed after the manifest was made (sha256 differs)"
    refused(call, 1, said, "evaluate", own / "bundle.onnx", "--manifest", own / "data", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    arguments = ("--data", own / "data", "--config", own / "tiny.yaml", "--workspace", tmp_path / "w")
    refused(call, 1, said, "run", *arguments)
    assert statuses(store) == ["FAILED"]
    assert not list(tmp_path.glob("w/**/*.npy")), "no half-made cache"


def test_a_manifest_that_was_edited(call: Call, own: Path, tmp_path: Path) -> None:
    summary = json.loads((own / "data" / "manifest.json").read_text())
    (own / "data" / "manifest.json").write_text(json.dumps({**summary, "name": "better"}))
    said = "the manifest's files were changed after it was made"
    refused(call, 1, said, "evaluate", own / "bundle.onnx", "--manifest", own / "data", "--out", tmp_path / "out")
    (own / "data" / "manifest.json").write_text("{")
    refused(call, 1, "manifest.json: is not readable JSON", "data", "verify", own / "data")


def test_checkpoints(call: Call, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    arguments = ("--data", prepared / "data", "--out", tmp_path / "out" / "x.onnx")
    refused(call, 1, "none.pt: no such checkpoint; train one", "export", tmp_path / "none.pt", *arguments)
    refused(call, 1, "text.pt: is not a checkpoint, or a damaged one", "export", tmp_path / "text.pt", *arguments)
    assert not (tmp_path / "out").exists()


def test_gate_without_what_it_judges(call: Call, prepared: Path, tmp_path: Path) -> None:
    arguments = ("--bundle", prepared / "bundle.onnx", "--manifest", prepared / "data", "--out", tmp_path / "d.json")
    refused(call, 2, "none.yaml: no gate policy there", "gate", "e.json", *arguments, "--policy", "none.yaml")
    refused(call, 1, "e.json: no such file; evaluate again", "gate", tmp_path / "e.json", *arguments)
    (tmp_path / "policy.yaml").write_text("policy_version: 2\nat_least: {}\n")
    refused(call, 2, "policy.yaml: at_least.top1: ", "gate", "e.json", *arguments, "--policy", tmp_path / "policy.yaml")
    assert not (tmp_path / "d.json").exists()


def test_a_study_whose_storage_cannot_be_used(call: Call, store: MlflowClient, prepared: Path, tmp_path: Path) -> None:
    arguments = ("--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", tmp_path / "w")
    refused(call, 2, "storage nosuch://db cannot be used", "tune", *arguments, "--storage", "nosuch://db")
    assert statuses(store) == []
