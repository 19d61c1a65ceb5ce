"""A journal: JSON lines that are only ever added to, and how much of them has been sent.

Survives kill -9: a line is written in one piece and handed to the kernel at once; a last line that was torn is cut off
when the journal is opened again. One process at a time holds a journal.
Knows nothing of MLflow. NaN and infinity are written as Python's json writes them: a loss may be either.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pillsnap.core.errors import StoreError
from pillsnap.core.file_lock import FileLock
from pillsnap.core.files import write_bytes

_log = logging.getLogger(__name__)
Entry = dict[str, Any]
JOURNAL_FILE = "journal.jsonl"
_SENT_FILE = "sent"
_LOCK_FILE = "lock"


class Placed(NamedTuple):
    """An entry and the byte of the journal where the next one starts."""

    entry: Entry
    end: int


class Journal:
    """The journal of one folder, held by this process until `close`. Threads may add at the same time."""

    def __init__(self, folder: Path, wait_s: float = 0.0) -> None:
        """Open, or go on with, the journal of a folder.

        Args:
            folder: made where it is missing.
            wait_s: how long to wait for another process that holds it.

        Raises:
            StoreError: another process holds it.
            DataError: the folder's file system has no locks.
            OSError: the journal cannot be opened; nobody holds it then.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = FileLock()
        if not self._lock.take(folder / _LOCK_FILE, wait_s):
            raise StoreError(f"{folder}: another process is at work in it; it sends what waits there")
        self._mutex = threading.Lock()
        self._path = folder / JOURNAL_FILE
        with ExitStack() as undo:
            undo.callback(self._lock.release)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            undo.callback(os.close, self._file)
            self._size = _cut_torn_line(self._file)
            self._sent = min(read_sent(folder), self._size)
            undo.pop_all()

    def add(self, entry: Entry) -> None:
        """Add one entry. Raises OSError where the disk does not take it; the journal is then as it was."""
        line = (json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        with self._mutex:
            try:
                written = 0
                while written < len(line):  # a disk that is nearly full takes a part, and then says so
                    written += os.write(self._file, line[written:])
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            self._size += len(line)

    def entries(self, start: int = 0) -> Iterator[Placed]:
        """The entries from a byte on, up to what the journal holds when this is called."""
        end = self._size
        with self._path.open("rb") as stream:
            stream.seek(start)
            place = start
            while place < end:
                line = stream.readline()
                place += len(line)
                entry = _entry(line, self._path, place)
                if entry is not None:
                    yield Placed(entry, place)

    @property
    def sent(self) -> int:
        """Bytes that have been sent."""
        return self._sent

    @property
    def is_all_sent(self) -> bool:
        """Nothing waits."""
        return self._sent >= self._size

    def mark_sent(self, end: int) -> None:
        """Everything before byte ``end`` has been sent. Killed before this is written, it is sent once more."""
        write_bytes(self.folder / _SENT_FILE, str(end).encode())
        self._sent = end

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)
        self._lock.release()


def is_waiting(folder: Path) -> bool:
    """Whether a folder holds a journal with something that has not been sent. Holds nothing."""
    path = folder / JOURNAL_FILE
    return path.is_file() and read_sent(folder) < path.stat().st_size


def read_sent(folder: Path) -> int:
    """Bytes of a folder's journal that have been sent."""
    try:
        return int((folder / _SENT_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _cut_torn_line(file: int) -> int:
    """The size of the whole lines; the journal ends there afterwards."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
    return end


def _entry(line: bytes, path: Path, place: int) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or "kind" not in entry:
        _log.warning("%s: the line that ends at byte %d is damaged and is passed over", path, place)
        return None
    return entry
