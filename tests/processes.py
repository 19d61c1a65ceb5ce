"""Commands in processes of their own: watched, told to stop or killed, and looked for afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

_MARK = "PILLSNAP_TEST_MARK"
_PATIENCE_S = 300.0


class Watched:
    """A command at the head of a session, as in a terminal. What it starts is known by a mark in its environment."""

    def __init__(self, command: list[Any], said_in: Path, env: dict[str, str] | None = None, **options: Any) -> None:
        self.said_in = said_in
        self._mark = uuid.uuid4().hex
        environment = {**(os.environ if env is None else env), _MARK: self._mark}
        with said_in.open("wb") as sink:
            self.process = subprocess.Popen(
                [str(word) for word in command], env=environment, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_hear_all, **options,
            )  # fmt: skip

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left, whatever the test has found."""
        for process in self.alive():
            process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        """Its output and its errors until now, and those of all that it started."""
        return self.said_in.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until it says this; fails where it ends before."""
        deadline = time.monotonic() + _PATIENCE_S
        while text not in self.said and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text in self.said, self.said

    def tell(self, number: int, to_all: bool = False) -> None:
        """Send a signal to it alone, or, as a terminal does, to its whole group."""
        (os.killpg if to_all else os.kill)(self.process.pid, number)

    def ended(self, within_s: float = 60.0) -> int:
        """Its exit status, when it has ended."""
        return self.process.wait(within_s)

    def alive(self) -> list[psutil.Process]:
        """What lives of it, and of all that it started, whatever their parents and groups are now."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def left(self, within_s: float = 5.0) -> list[str]:
        """The commands of those that still live then."""
        deadline = time.monotonic() + within_s
        while (alive := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [_words(process) for process in alive]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def _hear_all() -> None:
    """A shell makes what it starts in the background, and all that comes of it, deaf to Ctrl-C; nohup to a hang-up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _words(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid}"
