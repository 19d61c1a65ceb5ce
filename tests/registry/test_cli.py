"""``pillsnap registry`` and the champion of ``pillsnap identify``: lines and exit statuses, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking import MlflowClient

from pillsnap.cli.main import main

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
    call: Call, candidate: Candidate, toys: SimpleNamespace, tmp_path: Path
) -> None:
    status, out, err = call("registry", "register", candidate())
    assert (status, out.splitlines()) == (
        0,
        ["registered: pillsnap version 1, verdict PROMOTE", "next: pillsnap registry promote 1 --name pillsnap"],
    ), err
    status, out, err = call("registry", "promote", "1")
    assert status == 0, err
    assert out.endswith("pillsnap version 1 is champion now (PROMOTE)\n")
    assert "top1" in out
    status, out, _ = call("registry", "status")
    assert out == "pillsnap version 1 [champion]: PROMOTE (top1 90.0 %, top5 97.0 %, real_top1 85.0 %)\n"
    toys.save_manifest(tmp_path / "photos", toys.toy_colors(3), [(2, 2, "test", "real")])
    status, out, err = call("identify", tmp_path / "photos" / "00000.png", "--top", "2")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("model: pillsnap version 1 (champion), sha256 ")
    assert lines[3].split()[0] == "1."
    assert "K-990003  가상정2 (가상제약)" in lines[3]
    assert "%" in lines[4]
    assert len(lines) == 5


def test_an_under_trained_model_is_not_promoted(call: Call, candidate: Candidate, store: MlflowClient) -> None:
    run_id = candidate(top1=0.12, top5=0.5, real_top1=0.1)
    assert call("registry", "register", run_id)[0] == 0
    status, out, err = call("registry", "promote", "latest")
    assert status == 1
    assert out == ""
    assert err.startswith("error: pillsnap version 1 does not become champion: REJECT\n  - top1 12.0 % is under")
    assert err.count("\n  - ") == 3
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
        (("registry", "register", "f" * 32, "--name", ""), 1, "f" * 32),
        (("registry", "status", "--name", "none"), 1, "the registry has no model 'none'"),
        (("registry", "status", "--name", "it's"), 2, "quotation mark"),
        (("registry", "nosuch"), 2, "No such command 'nosuch'"),
        (("identify", "x.jpg", "--alias", "nosuch"), 2, "--alias 'nosuch': the gate knows champion and challenger"),
    ],
)
def test_refusals(call: Call, store: MlflowClient, arguments: tuple[str, ...], status: int, said: str) -> None:
    found, _, err = call(*arguments)
    assert (found, said in err) == (status, True), err


@pytest.mark.parametrize("command", [("register", "f" * 32), ("promote", "1"), ("status",)])
def test_a_registry_that_cannot_be_reached(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, out, err = call("registry", *command)
    assert (status, out) == (1, "")
    assert "the MLflow store http://anna:***@127.0.0.1:9 cannot be used" in err
    assert "geheim" not in err
