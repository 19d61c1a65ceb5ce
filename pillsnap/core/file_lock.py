"""A lock on a file. The kernel ends it with the process that holds it. Knows nothing of what is done under it."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pillsnap.core.errors import DataError

_POLL_S = 0.1
_held: set[tuple[int, str]] = set()
"""Process and file: record locks let a second thread of the process in, and end when it closes its file."""
_mutex = threading.Lock()


class FileLock:
    """At most one file, locked against other processes and other threads; let go of when the block is left.

    POSIX record locks and not ``flock``: forked workers do not inherit them, so one that outlives a killed process
    holds nothing. The empty file stays.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._key: tuple[int, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, path: Path, wait_s: float = 0.0) -> bool:
        """Lock a file (made where it is missing) in place of the one that was held. False: somebody else has it.

        Raises:
            DataError: the file cannot be made, or its file system has no locks.
        """
        deadline = time.monotonic() + wait_s
        while (taken := _try_to_lock(path)) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        self.release()
        self._descriptor, self._key = taken
        return True

    def release(self) -> None:
        """Let others have the file."""
        if self._descriptor is not None and self._key is not None:
            os.close(self._descriptor)
            with _mutex:
                _held.discard(self._key)
            self._descriptor = None


@contextmanager
def only_one(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One process (or thread) at a time; ``on_wait`` is called where another is in it. Raises DataError."""
    with FileLock() as lock:
        if not lock.take(path):
            on_wait()
            lock.take(path, wait_s=float("inf"))
        yield


def _try_to_lock(path: Path) -> tuple[int, tuple[int, str]] | None:
    key = (os.getpid(), os.path.realpath(path))
    with _mutex:  # before the file is opened: closing it again would end the other thread's lock
        if key in _held:
            return None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DataError(f"{path}: cannot be made ({error.strerror})") from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise DataError(f"{path}: cannot be locked ({error.strerror}); choose a folder on another disk") from error
        _held.add(key)
        return descriptor, key
