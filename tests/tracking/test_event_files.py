"""TensorBoard shows what MLflow has, point by point, also after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pillsnap.tracking.event_files import EventFiles
from pillsnap.tracking.run import tracked_run

KILLED = """
import os, sys
from pathlib import Path
from pillsnap.tracking.run import tracked_run
with tracked_run("r", experiment="exp", workspace=Path(sys.argv[1])) as run:
    for step in range(1, 31):
        run.log_metrics({"step_loss": 1 / step, "step_lr": step / 1000}, step)
    run.log_metrics({"val_top1": 0.5}, 1)
    print(run.run_id, flush=True)
    os.kill(os.getpid(), 9)
"""


def shown(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def as_tensorboard_keeps_them(store: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float, float]]]:
    keys = store.get_run(run_id).data.metrics
    return {
        key: [
            (m.step, float(np.float32(m.value)), m.timestamp / 1000)
            for m in sorted(store.get_metric_history(run_id, key), key=lambda m: m.step)
        ]
        for key in keys
    }


def test_the_same_points_as_mlflow(store: MlflowClient, tmp_path: Path) -> None:
    with tracked_run("r", experiment="exp", workspace=tmp_path) as tracked:
        for step in range(1, 41):
            tracked.log_metrics({"step_loss": 1 / step, "step_lr": 0.1}, step)
            if step % 10 == 0:  # epochs count from 1 between the updates
                tracked.log_metrics({"val_top1": step / 50}, step // 10)
    found = shown(tracked.folder / "tensorboard")
    assert found == as_tensorboard_keeps_them(store, tracked.run_id)
    assert [len(points) for points in found.values()] == [40, 40, 4]


def test_after_a_kill_and_a_resumption(store: MlflowClient, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert killed.returncode == -9, killed.stderr
    run_id = killed.stdout.strip()
    with tracked_run("r", workspace=tmp_path, resume=run_id) as tracked:
        for step in range(21, 41):  # from the checkpoint of step 20
            tracked.log_metrics({"step_loss": 2 / step, "step_lr": step / 1000}, step)
        tracked.log_metrics({"val_top1": 0.6}, 2)
    found = shown(tracked.folder / "tensorboard")
    assert found == as_tensorboard_keeps_them(store, run_id)
    assert [step for step, _, _ in found["step_loss"]] == list(range(1, 41))
    assert [step for step, _, _ in found["val_top1"]] == [1, 2]


def test_a_tensorboard_that_runs_forgets_what_it_has_read(tmp_path: Path) -> None:
    first = EventFiles(tmp_path)
    first.add([("loss", 9.0, 1000, 5), ("loss", 8.0, 1000, 6)])
    first.close()
    watching = EventAccumulator(str(tmp_path))
    watching.Reload()
    second = EventFiles(tmp_path, [("loss", 9.0, 1000, 5)])
    second.add([("loss", 7.0, 2000, 6)])
    second.close()
    watching.Reload()
    assert [(event.step, event.value) for event in watching.Scalars("loss")] == [(5, 9.0), (6, 7.0)]


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.99999999999.host.1.0").write_bytes(b"")
    events = EventFiles(tmp_path, [("loss", 9.0, 1000, 5)])
    events.close()
    assert shown(tmp_path) == {"loss": [(5, 9.0, 1.0)]}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_does_not_take_events_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events = EventFiles(tmp_path, [])
    assert events._writer is not None
    events._writer.close()
    events.add([("loss", 1.0, 1, 1)])  # "Writer is closed" is an OSError, as a full disk is
    events.add([("loss", 1.0, 1, 2)])
    events.close()
    assert caplog.text.count("event file cannot be written") == 1
