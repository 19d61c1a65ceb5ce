"""``pillsnap registry`` and the champion of ``pillsnap identify``: lines and exit statuses, in this process."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from mlflow.tracking import MlflowClient

from pillsnap.cli.main import main
from pillsnap.registry.promotion import submit

PROJECT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]
Candidate = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command from the project's folder; its status, output and errors."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pillsnap", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        return int(exit_info.value.code or 0), output.out, output.err

    return run


def test_the_way_to_a_champion_that_answers(
    call: Call, store: MlflowClient, candidate: Candidate, gate: Any, toys: SimpleNamespace, tmp_path: Path
) -> None:
    candidate(name="pillsnap")
    run_id = store.get_model_version("pillsnap", "1").run_id
    status, out, err = call("registry", "register", run_id)
    assert (status, out.splitlines()[0]) == (0, "registered: pillsnap version 2"), err
    assert call("registry", "submit", "latest")[1].startswith("pillsnap version 2 is a candidate")
    judge = ("registry", "judge", "2", "--manifest", gate.manifest.root, "--key", gate.key_file)
    status, out, err = call(*judge)
    assert status == 0, err
    assert "judged: pillsnap version 2, verdict PROMOTE\n" in out
    assert "next: pillsnap registry promote 2" in out
    assert call(*judge)[0] == 0
    status, out, err = call("registry", "promote", "2")
    assert (status, out) == (0, "pillsnap version 2 is champion now (PROMOTE)\n"), err
    status, out, _ = call("registry", "status")
    lines = out.splitlines()
    assert lines[0].startswith("pillsnap version 2 [champion]: PROMOTE on 20")
    assert lines[0].endswith("(top1 100.0 %, top5 100.0 %, real_top1 100.0 %)")
    assert lines[1:] == ["pillsnap version 1: not judged"]

    toys.save_manifest(tmp_path / "photos", toys.toy_colors(6), [(2, 2, "test", "real")])
    status, out, err = call("identify", tmp_path / "photos" / "00000.png", "--top", "2")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("model: pillsnap version 2 (champion), sha256 ")
    assert "K-990003  가상정2 (가상제약)" in lines[3]
    assert len(lines) == 5

    assert call("registry", "judge", "1", *judge[3:])[0] == 0
    assert call("registry", "promote", "1")[0] == 0
    status, out, _ = call("registry", "rollback")
    assert (status, out) == (0, "pillsnap version 2 is champion again, in place of version 1\n")
    status, out, _ = call("registry", "diff", "1", "2")
    assert status == 0
    assert out.splitlines()[0].split() == ["version", "1", "version", "2"]


def test_an_under_trained_model_is_not_promoted(
    call: Call, candidate: Candidate, gate: Any, store: MlflowClient
) -> None:
    candidate(wrong=5, name="pillsnap")
    status, _, err = call("registry", "judge", "latest", "--manifest", gate.manifest.root, "--key", gate.key_file)
    assert status == 1
    assert "error: the gate says REJECT:\n  - top1 33.3 % is under the minimum 80 %" in err
    status, out, err = call("registry", "promote", "latest")
    assert (status, out) == (1, "")
    assert err.startswith("error: pillsnap version 1 does not become champion: REJECT\n  - top1 33.3 % is under")
    assert store.get_registered_model("pillsnap").aliases == {}
    status, _, err = call("identify", PROJECT / "README.md")
    assert (status, "the registry has no champion" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("registry", "promote", "1"), 1, "the registry has no model 'pillsnap'; register one with"),
        (("registry", "promote", "1", "--alias", "best"), 2, "the gate knows champion and challenger"),
        (("registry", "promote"), 2, "Missing argument 'VERSION'"),
        (("registry", "promote", "1", "--policy", "loose.yaml"), 2, "No such option"),
        (("registry", "register", "f" * 32, "--policy", "loose.yaml"), 2, "No such option"),
        (("registry", "register", "f" * 32), 1, "f" * 32),
        (("registry", "register", "f" * 32, "--name", ""), 2, "a model's name cannot be empty"),
        (("registry", "submit", "1"), 1, "registry register RUN_ID (looked in sqlite:///"),
        (("registry", "rollback"), 1, "the registry has no model 'pillsnap'"),
        (("registry", "diff", "1", "2"), 1, "the registry has no model 'pillsnap'"),
        (
            ("registry", "judge", "1", "--manifest", "x", "--key", "nosuch.key"),
            2,
            "make a pair with: pillsnap registry",
        ),
        (("registry", "status", "--name", "none"), 1, "the registry has no model 'none'"),
        (("registry", "status", "--name", "it's"), 2, "quotation mark"),
        (("registry", "nosuch"), 2, "No such command 'nosuch'"),
        (
            ("identify", "examples/1.jpg", "--alias", "nosuch"),
            2,
            "--alias 'nosuch': the gate knows champion and challenger",
        ),
    ],
)
def test_refusals(call: Call, store: MlflowClient, arguments: tuple[str, ...], status: int, said: str) -> None:
    found, _, err = call(*arguments)
    assert (found, said in err) == (status, True), err


def test_a_port_that_is_taken(call: Call, gate: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("shared")
    judges = ("--manifest", gate.manifest.root, "--key", gate.key_file, "--webhook-secret", tmp_path / "secret")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = call("registry", "server", "--home", tmp_path / "home", "--port", port)
        service = call("registry", "gate-service", *judges, "--webhook-port", port)
    for (status, out, err), option in ((server, "--port"), (service, "--webhook-port")):
        assert (status, out) == (1, "")
        assert f"127.0.0.1:{port}: cannot listen there" in err
        assert err.endswith(f"give another --host or {option}\n")


def test_a_gate_that_looks_once_says_how_it_went(
    call: Call, store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = ("registry", "gate-service", "--once", "--manifest", gate.manifest.root, "--key", gate.key_file)
    candidate()
    status, out, err = call(*once)
    assert (status, out) == (0, "no candidate waits for a judgement\n"), err
    submit("pills", "1")
    store.create_model_version("pills", "gs://bucket/model")
    submit("pills", "2")
    status, out, err = call(*once)
    assert (status, out) == (1, "pills version 1: PROMOTE\n"), "one was judged, and one could not be"
    assert "error: pills version 2: not judged: " in err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, out, err = call(*once)
    assert (status, out) == (1, "")
    assert "error: nothing was judged: the MLflow store http://127.0.0.1:9 cannot be used" in err


def test_status_tells_of_candidates_that_nobody_judges(
    call: Call, store: MlflowClient, candidate: Candidate, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate(name="pillsnap")
    submit("pillsnap", "1")
    status, out, _ = call("registry", "status")
    assert re.fullmatch(r"pillsnap version 1: not judged, candidate since 20\S+ \S+ UTC by local:\S+\n", out), out
    later = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr("pillsnap.registry.promotion.datetime", mock.Mock(now=lambda zone: later))
    status, out, _ = call("registry", "status")
    assert status == 0
    assert out.splitlines()[1].startswith("no gate service has been seen (version 1 waits since 20")
    once = ("registry", "gate-service", "--once", "--manifest", gate.manifest.root, "--key", gate.key_file)
    assert call(*once)[0] == 0
    candidate(name="pillsnap")
    monkeypatch.setattr("pillsnap.registry.store.datetime", mock.Mock(now=lambda zone: later - timedelta(minutes=5)))
    submit("pillsnap", "2")
    lines = call("registry", "status")[1].splitlines()
    assert re.fullmatch(r"no gate service seen since 20\S+ \S+ UTC \(version 2 waits since 20.*gate-service", lines[-1])
    assert "PROMOTE" in lines[1]
    assert "No gate service has been seen since 20" in store.get_model_version("pillsnap", "2").description


def test_a_page_is_named_where_there_is_one(
    call: Call, store: MlflowClient, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate(name="pillsnap")
    assert "page:" not in call("registry", "submit", "1")[1], "no server here"
    monkeypatch.setattr("pillsnap.tracking.store.registry_uri", lambda uri: "http://kim:geheim@host:5000")
    monkeypatch.setattr("pillsnap.registry.promotion.submit", store.get_model_version)
    out = call("registry", "submit", "1")[1]
    assert out.endswith("page: http://host:5000/#/models/pillsnap/versions/1?workflowType=machine_learning\n")


@pytest.mark.parametrize("command", [("register", "f" * 32), ("promote", "1"), ("status",), ("rollback",)])
def test_a_registry_that_cannot_be_reached(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, out, err = call("registry", *command)
    assert (status, out) == (1, "")
    assert "the MLflow store http://anna:***@127.0.0.1:9 cannot be used" in err
    assert "geheim" not in err
