"""Canonical JSON, digests, and writing beside and then renaming.

Knows nothing of what it writes. Hashes are over canonical JSON or over bytes, so that they are the same
on every machine.
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pillsnap.core.errors import DataError


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, Korean kept as it is, NaN refused (ValueError)."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def sha256_json(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def sha256_bytes(data: bytes) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces. Raises DataError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def sha256_files(folder: Path, leave_out: Collection[str] = ()) -> dict[str, str]:
    """Name (POSIX, relative) → sha256 (hex) of all files under a folder, but for those named in ``leave_out``.

    Raises:
        DataError: a file cannot be read, or is a link: what it points to may change without a trace.
    """
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise DataError(f"{path}: is a link, where only files are taken")
        if path.is_file() and name not in leave_out:
            digests[name] = sha256_file(path)
    return digests


@contextmanager
def writing_beside(path: Path, keep_same: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` when the block ends well.

    A crash in the middle leaves the former file as it was. The temporary file is removed after an error, and an
    error of the file system names ``path``.

    Args:
        path: what is to be written.
        keep_same: leave the former file alone where it holds the same bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        if not (keep_same and path.is_file() and filecmp.cmp(temporary, path, shallow=False)):
            os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error  # a full disk
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file or nothing."""
    with writing_beside(path) as temporary:
        temporary.write_bytes(data)


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has a file, or the entries of a folder: what is renamed next outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON as a whole file or nothing. NaN is refused."""
    write_bytes(path, json_text(value).encode("utf-8"))


def json_text(value: Any) -> str:
    """Readable JSON: indented, Korean as it is. NaN is refused (ValueError)."""
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def read_json(path: Path, *, unique_keys: bool = False) -> Any:
    """Read a JSON file (UTF-8, with or without a byte-order mark).

    Args:
        path: the file.
        unique_keys: refuse an object that has a key twice, where JSON would silently keep the last. For files that
            people edit.

    Raises:
        DataError: names the file and the line, or the key.
    """
    hook = partial(_unique, path) if unique_keys else None
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=hook)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not readable JSON ({error}); save it as UTF-8") from error
    except (OSError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not readable JSON ({error})") from error


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        where = json.dumps(dict(pairs[:1]), ensure_ascii=False)[:80]
        raise DataError(f"{path}: the key {twice!r} stands twice in the object that starts {where}; keep one of them")
    return found
