"""Remembers what was read of every picture, in ``scan.db`` (SQLite), so that only what changed is read again.

Pictures stream through it: neither the list nor the readings of a large tree are ever in memory at once. Results are
committed as they come, so a scan that is killed goes on where it stopped. A file counts as unchanged while its size,
its time of change and the time of change of its inode stay the same (a copy that forges the first two has another of
the last), wherever the tree is mounted. Knows single pictures; knows nothing of groups, mixtures or splits.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.boxes import Box
from pillsnap.core.errors import DataError
from pillsnap.core.image_codes import Refusal
from pillsnap.core.text import as_text
from pillsnap.data.names import DOMAINS, Domain, parse_condition
from pillsnap.data.parallel import Progress, map_in_order
from pillsnap.data.reading import READER_VERSION, Figures, Reading, read_picture
from pillsnap.data.sources import Picture

_log = logging.getLogger(__name__)
SCAN_FILE = "scan.db"
_CHUNK = 1000
_COMMIT_S = 1.0
_BUSY_S = 5.0
_LISTED = {
    "path": "TEXT PRIMARY KEY",
    "source": "BLOB",
    "kcode": "TEXT",
    "domain": "TEXT",
    "named": "INTEGER",
    "combination": "INTEGER",
    "label": "BLOB",
    "stamp": "TEXT",
}
"""Columns of a picture as it is found. ``stamp`` is all that its reading depends on. Places on the disk are bytes: a
folder that was unpacked with Korean Windows' names is no UTF-8."""
_READ = {
    "read_stamp": "TEXT",
    "sha256": "TEXT",
    "width": "INTEGER",
    "height": "INTEGER",
    "dhash": "TEXT",
    "phash": "TEXT",
    "thumb": "BLOB",
    **dict.fromkeys(Figures._fields, "REAL"),
    "box": "TEXT",
    "notes": "TEXT",
    "fault_code": "TEXT",
    "fault": "TEXT",
}
"""Columns of what was read; ``read_stamp`` is the stamp that it was read with."""
_UNREAD = f"(read_stamp IS NOT stamp OR fault_code = '{Refusal.UNREADABLE}')"
"""A file that could not be read (a share that was away, a permission) is tried again each time."""
_UPSERT = (
    f"INSERT INTO picture ({', '.join(_LISTED)}) VALUES (:{', :'.join(_LISTED)}) ON CONFLICT (path) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _LISTED)
)
_SAVE = f"UPDATE picture SET {', '.join(f'{name} = :{name}' for name in _READ)} WHERE path = :path"


class ScanStore:
    """The pictures of one data set and what was read of them. Used by one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[ScanStore]:
        """Open or make the store; one that is damaged is made anew (its content can be read again).

        Raises:
            DataError: another process works on it, it cannot be written, or it shows damage while it is in use (it is
                removed then).
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = _connect_or_replace(path)
            try:
                yield cls(connection)
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            raise DataError(f"{path}: {error}; is the disk full, or does another preparation run?") from error
        except sqlite3.DatabaseError as error:
            _remove(path)
            raise DataError(f"{path}: was damaged ({error}) and is removed; run it again to read all anew") from error

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
            self._db.executemany("INSERT OR IGNORE INTO seen VALUES (:path)", rows)
            known = self._known([row["path"] for row in rows])
            self._db.executemany(_UPSERT, [row for row in rows if known.get(row["path"]) != row])
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
        done: list[dict[str, Any]] = []
        committed = time.monotonic()

        def read(item: tuple[Picture, str]) -> dict[str, Any]:
            picture, stamp = item
            return _read_columns(read_picture(picture), stamp)

        try:
            for row in map_in_order(read, self._unread(), workers, "reading pictures", progress, total=todo):
                done.append(row)
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
        query = "SELECT * FROM picture WHERE kcode = ? ORDER BY path"
        return [(_picture(row), _reading(row)) for row in self._db.execute(query, (kcode,))]

    def copies_across_classes(self) -> dict[str, tuple[str, ...]]:
        """sha256 → paths, of pictures whose very bytes lie under several drugs.

        Those with a fault of their own do not count (a label that names another drug tells which copy is wrong), nor
        do combinations, which show several drugs indeed.
        """
        usable = "fault = '' AND NOT combination"
        return _collect(
            self._db.execute(
                f"SELECT sha256, path FROM picture WHERE {usable} AND sha256 IN (SELECT sha256 FROM picture "
                f"WHERE {usable} GROUP BY sha256 HAVING count(DISTINCT kcode) > 1) ORDER BY sha256, path"
            )
        )

    def alike_across_classes(self) -> dict[str, tuple[str, ...]]:
        """Both hashes → paths, of pictures of several drugs that hash alike and are not the same file.

        Combinations are left out: two pictures of the same pills are alike under each of their drugs.
        """
        usable = "fault = '' AND NOT combination"
        return _collect(
            self._db.execute(
                f"SELECT dhash || phash AS hash, path FROM picture WHERE {usable} AND hash IN (SELECT dhash || phash "
                f"FROM picture WHERE {usable} GROUP BY 1 HAVING count(DISTINCT kcode) > 1 AND "
                "count(DISTINCT sha256) > 1) ORDER BY hash, path"
            )
        )

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

    def _known(self, paths: list[str]) -> dict[str, dict[str, Any]]:
        marks = ", ".join("?" * len(paths))
        query = f"SELECT {', '.join(_LISTED)} FROM picture WHERE path IN ({marks})"
        return {row["path"]: dict(row) for row in self._db.execute(query, paths)}

    def _unread(self) -> Iterator[tuple[Picture, str]]:
        query = f"SELECT * FROM picture WHERE {_UNREAD} AND path > ? ORDER BY path LIMIT {_CHUNK}"
        last = ""
        while rows := self._db.execute(query, (last,)).fetchall():
            last = rows[-1]["path"]
            yield from ((_picture(row), row["stamp"]) for row in rows)

    def _save(self, done: list[dict[str, Any]]) -> None:
        self._db.executemany(_SAVE, done)
        self._db.commit()
        done.clear()

    def _count(self, condition: str) -> Iterator[tuple[tuple[str, Domain], int]]:
        query = f"SELECT kcode, domain, count(*) FROM picture WHERE {condition} GROUP BY 1, 2"
        return (((kcode, domain), count) for kcode, domain, count in self._db.execute(query))


def _connect_or_replace(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.OperationalError:  # busy, full, not allowed: the content may be sound
        raise
    except sqlite3.DatabaseError as error:
        _log.warning("%s cannot be used (%s): all pictures are read again", path, error)
        _remove(path)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    columns = _LISTED | _READ
    definition = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    connection = sqlite3.connect(path, timeout=_BUSY_S)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"CREATE TABLE IF NOT EXISTS picture ({definition}) WITHOUT ROWID")
        if [row["name"] for row in connection.execute("PRAGMA table_info(picture)")] != list(columns):
            raise sqlite3.DatabaseError("it is of another version")
        connection.execute("CREATE INDEX IF NOT EXISTS of_class ON picture (kcode, domain, fault)")
        connection.execute("CREATE INDEX IF NOT EXISTS of_content ON picture (sha256)")
    except BaseException:
        connection.close()
        raise
    return connection


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _listed(picture: Picture) -> dict[str, Any]:
    label = "" if picture.label is None else f" {_stamp(picture.label)}"
    return {
        "path": as_text(picture.path),
        "source": os.fsencode(picture.source),
        "kcode": picture.kcode,
        "domain": picture.domain,
        "named": int(picture.named),
        "combination": int(picture.combination),
        "label": b"" if picture.label is None else os.fsencode(picture.label),
        "stamp": f"{READER_VERSION} {picture.named:d}{picture.combination:d} {_stamp(picture.source)}{label}",
    }


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _read_columns(reading: Reading, stamp: str) -> dict[str, Any]:
    figures = dict.fromkeys(Figures._fields) if reading.figures is None else reading.figures._asdict()
    return {
        "path": reading.path,
        "read_stamp": stamp,
        **{name: getattr(reading, name) for name in _PLAIN},
        **figures,
        "box": None if reading.box is None else json.dumps(reading.box),
        "notes": json.dumps(reading.notes, ensure_ascii=False),
    }


_PLAIN = ("sha256", "width", "height", "dhash", "phash", "thumb", "fault_code", "fault")
"""Columns that hold a field of `Reading` as it is."""


def _picture(row: sqlite3.Row) -> Picture:
    path, domain, named = row["path"], row["domain"], bool(row["named"])
    return Picture(
        path,
        Path(os.fsdecode(row["source"])),
        row["kcode"],
        domain,
        parse_condition(os.path.basename(path), domain) if named else None,
        bool(row["combination"]),
        Path(os.fsdecode(row["label"])) if row["label"] else None,
        named,
    )


def _reading(row: sqlite3.Row) -> Reading:
    figures = [row[name] for name in Figures._fields]
    return Reading(
        row["path"],
        **{name: row[name] for name in _PLAIN},
        figures=None if None in figures else Figures(*figures),
        box=None if row["box"] is None else Box(*json.loads(row["box"])),
        notes=tuple(json.loads(row["notes"])),
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
