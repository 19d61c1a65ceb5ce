"""Which store is used, and what is said where it cannot be."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from mlflow.environment_variables import MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD
from mlflow.exceptions import MlflowException, RestException
from mlflow.tracking import MlflowClient

from pillsnap.core.errors import StoreError
from pillsnap.tracking.store import connect, ensure_experiment, registry_errors, store_errors, tracking_uri


def test_the_default_is_a_file_in_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///sub/x.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/sub/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri() == "http://host:5000"


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("http://anna:ge%40heim@127.0.0.1:9", r"http://anna:\*\*\*@127.0.0.1:9"),
        ("postgresql+psycopg://anna:geheim@127.0.0.1:9/mlflow", "127.0.0.1"),
        ("nosuch://anna:geheim@host/x", "unsupported URI"),
        ("oracle://anna:geheim@host/x", "needs the Python package oracledb"),
    ],
)
def test_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, uri: str, named: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with pytest.raises(StoreError, match=named) as caught:
        connect()
    assert time.monotonic() - started < 15
    message = str(caught.value)
    assert "heim" not in message, "the password is never shown"
    assert "MLFLOW_TRACKING_URI" in message or "install it" in message
    assert "\n" not in message


def test_a_path_that_cannot_be_a_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at as if it were one" * 20)
    for uri in (f"sqlite:///{tmp_path}/text", f"sqlite:///{tmp_path}/text/mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(StoreError, match="cannot be used"):
            connect()


def test_a_missing_folder_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_store: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    connect()
    assert (tmp_path / "new" / "mlflow.db").is_file()


def test_what_was_asked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the registry lies elsewhere; and of neither the password, whichever of the two an error quotes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:geheim@store:5000")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "postgresql://bert:streng@registry/db")
    quoted = "cannot connect to postgresql://bert:streng@registry/db and http://anna:geheim@store:5000"
    for errors, named, advice in (
        (store_errors, "the MLflow store http://anna:***@store:5000 cannot be used", "Check MLFLOW_TRACKING_URI"),
        (registry_errors, "the model registry postgresql://bert:***@registry/db cannot be used", "MLFLOW_REGISTRY_URI"),
    ):
        with pytest.raises(StoreError) as raised, errors():
            raise MlflowException(quoted)
        assert str(raised.value).startswith(named)
        assert advice in str(raised.value)
        assert "geheim" not in str(raised.value)
        assert "streng" not in str(raised.value)


def test_an_error_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    with pytest.raises(StoreError, match="cannot be used: MlflowException"), store_errors():
        raise MlflowException("")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("UNAUTHENTICATED", "Check the login: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("PERMISSION_DENIED", "This login may not, or there is no such thing at this server"),
        ("INTERNAL_ERROR", "Check MLFLOW_TRACKING_URI and that the server runs"),
    ],
)
def test_an_error_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch, code: str, advice: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    with pytest.raises(StoreError, match=advice), store_errors():
        raise RestException({"error_code": code, "message": "no"})


def test_an_experiment_that_another_process_makes_at_the_same_time(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ensure_experiment(store, "raced")
    answers = iter([None, store.get_experiment_by_name("raced")])
    monkeypatch.setattr(store, "get_experiment_by_name", lambda name: next(answers))
    assert ensure_experiment(store, "raced") == made


def test_retries_draw_nothing_from_the_generator_that_the_training_uses(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "1.0")  # MLflow's default
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    connect()
    before = random.getstate()
    with pytest.raises(MlflowException, match="retries"):
        MlflowClient("http://127.0.0.1:9").set_tag("a" * 32, "key", "value")
    assert random.getstate() == before


def test_files_come_through_the_server_and_not_from_addresses_that_only_it_may_reach(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", raising=False)
    connect()
    assert MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD.is_set()  # MLflow asks the server otherwise, and S3 says yes
    assert not MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD.get()


def test_a_database_that_another_process_is_just_making(monkeypatch: pytest.MonkeyPatch, fresh_store: Path) -> None:
    asked: list[int] = []

    def search(self: MlflowClient, max_results: int) -> list[object]:
        asked.append(max_results)
        if len(asked) < 3:
            raise MlflowException("(sqlite3.OperationalError) table registered_models already exists")
        if len(asked) == 4:
            raise MlflowException("(sqlite3.OperationalError) disk I/O error")
        return []

    monkeypatch.setattr(MlflowClient, "search_experiments", search)
    monkeypatch.setattr("pillsnap.tracking.store._PAUSE_S", 0.0)
    connect()
    assert len(asked) == 3
    with pytest.raises(StoreError, match="disk I/O error"):
        connect()
    assert len(asked) == 4
