"""The runs of a study: the same parent when it goes on, and none left as running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import StoreError
from pillsnap.tracking.study import (
    STATE_TAG,
    RunRef,
    end_forsaken,
    mark,
    numbers_with_runs,
    study_run,
    trial_run,
)


def test_the_study_goes_on_in_the_run_that_it_had(store: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), study_run("tune x", experiment="exp", former=None) as run:
        raise KeyboardInterrupt("SIGTERM")
    assert store.get_run(run.run_id).info.status == "KILLED"
    with study_run("tune x", experiment="exp", former=run.run_id) as again:
        assert again.run_id == run.run_id
        assert store.get_run(run.run_id).info.status == "RUNNING"
    assert store.get_run(run.run_id).info.status == "FINISHED"
    assert "MLFLOW_RUN_ID" not in os.environ


@pytest.mark.parametrize("how", ["deleted", "unknown"])
def test_a_run_that_is_not_there_any_more_is_replaced(store: MlflowClient, how: str) -> None:
    with study_run("tune x", experiment="exp", former=None) as run:
        pass
    if how == "deleted":
        store.delete_run(run.run_id)
    with study_run("tune x", experiment="exp", former=run.run_id if how == "deleted" else "0" * 32) as other:
        assert other.run_id != run.run_id


def test_under_mlflow_run_the_new_run_says_where_the_figures_are(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with study_run("tune x", experiment="exp", former=None) as run:
        pass
    opened = store.create_run(run.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    with study_run("tune x", experiment="exp", former=run.run_id) as again:
        assert again.run_id == run.run_id
    left = store.get_run(opened)
    assert left.data.tags["pillsnap.continues_in"] == run.run_id
    assert run.run_id in left.data.tags["mlflow.note.content"]


def test_runs_of_trials_that_do_not_run_any_more_are_ended(store: MlflowClient) -> None:
    with study_run("tune x", experiment="exp", former=None) as run:
        parent = RunRef(run.run_id, run.experiment_id)
        with trial_run(0, parent) as done:
            mark(done, "complete")
        opened = [trial_run(number, parent) for number in (1, 2)]  # kept: nobody closes them
        forsaken = [each.__enter__() for each in opened]
        assert numbers_with_runs(parent) == {0, 1, 2}
        assert end_forsaken(parent, lambda number: number == 2, lambda number: "lost") == [1]
    first, second = (store.get_run(each.run_id) for each in forsaken)
    assert (first.info.status, first.data.tags[STATE_TAG]) == ("KILLED", "lost")
    assert second.info.status == "RUNNING"
    assert store.get_run(done.run_id).data.tags[STATE_TAG] == "complete"
    assert first.data.tags["mlflow.parentRunId"] == parent.run_id
    assert end_forsaken(parent, lambda number: False, lambda number: "lost") == [2]


def test_a_store_that_does_not_answer(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with study_run("tune x", experiment="exp", former=None) as run:
        pass
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    mark(run, "complete")
    assert "could not be marked as complete" in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreError):
        end_forsaken(RunRef(run.run_id, run.experiment_id), lambda number: False, lambda number: "lost")
