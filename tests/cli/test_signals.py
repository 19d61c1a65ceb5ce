"""Whatever ends a command, by Ctrl-C or a signal to it alone, nothing that it started lives on, and its runs end."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.e2e
PROJECT = Path(__file__).parents[2]
ENDLESS = 1_000_000
ALL = True
CTRL_C, INT, TERM, HUP = (signal.SIGINT, ALL), (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, False)
"""A signal, and whether the whole group hears it, as a terminal's Ctrl-C."""
Start = Callable[..., Any]


@pytest.fixture
def start(prepared: Path, tmp_path: Path, environment: dict[str, str], watch: Any) -> Start:
    """Start a module of Python with these arguments, on the prepared data, in a workspace of its own."""
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    places = {"data": prepared / "data", "config": prepared / "tiny.yaml", "bundle": prepared / "bundle.onnx"}

    def run(words: str, name: str = "w") -> Any:
        filled = words.format(**places, workspace=tmp_path / name, endless=ENDLESS)
        return watch([sys.executable, "-m", *filled.split("|")], env=environment, cwd=PROJECT)

    return run


def check(command: Any, status: int, *, own_traceback: str = "") -> None:
    """It ends with this status, leaves nothing behind, and shows no traceback but such a one."""
    assert command.ended() == status, command.said
    assert command.left(8) == []
    assert command.said.count("Traceback") == command.said.count(own_traceback) * bool(own_traceback), command.said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def statuses(store: MlflowClient) -> set[str]:
    found = store.get_experiment_by_name("pillsnap")
    assert found is not None
    return {run.info.status for run in store.search_runs([found.experiment_id])}


RUN = (
    "pillsnap|run|--data|{data}|--config|{config}|--workspace|{workspace}|--set|training.epochs={endless}"
    "|--set|data.workers="
)


def test_a_training_alone_and_with_its_loaders(start: Start, store: MlflowClient) -> None:
    """Ctrl-C, SIGTERM and a closed terminal, with and without processes that load images."""
    ways = {"int": (RUN + "1", CTRL_C), "term": (RUN + "1", TERM), "hup": (RUN + "0", HUP)}
    started = {name: start(words, name) for name, (words, _) in ways.items()}
    for name, command in started.items():
        command.wait_for("epoch 1 of")
        command.tell(*ways[name][1])
    for command in started.values():
        check(command, 1)
        assert "error: interrupted" in command.said
    found = store.get_experiment_by_name("pillsnap")
    assert found is not None
    runs = store.search_runs([found.experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 3
    told = {run.data.tags["ended_because"] for run in runs}
    assert told == {"KeyboardInterrupt: SIGINT", "KeyboardInterrupt: SIGTERM"}, "a hang-up is taken for SIGTERM"
    assert all(run.data.metrics["val/top1"] >= 0 for run in runs), "what was measured before is kept"


@pytest.mark.long
@pytest.mark.parametrize("way", [CTRL_C, INT, TERM, HUP])
def test_two_processes_of_torchrun(start: Start, store: MlflowClient, way: Any) -> None:
    """torchrun itself shows a traceback of its own, ours do not."""
    command = start("torch.distributed.run|--standalone|--nproc-per-node=2|-m|" + RUN + "0")
    command.wait_for("epoch 1 of")
    command.tell(*way)
    check(command, 1, own_traceback="SignalException: ")
    assert statuses(store) == {"KILLED"}


@pytest.mark.long
@pytest.mark.parametrize(("way", "status"), [(CTRL_C, 1), (INT, 1), (TERM, -signal.SIGTERM), (HUP, -signal.SIGHUP)])
def test_mlflow_run(start: Start, store: MlflowClient, way: Any, status: int) -> None:
    command = start(
        "mlflow|run|.|--env-manager|local|--experiment-name|pillsnap|-P|data={data}|-P|config={config}"
        "|-P|workspace={workspace}|-P|overrides=training.epochs={endless} data.workers=1"
    )
    command.wait_for("epoch 1 of")
    command.tell(*way)
    check(command, status)
    assert statuses(store) == {"KILLED"}


@pytest.mark.long
@pytest.mark.parametrize("way", [CTRL_C, INT, TERM, HUP])
def test_a_study_with_two_workers(start: Start, store: MlflowClient, way: Any) -> None:
    command = start(
        "pillsnap|tune|--data|{data}|--config|{config}|--workspace|{workspace}|--workers|2"
        "|--set|tuning.epochs={endless}|--set|tuning.trials=4"
    )
    command.wait_for("epoch 1 of")  # the other worker may still be importing
    command.tell(*way)
    check(command, 1)
    assert statuses(store) == {"KILLED"}


@pytest.mark.long
@pytest.mark.parametrize("way", [CTRL_C, INT, TERM, HUP, (signal.SIGHUP, ALL)])
def test_two_processes_that_answer(start: Start, way: Any) -> None:
    command = start(f"pillsnap|serve|--model|{{bundle}}|--workers|2|--port|{free_port()}")
    command.wait_for("serving bundle (a file)")  # the other worker may still be importing
    command.tell(*way)
    check(command, 0)


@pytest.mark.long
@pytest.mark.parametrize("way", [CTRL_C, TERM, HUP])
@pytest.mark.parametrize(
    ("step", "said", "drugs"),
    [
        ("1. Render", "rendering: ", 40),
        ("3. Tune", "trial 0, epoch", 2),
        ("4. Train", f"epoch 1 of {ENDLESS}", 2),
        ("4. Train", "=== Running command", 2),
    ],
)
def test_the_demo(start: Start, store: MlflowClient, way: Any, step: str, said: str, drugs: int) -> None:
    epochs = "training.epochs={endless} tuning.trials=1 data.workers=1 data.batch_size=4"
    epochs += " tuning.epochs={endless}" if step == "3. Tune" else ""
    command = start(f"pillsnap|demo|--config|{{config}}|--workspace|{{workspace}}|--drugs|{drugs}|--overrides|{epochs}")
    command.wait_for(f"── {step}")
    command.wait_for(said)
    command.tell(*way)
    check(command, 1)
    assert "error: interrupted" in command.said
    if "epoch" in said or "trial" in said:
        assert "KILLED" in statuses(store)
        assert statuses(store) <= {"KILLED", "FINISHED"}
