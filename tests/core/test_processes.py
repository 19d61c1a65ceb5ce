"""What was started in a session of its own ends with all that it has started."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess

import pytest

from pillsnap.core.processes import end_group

_PR_SET_CHILD_SUBREAPER = 36


@pytest.mark.parametrize("leader_is_gone", [False, True])
@pytest.mark.parametrize("trap", ["trap '' TERM", "true"], ids=["deaf", "hears"])
def test_no_grandchild_is_left(trap: str, leader_is_gone: bool) -> None:
    """As of ``mlflow run``, which ends at SIGTERM and leaves its child; or where the leader alone was killed."""
    words = ["sh", "-c", f"({trap}; echo up; exec sleep 60) & wait"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        if leader_is_gone:
            process.kill()
            process.wait()
        end_group(process, 0.1)
        assert process.returncode == -(signal.SIGKILL if leader_is_gone else signal.SIGTERM)
        assert select.select([process.stdout], [], [], 10)[0], "the last one that could write to it is gone"
        assert process.stdout.read() == b""


def test_the_first_process_of_a_container_does_not_wait_for_zombies() -> None:
    """Those whose parents are gone become its children: a server would stay until its patience ends."""
    become_first = ctypes.CDLL(None).prctl
    assert become_first(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        words = ["sh", "-c", "sleep 60 & echo up; wait"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0, start_new_session=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            end_group(process, 5)
        with pytest.raises(ChildProcessError):
            os.waitpid(-process.pid, os.WNOHANG)
    finally:
        become_first(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
