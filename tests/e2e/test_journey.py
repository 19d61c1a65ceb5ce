"""The whole journey, tiny: the demo as a user starts it, the MLproject from another folder, and a promotion."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.cli.main import main
from pillsnap.core.evidence import Evidence
from pillsnap.core.files import sha256_file
from pillsnap.core.manifest import Manifest
from pillsnap.gate.decision import Decision, Verdict
from pillsnap.registry.rules import DECISION_TAG
from pillsnap.tracking.fetching import MODEL_URI_TAG

pytestmark = pytest.mark.e2e
PROJECT = Path(__file__).parents[2]
TERMINAL = {"FINISHED", "FAILED", "KILLED"}


def runs_of(store: MlflowClient, experiment: str, **tags: str) -> list[Run]:
    found = store.get_experiment_by_name(experiment)
    assert found is not None
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return store.search_runs([found.experiment_id], wanted)


def artifacts_of(store: MlflowClient, run: Run, folder: str) -> set[str]:
    return {entry.path for entry in store.list_artifacts(run.info.run_id, folder)}


def test_a_demo_too_small_to_be_promoted_ends_well(journey: tuple[int, str]) -> None:
    status, output = journey
    assert status == 0, output
    titles = (
        "Render",
        "Prepare",
        "Tune",
        "Train, export, evaluate and gate",
        "Register",
        "Make the gate",
        "Have the gate",
        "Identify three test photos all the same",
    )
    for number, title in enumerate(titles, start=1):
        assert f"── {number}. {title}" in output
    assert "── 9." not in output
    assert "\n$ pillsnap registry promote" not in output, "nobody promotes a model that was refused"
    assert "\nthe gate says REJECT:\n  - " in output
    assert "The gate did its job" in output
    assert "test images, 350 needed" in output
    assert output.count("  1. ") == 3
    assert "are too few to judge, 350 needed (test images)" in output
    assert "epoch 2 of 2" in output
    told = re.findall(r"^[\d-]{10} [\d:]{8} (\d) of 2: trial \d (?:complete|pruned).*val_", output, re.MULTILINE)
    assert told == ["1", "2"], "each trial of the study with its time"
    assert "verdict: REJECT" in output
    assert "Traceback" not in output
    assert "Downloading artifacts" not in output


def test_what_the_demo_left_in_mlflow(journey: tuple[int, str], site: Any, tmp_path: Path) -> None:
    store = site.store
    runs = runs_of(store, "pillsnap")
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    [study] = runs_of(store, "pillsnap", **{"pillsnap.kind": "study"})
    trials = runs_of(store, "pillsnap", **{"pillsnap.kind": "trial"})
    [training] = runs_of(store, "pillsnap", **{"pillsnap.kind": "training"})
    assert [trial.data.tags["mlflow.parentRunId"] for trial in trials] == [study.info.run_id] * 2
    assert {entry.path for entry in store.list_artifacts(study.info.run_id)} == {"best.yaml", "trials.md", "pictures"}

    manifest = Manifest.load(site.folder / "w" / "demo" / "data")
    assert "\n# command: pillsnap demo " in (site.folder / "w" / "demo" / "best.yaml").read_text()
    params, metrics, tags = training.data.params, training.data.metrics, training.data.tags
    assert params["data"] == str(manifest.root), "of mlflow run"
    assert (params["cfg.name"], params["cfg.training.epochs"], params["cfg.seed"]) == ("tiny", "2", "0")
    assert {"train/loss", "val/top1", "val/real_top1", "best_val_top1", "best_epoch", "test_top1"} <= set(metrics)
    history = store.get_metric_history(training.info.run_id, "val/top1")
    assert sorted(metric.step for metric in history) == [1, 2]
    assert tags["manifest_hash"] == manifest.hash
    assert tags["git_commit"]
    assert tags["gate.decision"] == "REJECT"
    [data] = training.inputs.dataset_inputs
    assert data.dataset.digest == manifest.hash[:36]

    assert {"experiment.yaml", "learning_curves.png"} <= artifacts_of(store, training, "")
    assert artifacts_of(store, training, "data") == {"data/audit.html", "data/report.json"}
    assert any(path.endswith(".pt") for path in artifacts_of(store, training, "checkpoints"))
    evaluation = artifacts_of(store, training, "evaluation")
    assert {"evaluation/evidence.json", "evaluation/report.md"} <= evaluation
    assert sum(path.endswith(".png") for path in evaluation) >= 2
    assert artifacts_of(store, training, "gate") == {"gate/decision.json", "gate/decision.md"}

    decision = Decision.load(Path(store.download_artifacts(training.info.run_id, "gate/decision.json", str(tmp_path))))
    evidence = Evidence.load(
        Path(store.download_artifacts(training.info.run_id, "evaluation/evidence.json", str(tmp_path)))
    )
    assert (decision.verdict, evidence.run_id) == (Verdict.REJECT, training.info.run_id)
    assert evidence.manifest_hash == manifest.hash
    bundle = site.folder / "w" / "runs" / training.info.run_id / "pillsnap.onnx"
    assert decision.bundle_sha256 == evidence.bundle_sha256 == sha256_file(bundle)
    [model] = training.outputs.model_outputs
    assert tags[MODEL_URI_TAG] == f"models:/{model.model_id}"

    entry = store.get_model_version("pillsnap", "1")
    assert (entry.run_id, entry.tags["gate.decision"]) == (training.info.run_id, "REJECT")
    assert "gate.envelope" in entry.tags
    [judgement] = runs_of(store, "pillsnap-gate")
    assert (judgement.info.status, judgement.data.tags["pillsnap.verdict"]) == ("FINISHED", "REJECT")
    assert {"evaluation/evidence.json", "evaluation/report.html"} <= artifacts_of(store, judgement, "evaluation")
    assert store.get_registered_model("pillsnap").aliases == {}


def test_a_second_demo_uses_what_is_there_and_can_be_stopped(journey: tuple[int, str], site: Any) -> None:
    demo = site.folder / "w" / "demo"
    kept = [
        demo / "data" / "manifest.json",
        demo / "raw" / "drugs.json",
        next((demo / "raw" / "studio").rglob("*.png")),
    ]
    before = [path.stat().st_mtime_ns for path in kept]
    process = site.start(site.demo_command, PROJECT)
    try:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "── 3." in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    output = "".join(lines)
    assert f"there already: {demo / 'raw'}" in output
    assert "reused, nothing has changed" in output
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert process.returncode == 1
    assert "error: interrupted" in rest
    assert "Traceback" not in rest
    assert {run.info.status for run in runs_of(site.store, "pillsnap")} <= TERMINAL


def test_a_journey_that_is_promoted(
    journey: tuple[int, str],
    site: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``mlflow run`` from another folder, with overrides and a policy that anything passes."""
    data = site.folder / "w" / "demo" / "data"
    loose = site.folder / "loose.yaml"
    command = site.mlflow_run(
        data=data, config=site.folder / "tiny.yaml", overrides="seed=5 training.epochs=1 name='of the night'",
        workspace=site.folder / "w2", policy=loose, register="loose",
    )  # fmt: skip
    process = site.start(command, tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "verdict: PROMOTE" in output
    assert "registered: loose version 1" in output
    store = site.store
    [run] = runs_of(store, "elsewhere")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "resnet18 32px · 1 epoch · seed 5 · of the night")
    assert run.data.params["cfg.seed"] == "5"
    assert run.data.params["overrides"]
    assert run.data.tags["mlflow.project.entryPoint"] == "main"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.environment["MLFLOW_TRACKING_URI"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(PROJECT)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pillsnap", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    monkeypatch.setenv("PILLSNAP_TRUST_ROOT", site.environment["PILLSNAP_TRUST_ROOT"])
    key = site.folder / "w" / "gate" / "gate.key"
    judge = ("registry", "judge", "1", "--name", "loose", "--manifest", data, "--key", key)
    status, _, err = call(*judge)
    assert (status, "REJECT" in err) == (1, True), "the trusted policy is not that loose"
    shutil.copy(loose, Path(site.environment["PILLSNAP_TRUST_ROOT"]) / "policy.yaml")
    status, _, err = call(*judge)
    assert status == 0, err
    status, out, err = call("registry", "promote", "1", "--name", "loose")
    assert (status, "loose version 1 is champion now (PROMOTE)" in out) == (0, True), err

    manifest = Manifest.load(data)
    photos = [data / path for path in manifest.split("test")["path"].to_pylist()[:2]]
    status, out, err = call("identify", *photos, "--name", "loose", "--top", "3")
    assert status == 0, err
    assert out.startswith("model: loose version 1 (champion)")
    names = {drug.drug_name for drug in manifest.catalog.drugs}
    answers = [line for line in out.splitlines() if line.startswith("  1. ")]
    assert len(answers) == 2
    for answer in answers:
        assert any(name in answer for name in names)
        assert 0 < float(answer.split()[1].rstrip("%")) <= 100


@pytest.mark.long
def test_export_evaluate_and_gate_as_entry_points(journey: tuple[int, str], site: Any, tmp_path: Path) -> None:
    """The parts of the journey by ``mlflow run -e``, from another folder, with blanks in every path. The command lines
    of all entry points: tests/cli/test_mlproject.py."""
    data, out = site.folder / "w" / "demo" / "data", tmp_path / "my pills"
    checkpoint = next((site.folder / "w" / "runs").glob("*/checkpoints/best-*.pt"))
    copy = out / "the best.pt"
    out.mkdir()
    shutil.copy(checkpoint, copy)
    bundle, policy = out / "a b.onnx", site.folder / "loose.yaml"
    steps = {
        "export": {"checkpoint": copy, "data": data, "out": bundle},
        "evaluate": {"bundle": bundle, "manifest": data, "out": out / "e"},
        "gate": {"evidence": out / "e" / "evidence.json", "bundle": bundle, "manifest": data, "policy": policy}
        | {"out": out / "decision.json"},
    }
    found = {}
    for entry, parameters in steps.items():
        before = {run.info.run_id for run in elsewhere(site.store)}
        process = site.start(site.mlflow_run(entry, **parameters), tmp_path)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        [found[entry]] = [run for run in elsewhere(site.store) if run.info.run_id not in before]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["export"].data.tags[MODEL_URI_TAG].startswith("models:/m-")
    assert "test_top1" in found["evaluate"].data.metrics
    assert found["gate"].data.tags[DECISION_TAG] == "PROMOTE"
    assert Decision.load(out / "decision.json").verdict == Verdict.PROMOTE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": "training.epochs=many"}, "training.epochs: "),
        pytest.param({"epochs": 3}, "No such option", marks=pytest.mark.long),
        pytest.param({}, "holds neither manifest.json", marks=pytest.mark.long),
    ],
)
def test_wrong_parameters_of_mlflow_run(site: Any, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    given = {"data": tmp_path, "config": site.folder / "tiny.yaml", "workspace": tmp_path / "w"}
    before = {run.info.run_id for run in elsewhere(site.store)}
    process = site.start(site.mlflow_run(**given, **changes), tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert said in output, output
    [status] = [run.info.status for run in elsewhere(site.store) if run.info.run_id not in before]
    assert status == "FAILED"


def elsewhere(store: MlflowClient) -> list[Run]:
    found = store.get_experiment_by_name("elsewhere")
    return [] if found is None else list(store.search_runs([found.experiment_id]))


def test_sigterm_to_mlflow_run_ends_the_training_too(journey: tuple[int, str], site: Any, tmp_path: Path) -> None:
    command = site.mlflow_run(
        data=site.folder / "w" / "demo" / "data", config=site.folder / "tiny.yaml",
        overrides="training.epochs=100000 name=orphan", workspace=site.folder / "w2",
    )  # fmt: skip
    with site.start(command, tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1 of"):
                break
        process.terminate()
        rest = process.stdout.read()  # to the end of the training, which writes there too
    assert "mlflow run has ended: ending too" in rest
    store = site.store
    deadline = time.monotonic() + 20
    while True:
        [run] = runs_of(store, "elsewhere", **{"mlflow.runName": "resnet18 32px · 100000 epochs · seed 0 · orphan"})
        if run.info.status != "RUNNING" or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert run.info.status == "KILLED"
    assert run.data.metrics["val/top1"] >= 0
