"""What ends a command: one wish, however often it comes, and no child that hears it too."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pillsnap.cli import orphan
from pillsnap.core import interruption

PROJECT = Path(__file__).parents[2]
LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
try:
    child.wait()
except KeyboardInterrupt:
    child.terminate()
    child.wait()
    time.sleep(0.1)
    print("FAILED", flush=True)
"""
CHILD = """
import time
from pillsnap.cli.orphan import end_with_mlflow_run
from pillsnap.core.interruption import listen
listen()
let_go = end_with_mlflow_run()
print("up", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt as told:
    time.sleep(0.05)  # the run is closed meanwhile
    print("KILLED", told, flush=True)
    let_go()
"""


FINALIZER = """
import os, signal, sys, time
from pillsnap.core.interruption import deaf_children
{listen}

class Loader:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)

try:
    {within}
        {starts}
        time.sleep(60)
except KeyboardInterrupt as error:
    print("heard", error)
"""


@pytest.fixture(autouse=True)
def _told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_told_s", None)
    monkeypatch.setattr(interruption, "_heard", set())


def told(signum: int) -> str:
    """What the handler raises; empty: nothing."""
    try:
        interruption._interrupt(signum, None)
    except KeyboardInterrupt as error:
        return str(error)
    return ""


def test_the_same_wish_is_heard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlflow run and torchrun pass on what the terminal has sent to their children as well."""
    now = [100.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    assert not interruption.is_told()
    assert told(signal.SIGINT) == "SIGINT"
    assert interruption.is_told()
    assert [told(signal.SIGTERM), told(signal.SIGINT)] == ["", ""], "the closing is not cut in two"
    now[0] += interruption.SAME_WISH_S
    assert told(signal.SIGINT) == "SIGINT"


def test_a_second_sigterm_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: did.append((number, handler)))
    monkeypatch.setattr(signal, "raise_signal", did.append)
    assert told(signal.SIGTERM) == "SIGTERM"
    monkeypatch.setattr(interruption, "_told_s", interruption._told_s - interruption.SAME_WISH_S)  # type: ignore[operator]
    told(signal.SIGTERM)
    assert did == [(signal.SIGTERM, signal.SIG_DFL), signal.SIGTERM]


def test_children_are_deaf_from_their_first_moment_on() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with interruption.deaf_children(), subprocess.Popen(["sleep", "60"]) as child:
        status = Path(f"/proc/{child.pid}/status").read_text()
        child.terminate()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert {number for number in signal.Signals if blocked >> (number - 1) & 1} == {signal.SIGINT, signal.SIGHUP}
    assert child.returncode == -signal.SIGTERM
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.fixture
def let_go(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], None]], tuple[list[int], float]]:
    """Wait for the SIGTERM of ``mlflow run``, told just now, with a clock that only the waiting moves: what is called
    at each look with the seconds since; gives what was sent to ``mlflow run``, and the seconds that it took."""

    def run(at: Callable[[float], None]) -> tuple[list[int], float]:
        now, sent = [100.0], []

        def sleep(seconds: float) -> None:
            now[0] += seconds
            at(now[0] - 100)

        monkeypatch.setattr(orphan, "time", SimpleNamespace(sleep=sleep))
        monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(orphan, "_is_alive", lambda _: True)
        monkeypatch.setitem(
            sys.modules, "pillsnap.tracking.resuming", SimpleNamespace(ending_the_run_of_mlflow=nullcontext)
        )
        assert told(signal.SIGINT) == "SIGINT"
        try:
            orphan._interrupt(SimpleNamespace(send_signal=sent.append))  # type: ignore[arg-type]
        except KeyboardInterrupt:
            pytest.fail("it would show a traceback")
        return sent, now[0] - 100

    return run


def test_a_late_sigterm_of_mlflow_run_is_waited_for_and_is_the_same_wish(let_go: Any) -> None:
    """Whoever waits for longer than the wish is the same is ended by what it waits for."""
    heard: list[str] = []
    sent, took_s = let_go(lambda after_s: heard.append(told(signal.SIGTERM)) if after_s >= 2.9 else None)
    assert (heard, sent) == ([""], [signal.SIGINT])
    assert took_s < interruption.SAME_WISH_S


def test_nobody_waits_for_a_sigterm_that_would_be_a_new_wish(let_go: Any) -> None:
    sent, took_s = let_go(lambda _: None)
    assert sent == []
    assert took_s == pytest.approx(interruption.SAME_WISH_S, abs=0.03)


def test_a_second_ctrl_c_ends_the_waiting_for_mlflow_run(let_go: Any) -> None:
    """It comes from the handler, in the midst of the waiting, and shows no traceback."""

    def interrupt(after_s: float) -> None:
        raise KeyboardInterrupt("SIGINT")

    sent, took_s = let_go(interrupt)
    assert sent == []
    assert took_s < 0.1


@pytest.mark.parametrize("to_all", [True, False])
def test_mlflow_run_does_not_call_failed_what_was_interrupted(tmp_path: Path, watch: Any, to_all: bool) -> None:
    """A launcher that does at Ctrl-C what ``mlflow run`` does: stop its child, wait, write FAILED."""
    launcher = tmp_path / "mlflow"
    launcher.write_text(LAUNCHER)
    command = watch([sys.executable, launcher, "run", CHILD])
    command.wait_for("up")
    command.tell(signal.SIGINT, to_all)
    command.ended(10)
    assert command.left() == []
    assert f"KILLED {'SIGINT' if to_all else 'SIGTERM'}" in command.said
    assert "FAILED" not in command.said


@pytest.mark.parametrize(
    "starts",
    [
        "Loader()",
        "with deaf_children(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.2); print('up', flush=True)",
    ],
    ids=["finalizer", "start"],
)
@pytest.mark.parametrize(
    ("listen", "within"),
    [
        ("from pillsnap.core.interruption import listen; listen()", "if True:"),
        ("from pillsnap.tuning.worker import _Stop; stop = _Stop(); stop.listen()", "with stop:"),
    ],
    ids=["command", "trial"],
)
def test_a_signal_waits_for_a_finalizer_and_for_a_start(listen: str, within: str, starts: str) -> None:
    """Of PyTorch's loader, which ends its processes: Python prints what is raised there, and goes on. A process that is
    being started would be known to nobody."""
    script = FINALIZER.format(listen=listen, within=within, starts=starts)
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert done.stdout == ("" if starts == "Loader()" else "up\n") + "heard SIGTERM\n"
    assert done.stderr == ""


def test_no_timer_runs_while_a_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel begins a fork anew that a signal interrupts: one that takes longer than the timer would never end."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "raise_signal", lambda number: None)
    with interruption.held_back():
        assert told(signal.SIGTERM) == ""
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
