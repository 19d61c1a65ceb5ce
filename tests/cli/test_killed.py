"""The real command, killed: it goes on in the same MLflow run. Also as several processes of torchrun."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pillsnap.training.checkpoint import Checkpoint

pytestmark = pytest.mark.e2e
PROJECT = Path(__file__).parents[2]
EPOCHS = 12
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def command(prepared: Path, workspace: Path, launcher: tuple[str, ...] = ()) -> list[str]:
    settings = (f"training.epochs={EPOCHS}", "training.mixed_precision=false", "logging.every_steps=1")
    options = ["--data", prepared / "data", "--config", prepared / "tiny.yaml", "--workspace", workspace]
    options += [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, *launcher, "-m", "pillsnap", "train", *map(str, options)]


def only_run(store: MlflowClient) -> Run:
    found = store.get_experiment_by_name("pillsnap")
    assert found is not None
    [run] = store.search_runs([found.experiment_id])
    return run


@pytest.mark.parametrize("killed_in", [(5,), pytest.param((1, 5), marks=pytest.mark.long)])
def test_kill_9_and_the_same_run_goes_on(
    prepared: Path,
    tmp_path: Path,
    environment: dict[str, str],
    store: MlflowClient,
    watch: Any,
    killed_in: tuple[int, ...],
) -> None:
    start = command(prepared, tmp_path / "w")
    for epoch in killed_in:
        running = watch(start, cwd=PROJECT, env=environment)
        running.wait_for(f"epoch {epoch} of {EPOCHS}")
        running.tell(signal.SIGKILL)
        running.ended()
        assert only_run(store).info.status == "RUNNING", "a killed process says nothing"
    done = subprocess.run(start, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    run = only_run(store)
    assert f"goes on with the unfinished run {run.info.run_id}" in done.stderr
    assert run.info.status == "FINISHED"
    points = Counter(point.step for point in store.get_metric_history(run.info.run_id, "val/top1"))
    assert points == Counter(range(1, EPOCHS + 1))
    if len(killed_in) == 1:  # that the weights are the very same: ``tests/training/test_resume.py``, and the long run
        return

    environment["MLFLOW_TRACKING_URI"] += ".other"
    undisturbed = command(prepared, tmp_path / "other")
    subprocess.run(undisturbed, cwd=PROJECT, env=environment, capture_output=True, timeout=300, check=True)
    ours, theirs = (next((tmp_path / name).glob("runs/*/checkpoints/last.pt")) for name in ("w", "other"))
    state = Checkpoint.load(theirs).state_dict
    assert all(value.equal(state[key]) for key, value in Checkpoint.load(ours).state_dict.items())


@pytest.mark.long
def test_two_processes_one_of_which_is_killed(
    prepared: Path, tmp_path: Path, environment: dict[str, str], store: MlflowClient, watch: Any
) -> None:
    start = command(prepared, tmp_path / "w", TORCHRUN)
    launcher = watch(start, cwd=PROJECT, env=environment)
    launcher.wait_for(f"epoch 1 of {EPOCHS}")
    [second] = [process for process in launcher.alive() if process.environ().get("RANK") == "1"]
    second.send_signal(signal.SIGKILL)
    assert launcher.ended() != 0
    run = only_run(store)
    assert run.info.status == "FAILED"
    assert run.data.tags["ended_because"] == "TrainingError: process 1 of 2 ended without a word"
    done = subprocess.run(start, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    run = only_run(store)
    assert run.info.status == "FINISHED"
    for key, steps in (("val/top1", EPOCHS), ("train/step_loss", 3 * EPOCHS)):
        points = Counter(point.step for point in store.get_metric_history(run.info.run_id, key))
        assert points == Counter(range(1, steps + 1)), "the first process alone logs"
    assert done.stdout.count("run: ") == 1
