import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from pillsnap.core.errors import DataError
from pillsnap.core.file_lock import FileLock, only_one


def test_the_second_waits_for_the_first(tmp_path):
    order = []
    waiting = threading.Event()

    def second():
        with only_one(tmp_path / "lock", waiting.set):
            order.append("second")

    with only_one(tmp_path / "lock", lambda: order.append("waited")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_a_folder_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with (
        pytest.raises(DataError, match=r"cannot be locked .*another disk"),
        only_one(tmp_path / "lock", lambda: None),
    ):
        pass
    with pytest.raises(DataError, match="cannot be made"), only_one(tmp_path / "no" / "lock", lambda: None):
        pass


def test_a_forked_process_does_not_hold_the_lock_of_a_killed_one(tmp_path):
    forking = (
        "import os, sys, time\nfrom pathlib import Path\nfrom pillsnap.core.file_lock import FileLock\n"
        f"lock = FileLock()\nassert lock.take(Path({str(tmp_path / 'lock')!r}))\n"
        "worker = os.fork()\nif worker:\n    print(worker, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", forking], stdout=subprocess.PIPE, text=True) as holder:
        worker = int(holder.stdout.readline())
        try:
            with FileLock() as lock:
                assert not lock.take(tmp_path / "lock")
                holder.kill()
                assert lock.take(tmp_path / "lock", wait_s=20)
            os.kill(worker, 0)  # and it lives still
        finally:
            os.kill(worker, signal.SIGKILL)


def test_one_lock_goes_from_file_to_file(tmp_path):
    with FileLock() as lock, FileLock() as other:
        assert lock.take(tmp_path / "a")
        assert not other.take(tmp_path / "a", wait_s=0.2)
        assert lock.take(tmp_path / "b")
        assert other.take(tmp_path / "a")
        other.release()
        assert lock.take(tmp_path / "a")
