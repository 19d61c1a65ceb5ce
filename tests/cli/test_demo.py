"""How the demo runs its steps: in this process or in one of its own, never silent, and gone when it is told to stop."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from pillsnap.cli import demo, demo_steps, main
from pillsnap.cli.demo_steps import Steps
from pillsnap.core.errors import ConfigError, GateRefusedError, PillSnapError

SHARES = {"one": 0.25, "two": 0.75}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that were called; `refuse`, `wrong` and `slow` do as they say."""
    called: list[tuple[str, ...]] = []

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("words", nargs=-1)
    def command(words: tuple[str, ...]) -> None:
        called.append(words)
        click.echo("model version 7 of this")
        if "refuse" in words:
            raise GateRefusedError("the gate says HOLD")
        if "wrong" in words:
            raise ConfigError("wrong")
        if "slow" in words:
            time.sleep(0.2)

    monkeypatch.setattr(main, "cli", command)
    return called


def test_a_step_runs_in_this_process_is_shown_and_costed(
    said: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(SHARES)
    with steps.speaking():
        output = steps.run("one", "data", "render", "--out", "a b", "slow")
        steps.run("two", "x", "refuse", may_refuse=True)
    assert said == [("data", "render", "--out", "a b", "slow"), ("x", "refuse")]
    assert output == "model version 7 of this\n"
    shown = capsys.readouterr().out
    assert "── 1. one\n$ pillsnap data render --out 'a b' slow\nmodel version 7" in shown
    assert "── 2. two  (about 1 s to go)" in shown, "three times as long as the first"
    assert "the gate says HOLD" in shown
    assert [cost.title for cost in steps.costs] == ["one", "two"]
    assert steps.costs[0].wall_s >= 0.2


@pytest.mark.parametrize(("word", "error"), [("refuse", GateRefusedError), ("wrong", ConfigError)])
def test_what_fails_ends_the_demo(said: list[tuple[str, ...]], word: str, error: type[Exception]) -> None:
    steps, before = Steps(SHARES), (sys.stdout, sys.stderr)
    with pytest.raises(error), steps.speaking():
        steps.run("one", word)
    assert (sys.stdout, sys.stderr) == before
    assert not steps.costs


def test_silence_is_broken(
    said: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_steps, "_SILENCE_S", 0.05)
    monkeypatch.setattr(demo_steps, "_LOOK_S", 0.02)
    steps = Steps(SHARES)
    with steps.speaking():
        steps.run("one", "slow")
    assert "  … one: 0 s" in capsys.readouterr().err


def test_a_step_that_takes_longer_than_its_share_promises_nothing(said: list[tuple[str, ...]]) -> None:
    steps = Steps(SHARES)
    with steps.speaking():
        steps.run("one", "slow")
        with steps._step("two", "x"):
            started = steps._step_started
            assert "to go" in steps._to_go(started)
            assert steps._to_go(started + 60) == ""


def test_a_process_of_its_own_is_shown_as_it_speaks_and_its_failure_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = Steps(SHARES)
    with steps.speaking():
        assert "print this help message" in steps.run_process("one", "base64", "-h")
        with pytest.raises(PillSnapError, match="step 2 \\(two\\) ended with status 1: this_is_no_module"):
            steps.run_process("two", "this_is_no_module")
    assert "$ base64 -h" in capsys.readouterr().out


def test_the_end_names_pages_that_open_in_model_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "decision.json").write_text('{"verdict": "PROMOTE", "checks": []}')
    for uri, first, server in (
        ("sqlite:///mlflow.db", "make ui, then ", "http://127.0.0.1:5000"),
        ("https://kim:geheim@host", "", "https://host"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        demo._summary(tmp_path, [], True, "2", 1.0)
        lines = capsys.readouterr().out.splitlines()
        assert f"  everything in MLflow: {first}{server}/#/?workflowType=machine_learning" in lines
        assert f"  the model's version: {server}/#/models/pillsnap/versions/2?workflowType=machine_learning" in lines


def test_the_last_words_of_who_is_told_to_stop_are_shown(watch: Callable[..., Any], tmp_path: Path) -> None:
    """The command itself hears the signal, passes it on to a process in a session of its own, and goes on reading."""
    (tmp_path / "slow.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('x' * 200_000, 'it can go on', flush=True), sys.exit(1)))\n"
        "print('up', flush=True)\ntime.sleep(60)\n"
    )
    script = (
        "from pillsnap.cli.demo_steps import _run_shown; from pillsnap.core.interruption import listen; import sys\n"
        "listen()\ntry:\n    _run_shown((sys.executable, sys.argv[1]))\nexcept KeyboardInterrupt:\n    print('ended')\n"
    )
    command = watch([sys.executable, "-c", script, tmp_path / "slow.py"])
    command.wait_for("up")
    command.tell(signal.SIGINT)
    assert command.ended(20) == 0
    assert command.left() == []
    assert command.said.endswith(" it can go on\nended\n")
