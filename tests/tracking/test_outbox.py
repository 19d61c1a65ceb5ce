"""Everything arrives once, in order, whatever the store does meanwhile; who logs never waits for it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient

from pillsnap.tracking import outbox as outbox_module
from pillsnap.tracking.delivery import joined
from pillsnap.tracking.fetching import MODEL_URI_TAG
from pillsnap.tracking.outbox import REFUSED_FILE, Outbox
from pillsnap.tracking.run import tracked_run
from pillsnap.tracking.run_model import log_bundle
from pillsnap.tracking.sync import sync_run, waiting_runs


@pytest.fixture
def run_id(store: MlflowClient) -> str:
    return store.create_run(store.create_experiment("exp")).info.run_id


@pytest.fixture
def box(store: MlflowClient, run_id: str, tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox", run_id, lambda: store)
    yield box
    box.close()


def outage(method: str, error: Exception | None = None) -> mock._patch[mock.MagicMock]:
    return mock.patch.object(MlflowClient, method, side_effect=error or MlflowException("gone"))


def points(store: MlflowClient, run_id: str, key: str) -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in store.get_metric_history(run_id, key)]


def test_a_thread_sends(box: Outbox, store: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "_PACE_S", 0.01)
    box.start()
    box.post({"kind": "tags", "values": {"a": "b"}})
    deadline = time.monotonic() + 20
    while not box.is_all_sent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.get_run(run_id).data.tags["a"] == "b"


def test_the_thread_tries_again_and_says_so_once(
    box: Outbox, store: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox_module, "_PACE_S", 0.01)
    with caplog.at_level(logging.INFO), outage("log_batch") as gone:
        box.start()
        box.post({"kind": "metrics", "points": [["loss", 1.0, 5, 1]]})
        deadline = time.monotonic() + 20
        while gone.call_count < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone.call_count >= 3
        assert box.waiting() == 1
    with caplog.at_level(logging.INFO):
        while not box.is_all_sent and time.monotonic() < deadline:
            time.sleep(0.01)
    assert points(store, run_id, "loss") == [(1, 1.0, 5)]
    assert caplog.text.count("the work goes on, it is kept in") == 1
    assert caplog.text.count("the MLflow store answers again") == 1


def test_what_was_sent_but_not_marked_is_there_once(box: Outbox, store: MlflowClient, run_id: str) -> None:
    box.post({"kind": "metrics", "points": [["loss", 1.0, 5, 1], ["loss", float("nan"), 6, 2]]})
    box.post({"kind": "params", "values": {"cfg.a": "1"}})
    box.post({"kind": "file", "path": box.keep_text("word", "note.txt"), "folder": "notes"})
    dataset = {"name": "d", "digest": "1", "source_type": "local", "source": "{}", "profile": "{}"}
    box.post({"kind": "dataset", "dataset": dataset})
    with mock.patch.object(box._journal, "mark_sent"):  # killed after the sending, before the marking
        box._send_some(list(box._journal.entries()))
    assert box.waiting() == 4
    box.post({"kind": "metrics", "points": [["loss", 3.0, 7, 3]]})
    assert box.send()
    assert len(points(store, run_id, "loss")) == 3
    run = store.get_run(run_id)
    assert len(run.inputs.dataset_inputs) == 1
    assert [entry.path for entry in store.list_artifacts(run_id, "notes")] == ["notes/note.txt"]


def test_what_the_store_refuses_is_put_aside_and_holds_nothing_up(
    box: Outbox, store: MlflowClient, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    for value in ("1", "2"):  # a parameter that changes
        box.post({"kind": "params", "values": {"cfg.a": value}})
    box.post({"kind": "from the future"})
    box.post({"kind": "file", "path": "files/9/none", "folder": ""})
    box.post({"kind": "folder", "path": "files/9/none", "folder": "x"})
    box.post({"kind": "tags", "values": {"after": "all"}})
    assert box.send()
    assert (box.refused, box.is_all_sent) == (4, True)
    run = store.get_run(run_id)
    assert (run.data.params["cfg.a"], run.data.tags["after"]) == ("1", "all")
    refused = [json.loads(line) for line in (box.folder / REFUSED_FILE).read_text().splitlines()]
    assert [line["entry"]["kind"] for line in refused] == ["params", "from the future", "file", "folder"]
    assert "newer PillSnap" in refused[1]["error"]
    assert caplog.text.count("the MLflow store refuses what the run logs") == 4


def test_files_are_sent_as_they_were_when_they_were_logged(
    box: Outbox, store: MlflowClient, run_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "curve.txt"
    for word in ("first", "second"):
        beside = tmp_path / "new"
        beside.write_text(word)
        beside.replace(path)
        box.post({"kind": "file", "path": box.keep(path), "folder": word})
    path.unlink()
    assert box.send()
    for word in ("first", "second"):
        assert Path(store.download_artifacts(run_id, f"{word}/curve.txt", str(tmp_path))).read_text() == word


def test_neighbouring_metrics_share_a_call_up_to_what_the_store_takes() -> None:
    metrics = [{"kind": "metrics", "points": [["a", float(n), n, n]] * 400} for n in range(4)]
    entries = [*metrics[:3], {"kind": "tags", "values": {}}, metrics[3]]
    found = [(entry["kind"], len(entry.get("points", ())), count) for entry, count in joined(entries)]
    assert found == [("metrics", 800, 2), ("metrics", 400, 1), ("tags", 0, 1), ("metrics", 400, 1)]
    assert list(joined([])) == []


def test_a_run_whose_store_never_came_back_is_completed_later(
    store: MlflowClient, tmp_path: Path, toys: SimpleNamespace
) -> None:
    bundle = toys.save_bundle(tmp_path / "pillsnap.onnx", toys.toy_colors(3))
    with ExitStack() as gone, tracked_run("r", experiment="exp", workspace=tmp_path) as tracked:
        tracked.flush()
        for method in ("log_batch", "log_artifact", "set_terminated", "get_run", "create_logged_model"):
            gone.enter_context(outage(method))
        for step in range(1, 6):
            tracked.log_metrics({"loss": 1 / step}, step)
        tracked.log_text("words", "a/b.md")
        assert log_bundle(tracked, bundle) is None
    bundle.unlink()
    assert waiting_runs(tmp_path) == [(tmp_path, tracked.run_id)]
    ended = json.loads((tracked.folder / "outbox" / "journal.jsonl").read_text().splitlines()[-1])
    first = sync_run(tmp_path, tracked.run_id)
    assert (first.waiting, first.status, first.problem) == (0, "FINISHED", "")
    assert first.sent == 9
    assert waiting_runs(tmp_path) == []
    with outage("log_batch"), tracked_run("trial", experiment="exp", workspace=tmp_path / "tune") as trial:
        trial.log_metrics({"loss": 1.0}, 1)
    assert waiting_runs(tmp_path) == [(tmp_path / "tune", trial.run_id)], "a trial of a study waits, too"
    assert sync_run(*waiting_runs(tmp_path)[0]).problem == ""
    assert waiting_runs(tmp_path) == []
    run = store.get_run(tracked.run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", ended["time_ms"]), "when it ended, not when it was sent"
    assert [(m.step, m.value) for m in store.get_metric_history(tracked.run_id, "loss")] == [
        (step, 1 / step) for step in range(1, 6)
    ]
    assert run.data.tags[MODEL_URI_TAG].startswith("models:/m-")
    assert len(run.outputs.model_outputs) == 1
    assert not (tracked.folder / "outbox" / "files").exists(), "copies are not kept for ever"
    assert sync_run(tmp_path, tracked.run_id).sent == 0
    assert len(store.get_metric_history(tracked.run_id, "loss")) == 5


def test_a_model_whose_sending_broke_off_is_not_there_twice(
    store: MlflowClient, tmp_path: Path, toys: SimpleNamespace
) -> None:
    bundle = toys.save_bundle(tmp_path / "pillsnap.onnx", toys.toy_colors(3))
    with tracked_run("r", experiment="exp", workspace=tmp_path) as tracked:
        with mock.patch("pillsnap.tracking.models.Model.log", side_effect=MlflowException("gone")):
            assert log_bundle(tracked, bundle) is None
        uri = log_bundle(tracked, bundle)
    assert store.get_run(tracked.run_id).data.tags[MODEL_URI_TAG] == uri
    [model] = store.search_logged_models([tracked.experiment_id])
    assert (f"models:/{model.model_id}", str(model.status)) == (uri, "READY")


def test_a_bundle_that_was_damaged_while_it_waited_is_put_aside(
    store: MlflowClient, tmp_path: Path, toys: SimpleNamespace
) -> None:
    bundle = toys.save_bundle(tmp_path / "pillsnap.onnx", toys.toy_colors(3))
    with ExitStack() as gone, tracked_run("r", experiment="exp", workspace=tmp_path) as tracked:
        gone.enter_context(outage("log_batch"))
        assert log_bundle(tracked, bundle) is None
        [kept] = (tracked.folder / "outbox" / "files").rglob("*.onnx")
        kept.write_bytes(b"rubbish")
    synced = sync_run(tmp_path, tracked.run_id)
    assert (synced.waiting, synced.status) == (0, "FINISHED")
    assert "is no ONNX file" in synced.problem


def test_another_store_than_the_run_was_started_with(
    store: MlflowClient, tmp_path: Path, fresh_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as gone, tracked_run("r", experiment="exp", workspace=tmp_path) as tracked:
        gone.enter_context(outage("log_batch"))
    other = tmp_path / "other.db"
    other.write_bytes(fresh_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    synced = sync_run(tmp_path, tracked.run_id)
    assert synced.sent == 0
    assert "other.db) the store that the run was started with?" in synced.problem
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert sync_run(tmp_path, tracked.run_id).problem == ""
    assert store.get_run(tracked.run_id).info.status == "FINISHED"


def test_a_refusal_is_told_by_sync(store: MlflowClient, tmp_path: Path) -> None:
    refusal = MlflowException("not so", error_code=INVALID_PARAMETER_VALUE)
    with ExitStack() as gone, tracked_run("r", experiment="exp", workspace=tmp_path) as tracked:
        gone.enter_context(outage("log_batch"))
    with outage("log_batch", refusal):
        synced = sync_run(tmp_path, tracked.run_id)
    assert (synced.waiting, synced.status) == (0, "FINISHED")
    assert "1 refused by the store" in synced.problem
    assert "not so" in synced.problem
