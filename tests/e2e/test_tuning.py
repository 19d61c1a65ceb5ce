"""``pillsnap tune`` as a user starts it: stopped by SIGTERM, looked at, and gone on with.

The same without the command: ``tests/tuning/test_supervisor.py``, ``tests/cli/test_tune.py``.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from mlflow.entities import Run

from pillsnap.core.experiment import ExperimentConfig

pytestmark = pytest.mark.e2e
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(site: Any, toys: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A data set of three classes of coloured pictures, and the environment of a store of its own."""
    folder = tmp_path_factory.mktemp("tuning")
    splits = ["train"] * 24 + ["val"] * 9 + ["test"] * 9
    images = [(n % 3, n % 3, split, ("real", "studio")[n % 2]) for n, split in enumerate(splits)]
    toys.save_manifest(folder / "data", toys.toy_colors(3), images)
    common = ["--data", str(folder / "data"), "--config", str(site.folder / "tiny.yaml")]
    return SimpleNamespace(folder=folder, common=[*common, "--workspace", str(folder / "w")], site=site)


def pillsnap(place: SimpleNamespace, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pillsnap", *arguments], cwd=PROJECT, env=place.site.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def runs_of(place: SimpleNamespace, kind: str) -> list[Run]:
    store = place.site.store
    experiment = store.get_experiment_by_name("pillsnap")
    assert experiment is not None
    return list(store.search_runs([experiment.experiment_id], f"tags.`pillsnap.kind` = '{kind}'"))


@pytest.mark.long
def test_sigterm_then_status_then_another(place: SimpleNamespace) -> None:
    """One story, since each step needs the one before."""
    longer = ("--set", "tuning.epochs=100000", "--set", "name=night")
    process = pillsnap(place, "tune", *place.common, "--workers", "2", *longer)
    assert process.stdout is not None
    said, begun = [], set()
    for line in process.stdout:
        said.append(line)
        begun |= set(re.findall(r"^[\d-]{10} [\d:]{8} trial ([01]), epoch", line))
        if len(begun) == 2:
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 1, "".join(said) + rest
    assert "error: interrupted" in rest
    assert "Traceback" not in rest

    url = f"sqlite:///{place.folder}/w/tune/optuna.db"
    [summary] = optuna.get_all_study_summaries(url)
    trials = optuna.load_study(study_name=summary.study_name, storage=url).trials
    assert sorted(trial.state.name for trial in trials) == ["FAIL", "FAIL", "WAITING", "WAITING"]
    nights = [run for run in runs_of(place, "study") if run.data.params["cfg.name"] == "night"]
    assert [run.info.status for run in nights] == ["KILLED"]
    children = [run for run in runs_of(place, "trial") if run.data.tags["mlflow.parentRunId"] == nights[0].info.run_id]
    assert [run.info.status for run in children] == ["KILLED", "KILLED"]
    assert {run.data.tags["optuna.state"] for run in children} == {"interrupted"}

    output, _ = pillsnap(place, "tune", "status", "--workspace", str(place.folder / "w")).communicate(timeout=60)
    assert re.search(r"0 of \d+ trials are over", output)
    assert "0 are running, 2 wait to be begun or tried again" in output

    process = pillsnap(place, "tune", *place.common, "--max-trials", "2", "--workers", "2", "--wall-clock", "20m")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "best val_real_top1: " in output
    best = place.folder / "w" / "tune" / "best.yaml"
    assert ExperimentConfig.load(best).training.epochs == 2, "the journey's test trains from such a file"
    [same] = [
        run
        for run in runs_of(place, "study")
        if run.inputs.dataset_inputs
        and run.data.params["cfg.name"] == "tiny"
        and f"{place.folder}" in run.inputs.dataset_inputs[0].dataset.source
    ]
    assert (same.info.status, same.data.metrics["trials_complete"]) == ("FINISHED", 2)
