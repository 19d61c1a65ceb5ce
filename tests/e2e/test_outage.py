"""A tracking server that dies in mid-run: the training does not notice, and the run is complete in the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pillsnap.tracking.fetching import MODEL_URI_TAG

pytestmark = pytest.mark.e2e
PROJECT = Path(__file__).parents[2]
EPOCHS = 40
PER_EPOCH = 12
CONFIG = f"""\
name: outage
preprocessing: {{target_size: 32, interpolation: area, clahe: {{enabled: false}}}}
model: {{backbone: resnet18, pretrained: false, kwargs: {{layers: [1,1,1,1], channels: [8,16,32,64], stem_width: 8}}}}
data: {{batch_size: 8, workers: 0}}
training: {{epochs: {EPOCHS}, warmup_epochs: 0.5, mixed_precision: false}}
logging: {{every_steps: 1}}
"""


class Server:
    """A real ``mlflow server`` that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ("--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db")
        files = ("--artifacts-destination", str(self._folder / "files"))
        listen = ("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *files, *listen],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # ten processes that nobody needs
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError((self._folder / "server.log").read_text())

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, fresh_store: Path, toys: SimpleNamespace
) -> Iterator[SimpleNamespace]:
    """A server, a prepared data set, and a caller of commands."""
    folder = tmp_path_factory.mktemp("outage")
    shutil.copy(fresh_store, folder / "mlflow.db")
    splits = ["train"] * 8 * PER_EPOCH + ["val"] * 12 + ["test"] * 12
    images = [(n % 3, n % 3, split, ("real", "studio")[n // 3 % 2]) for n, split in enumerate(splits)]
    toys.save_manifest(folder / "data", toys.toy_colors(3), images)
    (folder / "outage.yaml").write_text(CONFIG)
    server = Server(folder)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # this training is too short for MLflow's patience
    environment.pop("MLFLOW_RUN_ID", None)

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pillsnap", *map(str, arguments), "--workspace", str(folder / "w")]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=PROJECT, env=environment, **pipes)

    store = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    options = ("--data", folder / "data", "--config", folder / "outage.yaml")
    server.start()
    try:
        yield SimpleNamespace(folder=folder, server=server, start=start, store=store, options=options)
    finally:
        server.kill()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"ended without saying {words!r}:\n{''.join(lines)}")


def run_of(output: str) -> str:
    [line] = [line for line in output.splitlines() if line.startswith("run: ")]
    return line.removeprefix("run: ")


def history(store: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every point of what does not hang on the clock, as the store gives it: twice where it is there twice."""
    keys = [key for key in store.get_run(run_id).data.metrics if not key.startswith(("system/", "test_"))]
    keys = [key for key in keys if not key.endswith(("_per_s", "_s"))]
    return {key: sorted((m.step, m.value) for m in store.get_metric_history(run_id, key)) for key in keys}


def artifact_names(folder: Path, run_id: str) -> set[str]:
    """As they lie on the server's disk."""
    [artifacts] = folder.glob(f"files/*/{run_id}/artifacts")
    return {path.name for path in artifacts.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(place: SimpleNamespace) -> dict[str, list[tuple[int, float]]]:
    process = place.start("train", *place.options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    found = history(place.store, run_of(output))
    assert [step for step, _ in found["train/step_loss"]] == list(range(1, EPOCHS * PER_EPOCH + 1))
    assert [step for step, _ in found["val/top1"]] == list(range(1, EPOCHS + 1))
    return found


def test_a_server_that_is_killed_and_comes_back(
    place: SimpleNamespace, undisturbed: dict[str, list[tuple[int, float]]]
) -> None:
    process = place.start("train", *place.options)
    try:
        said = read_until(process, "epoch 2 of")
        place.server.kill()
        said += read_until(process, "the work goes on, it is kept in")
        process.send_signal(signal.SIGSTOP)  # the server needs longer to start than this training to end
        place.server.start()
        process.send_signal(signal.SIGCONT)
        rest, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    said += rest
    assert process.returncode == 0, said
    assert f"epoch {EPOCHS} of" in said
    assert "tracking sync" not in said, "nothing is left to do"
    run = place.store.get_run(run_of(said))
    assert run.info.status == "FINISHED"
    assert history(place.store, run.info.run_id) == undisturbed
    names = artifact_names(place.folder, run.info.run_id)
    assert {"learning_curves.png", "report.md", "checkpoints", "samples", "environment"} <= names


@pytest.mark.long
def test_a_server_that_does_not_come_back_and_the_sync_later(
    place: SimpleNamespace, undisturbed: dict[str, list[tuple[int, float]]]
) -> None:
    process = place.start("run", *place.options)
    try:
        said = read_until(process, "epoch 2 of")
        place.server.kill()
        rest, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    said += rest
    assert process.returncode == 0, said
    assert "verdict: " in said
    assert "Nothing is lost" in said
    assert f"send it with: pillsnap tracking sync --workspace {place.folder / 'w'}" in said
    assert "Traceback" not in said
    run_id = run_of(said)
    assert place.store.get_run(run_id).info.status == "RUNNING"

    refused = place.start("tracking", "sync")
    output, _ = refused.communicate(timeout=300)
    assert (refused.returncode, "cannot be used" in output) == (1, True), output
    place.server.start()
    for expected in (f"run {run_id}: ", "nothing waits"):  # a second time there is nothing to do
        sync = place.start("tracking", "sync")
        output, _ = sync.communicate(timeout=300)
        assert (sync.returncode, expected in output) == (0, True), output
    run = place.store.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert history(place.store, run_id) == undisturbed
    assert run.data.tags[MODEL_URI_TAG].startswith("models:/m-")
    assert run.data.tags["gate.decision"]
    assert run.data.metrics["test_top1"] >= 0
    names = artifact_names(place.folder, run_id)
    assert {"learning_curves.png", "evaluation", "gate", "export", "checkpoints"} <= names


@pytest.mark.long
def test_at_the_start_a_person_is_told_at_once(place: SimpleNamespace) -> None:
    place.server.kill()
    process = place.start("train", *place.options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Check MLFLOW_TRACKING_URI and that the server runs" in output
    assert "epoch" not in output
