"""Remembers what was read of every picture, in ``scan.db`` (SQLite), so that only what changed is read again.

Pictures stream through it: neither the list nor the readings of a large tree are ever in memory at once. Results are
committed as they come, so a scan that is killed goes on where it stopped. A file counts as unchanged while its size,
its time of change and the time of change of its inode stay the same (a copy that forges the first two has another of
the last). Knows single pictures; knows nothing of groups, mixtures or splits.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.boxes import Box
from pillsnap.core.errors import DataError
from pillsnap.data.names import DOMAINS, Domain, parse_condition
from pillsnap.data.parallel import Progress, map_in_order
from pillsnap.data.reading import READER_VERSION, Figures, Reading, read_picture
from pillsnap.data.sources import Picture

_log = logging.getLogger(__name__)
SCAN_FILE = "scan.db"
_CHUNK = 1000
_COMMIT_S = 1.0
_COLUMNS = (
    "path", "source", "kcode", "domain", "named", "combination", "label", "stamp", "read_stamp", "sha256", "width",
    "height", "dhash", "phash", "thumb", "darkest", "brightest", "mean", "sharpness", "box", "notes", "fault_code",
    "fault",
)  # fmt: skip
_LISTED = _COLUMNS[:8]
_READ = _COLUMNS[8:]


class ScanStore:
    """The pictures of one data set and what was read of them. Used by one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[ScanStore]:
        """Open or make the store; one that is damaged is made anew (its content can be read again).

        Raises:
            DataError: another process works on it, or it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise DataError(f"{path}: cannot be opened ({error}); does another preparation run?") from error
            _log.warning("%s is damaged (%s): all pictures are read again", path, error)
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            connection = _connect(path)
        try:
            yield cls(connection)
        except sqlite3.OperationalError as error:
            raise DataError(f"{path}: {error}; is the disk full, or does another preparation run?") from error
        finally:
            connection.close()

    def sync(self, pictures: Iterable[Picture]) -> int:
        """Bring the list of pictures up to date: new and changed ones are to be read, others are forgotten.

        Returns:
            How many pictures there are.
        """
        self._db.execute("CREATE TEMP TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("DELETE FROM seen")
        total = 0
        for batch in _batches(pictures, _CHUNK):
            total += len(batch)
            rows = [_listed(picture) for picture in batch]
            self._db.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(row[0],) for row in rows])
            known = self._known([row[0] for row in rows])
            changed = [row for row in rows if known.get(row[0]) != row]
            if changed:
                columns = ", ".join(f"{name} = excluded.{name}" for name in _LISTED[1:]) + ", read_stamp = NULL"
                marks = ", ".join("?" * len(_LISTED))
                self._db.executemany(
                    f"INSERT INTO picture ({', '.join(_LISTED)}) VALUES ({marks}) "
                    f"ON CONFLICT (path) DO UPDATE SET {columns}",
                    changed,
                )
        gone = "FROM picture WHERE path NOT IN (SELECT path FROM seen)"
        if self._db.execute(f"SELECT EXISTS (SELECT 1 {gone})").fetchone()[0]:
            self._db.execute(f"DELETE {gone}")
        self._db.commit()
        return total

    def read_missing(self, workers: int, progress: Progress) -> int:
        """Read every picture that was not read as it is now. Returns how many were read."""
        todo = int(self._db.execute(f"SELECT count(*) FROM picture WHERE {_UNREAD}").fetchone()[0])
        if not todo:
            return 0
        done: list[tuple[Any, ...]] = []
        committed = time.monotonic()

        def read(item: tuple[Picture, str]) -> tuple[str, Reading]:
            return item[1], read_picture(item[0])

        try:
            for stamp, reading in map_in_order(read, self._unread(), workers, "reading pictures", progress, total=todo):
                done.append((*_read_values(reading, stamp), reading.path))
                if len(done) >= _CHUNK or time.monotonic() - committed > _COMMIT_S:
                    self._save(done)
                    committed = time.monotonic()
        finally:
            self._save(done)
        return todo

    def counts(self) -> dict[tuple[str, Domain], int]:
        """Pictures by K-CODE and domain."""
        return dict(self._count("1"))

    def usable_counts(self) -> dict[tuple[str, Domain], int]:
        """Pictures without a fault by K-CODE and domain."""
        return dict(self._count("fault = ''"))

    def of_class(self, kcode: str) -> list[tuple[Picture, Reading]]:
        """The pictures of one drug with their readings, in the order of their paths."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM picture WHERE kcode = ? ORDER BY path"
        return [(_picture(row), _reading(row)) for row in self._db.execute(query, (kcode,))]

    def copies_across_classes(self) -> dict[str, tuple[str, ...]]:
        """sha256 → paths, of pictures whose very bytes lie under several drugs (parts of combinations left out)."""
        query = (
            "SELECT sha256, path FROM picture WHERE sha256 IN (SELECT sha256 FROM picture WHERE sha256 != '' AND NOT "
            "combination GROUP BY sha256 HAVING count(DISTINCT kcode) > 1) AND NOT combination ORDER BY sha256, path"
        )
        return _collect(self._db.execute(query))

    def alike_across_classes(self) -> dict[str, tuple[str, ...]]:
        """Both hashes → paths, of pictures of several drugs that hash alike and are not the same file."""
        query = (
            "SELECT dhash || phash AS hash, path FROM picture WHERE hash IN (SELECT dhash || phash FROM picture "
            "WHERE dhash != '' GROUP BY 1 HAVING count(DISTINCT kcode) > 1 AND count(DISTINCT sha256) > 1) "
            "ORDER BY hash, path"
        )
        return _collect(self._db.execute(query))

    def usual_sizes(self) -> dict[Domain, dict[tuple[int, int], int]]:
        """Domain → (longer side, shorter side) → pictures."""
        query = (
            "SELECT domain, max(width, height), min(width, height), count(*) FROM picture WHERE fault = '' "
            "GROUP BY 1, 2, 3"
        )
        sizes: dict[Domain, dict[tuple[int, int], int]] = {domain: {} for domain in DOMAINS}
        for domain, longer, shorter, count in self._db.execute(query):
            sizes[domain][longer, shorter] = count
        return sizes

    def figure_histogram(
        self, figure: str, *, log: bool = False, bins: int = 60
    ) -> dict[Domain, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Domain → (edges, counts) of one of the `Figures` over all pictures that decode.

        Args:
            figure: its name.
            log: take the decimal logarithm (of at least 0.01).
            bins: of equal width, the same in each domain.
        """
        if figure not in Figures._fields:
            raise ValueError(f"{figure!r} is none of {Figures._fields}")
        query = f"SELECT {figure} FROM picture WHERE fault = '' AND domain = ?"
        values: dict[Domain, NDArray[np.float64]] = {}
        for domain in DOMAINS:
            found = np.fromiter((row[0] for row in self._db.execute(query, (domain,))), np.float32)
            if len(found):
                values[domain] = np.asarray(np.log10(np.maximum(found, 0.01)) if log else found, np.float64)
        if not values:
            return {}
        low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
        edges = np.linspace(low, max(high, low + 1e-3), bins + 1)
        return {domain: (edges, np.histogram(found, edges)[0]) for domain, found in values.items()}

    def _known(self, paths: list[str]) -> dict[str, tuple[Any, ...]]:
        marks = ", ".join("?" * len(paths))
        query = f"SELECT {', '.join(_LISTED)} FROM picture WHERE path IN ({marks})"
        return {row[0]: row for row in self._db.execute(query, paths)}

    def _unread(self) -> Iterator[tuple[Picture, str]]:
        query = f"SELECT {', '.join(_COLUMNS)} FROM picture WHERE {_UNREAD} AND path > ? ORDER BY path LIMIT {_CHUNK}"
        last = ""
        while rows := self._db.execute(query, (last,)).fetchall():
            last = rows[-1][0]
            yield from ((_picture(row), row[_COLUMNS.index("stamp")]) for row in rows)

    def _save(self, done: list[tuple[Any, ...]]) -> None:
        columns = ", ".join(f"{name} = ?" for name in _READ)
        self._db.executemany(f"UPDATE picture SET {columns} WHERE path = ?", done)
        self._db.commit()
        done.clear()

    def _count(self, condition: str) -> Iterator[tuple[tuple[str, Domain], int]]:
        query = f"SELECT kcode, domain, count(*) FROM picture WHERE {condition} GROUP BY 1, 2"
        return (((kcode, domain), count) for kcode, domain, count in self._db.execute(query))


_UNREAD = "read_stamp IS NOT stamp"


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        columns = ", ".join(f"{name} {_type(name)}" for name in _COLUMNS[1:])
        connection.execute(f"CREATE TABLE IF NOT EXISTS picture (path TEXT PRIMARY KEY, {columns}) WITHOUT ROWID")
        connection.execute("CREATE INDEX IF NOT EXISTS of_class ON picture (kcode, domain, fault)")
        connection.execute("CREATE INDEX IF NOT EXISTS of_content ON picture (sha256)")
        found = [row[1] for row in connection.execute("PRAGMA table_info(picture)")]
        if tuple(found) != _COLUMNS:
            raise sqlite3.DatabaseError("is of another version")
    except BaseException:
        connection.close()
        raise
    return connection


def _type(name: str) -> str:
    return {"thumb": "BLOB", "darkest": "REAL", "brightest": "REAL", "mean": "REAL", "sharpness": "REAL"}.get(
        name, "INTEGER" if name in ("named", "combination", "width", "height") else "TEXT"
    )


def _listed(picture: Picture) -> tuple[Any, ...]:
    label = "" if picture.label is None else str(picture.label)
    stamp = f"{READER_VERSION} {_stamp(picture.source)}" + (f" {_stamp(picture.label)}" if picture.label else "")
    return (
        picture.path, str(picture.source), picture.kcode, picture.domain, int(picture.condition is not None),
        int(picture.combination), label, stamp,
    )  # fmt: skip


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _read_values(reading: Reading, stamp: str) -> tuple[Any, ...]:
    figures = reading.figures or (None,) * len(Figures._fields)
    box = None if reading.box is None else json.dumps(reading.box)
    return (
        stamp, reading.sha256, reading.width, reading.height, reading.dhash, reading.phash, reading.thumb, *figures,
        box, json.dumps(reading.notes, ensure_ascii=False), reading.fault_code, reading.fault,
    )  # fmt: skip


def _picture(row: tuple[Any, ...]) -> Picture:
    path, source, kcode, domain, named, combination, label = row[:7]
    condition = parse_condition(os.path.basename(path), domain) if named else None
    return Picture(path, Path(source), kcode, domain, condition, bool(combination), Path(label) if label else None)


def _reading(row: tuple[Any, ...]) -> Reading:
    value = dict(zip(_COLUMNS, row, strict=True))
    figures = [value[name] for name in Figures._fields]
    plain = Reading(
        **{name: value[name] for name in ("path", "sha256", "width", "height", "dhash", "phash", "thumb")},
        fault_code=value["fault_code"],
        fault=value["fault"],
    )
    return replace(
        plain,
        figures=None if figures[0] is None else Figures(*figures),
        box=None if value["box"] is None else Box(*json.loads(value["box"])),
        notes=tuple(json.loads(value["notes"])),
    )


def _batches(items: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    batch: list[Picture] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _collect(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for key, path in pairs:
        found.setdefault(key, []).append(path)
    return {key: tuple(paths) for key, paths in found.items()}
