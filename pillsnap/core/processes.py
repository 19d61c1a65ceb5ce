"""How a process ends that was started in a session of its own, with all that it has started there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

_LOOK_AGAIN_S = 0.05


def end_group(process: subprocess.Popen[Any], patience_s: float) -> None:
    """Stop a process and its group: with their last words, and after a while without.

    The group is asked and not its leader, which may be gone while a child of it works on.

    Args:
        process: started with ``start_new_session``, ended or not.
        patience_s: how long the last of them may take; who interrupts the wait ends them at once.
    """
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + patience_s
        try:
            while time.monotonic() < until:
                if process.poll() is not None:  # a zombie would keep the group alive
                    _take_orphan(process.pid)
                os.killpg(process.pid, 0)
                time.sleep(_LOOK_AGAIN_S)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _take_orphan(group: int) -> None:
    """Reap one of a group that came to this process: the first of a container gets all whose parents are gone."""
    with suppress(ChildProcessError):
        os.waitpid(-group, os.WNOHANG)
