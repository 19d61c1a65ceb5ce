"""Runs the demo's commands in order and prints each one, with what it costs and how long the rest will take.

Most run in this process, so that MLflow and torch are imported once. Nothing stays silent for more than ten seconds.
"""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, TextIO

import click

from pillsnap.core.durations import duration
from pillsnap.core.errors import GateRefusedError, PillSnapError
from pillsnap.core.interruption import held_back
from pillsnap.core.processes import end_group

_SILENCE_S, _LOOK_S = 9.0, 1.0
_LAST_WORDS_S = 45.0
"""So long may a command that was told to stop close its run and its files."""


@dataclass(frozen=True)
class StepCost:
    """What a step took."""

    title: str
    wall_s: float
    cpu_s: float


class _Listener:
    """Stands in for stdout or stderr: passes all on, and notes when something was said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.last = time.monotonic()
        self.heard: list[str] = []

    def write(self, text: str) -> int:
        self.last = time.monotonic()
        self.heard.append(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Steps:
    """Runs commands one after another and remembers what each took."""

    def __init__(self, shares: dict[str, float]) -> None:
        """Args: title of each step that may come → its share of the whole time, measured."""
        self._shares = shares
        self.costs: list[StepCost] = []
        self._started = time.monotonic()
        self._step_started = self._started
        self._title = ""
        self._streams: tuple[_Listener, ...] = ()
        self._over = threading.Event()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Within, a line comes at least every ten seconds."""
        out, err = _Listener(sys.stdout), _Listener(sys.stderr)
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = out, err
        self._streams = (out, err)
        clock = threading.Thread(target=self._say_where, name="demo-clock", daemon=True)
        clock.start()
        try:
            yield
        finally:
            self._over.set()
            clock.join()
            sys.stdout, sys.stderr = before

    def run(self, title: str, *arguments: str, may_refuse: bool = False) -> str:
        """Run one of PillSnap's commands in this process; returns what it printed.

        Raises:
            PillSnapError: what the command raises; with ``may_refuse``, a refusal of the gate is only printed.
        """
        from pillsnap.cli.main import cli

        with self._step(title, "pillsnap", *arguments):
            heard = self._streams[0].heard
            heard.clear()
            try:
                cli.main(args=list(arguments), prog_name="pillsnap", standalone_mode=False)
            except GateRefusedError as error:
                if not may_refuse:
                    raise
                click.echo(error)
            return "".join(heard)

    def run_process(self, title: str, *command: str) -> str:
        """Run a command in a process of its own, and print its output as it comes; returns it."""
        number = len(self.costs) + 1
        with self._step(title, *command):
            status, output = _run_shown((sys.executable, "-m", *command))
        if status:
            raise PillSnapError(f"step {number} ({title}) ended with status {status}: {shlex.join(command)}")
        return output

    @contextmanager
    def _step(self, title: str, *command: str) -> Iterator[None]:
        self._title, self._step_started = title, time.monotonic()
        cpu_before = _cpu_s()
        to_go = self._to_go(self._step_started)
        click.secho(f"\n── {len(self.costs) + 1}. {title}{to_go}\n$ {shlex.join(command)}", bold=True)
        yield
        self.costs.append(StepCost(title, time.monotonic() - self._step_started, _cpu_s() - cpu_before))

    def _to_go(self, now: float) -> str:
        """By what the steps that are done took, and the shares of this one and those to come; empty where this one
        takes longer than its share."""
        done = sum(self._shares.get(cost.title, 0.0) for cost in self.costs)
        if not done:
            return ""
        unit_s = sum(cost.wall_s for cost in self.costs) / done
        this = self._shares.get(self._title, 0.0)
        later = sum(self._shares.values()) - done - this
        here_s = this * unit_s - (now - self._step_started)
        if here_s < 0:
            return ""
        left_s = later * unit_s + here_s
        return f"  (about {duration(left_s)} to go)"

    def _say_where(self) -> None:
        while not self._over.wait(_LOOK_S):
            now = time.monotonic()
            if self._title and now - max(stream.last for stream in self._streams) >= _SILENCE_S:
                click.echo(f"  … {self._title}: {duration(now - self._step_started)}{self._to_go(now)}", err=True)


def _cpu_s() -> float:
    """Of this process and of those it has waited for, user and system."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def _run_shown(command: tuple[str, ...]) -> tuple[int, str]:
    """Run a command, printing each line as it comes; when this ends early, its whole process group ends too."""
    # `python` of `mlflow run --env-manager local` must be this interpreter.
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    process: subprocess.Popen[str] | None = None
    try:
        with held_back():
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            click.echo(line, nl=False)
        process.stdout.close()
        status = process.wait()
    except BaseException:
        if process is not None:
            # what it says while it closes its run is shown too, and never stands in a full pipe
            last_words = threading.Thread(target=_show, args=(process.stdout,), daemon=True)
            last_words.start()
            end_group(process, _LAST_WORDS_S)
            last_words.join(1)
        raise
    return status, "".join(lines)


def _show(stream: IO[str] | None) -> None:
    for line in stream or ():
        click.echo(line, nl=False)
