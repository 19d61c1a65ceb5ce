"""Rows of one size in a file, written in any order, that outlive a killed process.

``images.u8`` is row after row. ``rows.sha256`` says of each row what it was made of, in 32 bytes; zeros: the row is
not there. A row is on the disk before it is said to be there, so a process that is killed at any moment leaves rows
that are whole, and rows that do not count. Knows nothing of pictures.
Legend: N rows, K of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.errors import DataError

DATA_FILE = "images.u8"
ORIGIN_FILE = "rows.sha256"
ORIGIN_BYTES = 32
Origins = NDArray[np.uint8]
"""``origin_N32``: for each row the sha256 of what it was made of."""
Indices = NDArray[np.int64]


class RowFile:
    """The two files of one folder. `read` and `write` may be called from many threads; the rest from one."""

    def __init__(self, data: BinaryIO, origin_N32: np.memmap[Any, np.dtype[np.uint8]], row_bytes: int) -> None:
        self.origin_N32 = origin_N32
        self._data = data
        self._row_bytes = row_bytes

    @classmethod
    def create(cls, folder: Path, rows: int, row_bytes: int) -> Self:
        """Open for writing, and go on with what lies there. The room on the disk is taken at once.

        Raises:
            DataError: the disk is full.
        """
        for name, size in ((DATA_FILE, rows * row_bytes), (ORIGIN_FILE, rows * ORIGIN_BYTES)):
            _reserve(folder / name, size)
        origin_N32 = np.memmap(folder / ORIGIN_FILE, np.uint8, "r+", shape=(rows, ORIGIN_BYTES))
        return cls((folder / DATA_FILE).open("rb+", buffering=0), origin_N32, row_bytes)

    @classmethod
    def open(cls, folder: Path, row_bytes: int) -> Self:
        """Open for reading, whole or not yet. Raises DataError where the two files do not fit together."""
        try:
            data = (folder / DATA_FILE).open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{folder / DATA_FILE}: cannot be read ({error.strerror})") from error
        try:
            rows, rest = divmod((folder / ORIGIN_FILE).stat().st_size, ORIGIN_BYTES)
            if rest or os.fstat(data.fileno()).st_size != rows * row_bytes:
                raise ValueError(f"{rows} rows of {row_bytes} bytes are expected")
            origin_N32 = np.memmap(folder / ORIGIN_FILE, np.uint8, "r", shape=(rows, ORIGIN_BYTES))
        except (OSError, ValueError) as error:
            data.close()
            raise DataError(f"{folder}: {DATA_FILE} and {ORIGIN_FILE} do not fit together ({error})") from error
        return cls(data, origin_N32, row_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._data.close()

    def read(self, row: int) -> bytes:
        """The bytes of one row. Raises DataError where the file ends before."""
        data = os.pread(self._data.fileno(), self._row_bytes, row * self._row_bytes)
        if len(data) != self._row_bytes:
            raise DataError(f"{self._data.name}: was cut off while it was read; delete its folder and build again")
        return data

    def write(self, row: int, data: bytes | memoryview) -> None:
        """Put the bytes of one row into the file; `record` says that they are there. Raises DataError: disk full."""
        left, position = memoryview(data).cast("B"), row * self._row_bytes
        if len(left) != self._row_bytes:
            raise ValueError(f"a row of {len(left)} bytes, not of {self._row_bytes}")
        try:
            while left:
                count = os.pwrite(self._data.fileno(), left, position)
                left, position = left[count:], position + count
        except OSError as error:
            raise self._failed(error) from error

    def record(self, rows: Indices, origin_K32: Origins) -> None:
        """Say that these rows are there, and of what they were made: after they have reached the disk."""
        try:
            os.fdatasync(self._data.fileno())
            self.origin_N32[rows] = origin_K32
            self.origin_N32.flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"{self._data.name}: cannot be written ({error.strerror}); free some room and start again: it goes on "
            "with what is there"
        )


def find_rows(wanted_K32: Origins, offered_N32: Origins) -> Indices:
    """Where each wanted origin stands among the offered ones (-1: nowhere). Zeros are nowhere."""
    if not len(offered_N32):
        return np.full(len(wanted_K32), -1, np.int64)
    offered_head = np.ascontiguousarray(offered_N32[:, :8]).view(np.uint64).ravel()
    wanted_head = np.ascontiguousarray(wanted_K32[:, :8]).view(np.uint64).ravel()
    order = np.argsort(offered_head)
    place = np.searchsorted(offered_head, wanted_head, sorter=order).clip(max=len(order) - 1)
    row = order[place]
    same = (offered_N32[row] == wanted_K32).all(axis=1) & wanted_K32.any(axis=1)
    return np.where(same, row, -1)


def _reserve(path: Path, size: int) -> None:
    """Take the room now, so that a full disk is met before the work and not in the middle of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise DataError(
                f"{path}: {size / 2**20:.0f} MiB cannot be reserved ({error.strerror}); free some room, or choose "
                "another folder"
            ) from error
    finally:
        os.close(descriptor)
