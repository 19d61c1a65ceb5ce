"""One process at a time in one folder. Knows nothing of what is done there."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pillsnap.core.errors import DataError


@contextmanager
def only_one(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """One process (or thread) at a time; ``on_wait`` is called where another is in it.

    The kernel holds the lock and ends it with its process, however that ends. The empty file stays.

    Raises:
        DataError: the file system has no locks, or the file cannot be made.
    """
    try:
        stream = path.open("ab")
    except OSError as error:
        raise DataError(f"{path}: cannot be made ({error.strerror})") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(f"{path}: cannot be locked ({error.strerror}); choose a folder on another disk") from error
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)  # also where a process that was forked meanwhile has it open
