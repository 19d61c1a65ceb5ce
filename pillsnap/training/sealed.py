"""Sealed files: what torch saves, with the sha256 of its bytes in the same file.

The digest is the comment of the zip archive that ``torch.save`` writes (``unzip -z FILE`` shows it), so that one
rename puts content and digest in place together. Knows nothing of what the content means.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from pillsnap.core.errors import TrainingError
from pillsnap.core.files import flush_to_disk, writing_beside

_MARK = b"sha256:"
_SEAL_BYTES = len(_MARK) + 64
_PIECE = 2**20


def save_sealed(path: Path, document: dict[str, Any], keep_former_as: Path | None = None) -> None:
    """Write the whole file or nothing, and wait until the disk has it.

    Args:
        path: where to.
        document: tensors, numbers, texts, lists and mappings.
        keep_former_as: the file that stood at ``path`` is kept under this name.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(document, buffer)
    buffer.seek(-2, os.SEEK_END)  # the last field of a zip archive without a comment: the comment's length
    buffer.write(struct.pack("<H", _SEAL_BYTES))
    with buffer.getbuffer() as content:
        digest = hashlib.sha256(content).hexdigest()
    buffer.write(_MARK + digest.encode())
    with writing_beside(path) as temporary:
        with buffer.getbuffer() as content:
            temporary.write_bytes(content)
        flush_to_disk(temporary)
        if keep_former_as is not None and path.exists():
            os.replace(path, keep_former_as)
    flush_to_disk(path.parent)


def load_sealed(path: Path) -> dict[str, Any]:
    """Read a file without running foreign code. Raises TrainingError: missing, damaged, or none of ours."""
    if not path.is_file():
        raise TrainingError(f"{path}: no such checkpoint; train one with: pillsnap train")
    try:
        _require_sound(path)
        raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    except TrainingError:
        raise
    except Exception as error:  # zipfile and torch raise many kinds; all mean: not a checkpoint
        raise TrainingError(f"{path}: is not a checkpoint, or a damaged one ({type(error).__name__})") from error
    if not isinstance(raw, dict):
        raise TrainingError(f"{path}: is not a PillSnap checkpoint, but a {type(raw).__name__}")
    return raw


def _require_sound(path: Path) -> None:
    """torch.load looks at no checksum. Files without a seal (of older versions) have those of their zip members."""
    with zipfile.ZipFile(path) as archive:
        seal = archive.comment
        damaged = None if seal.startswith(_MARK) else archive.testzip()
    if seal.startswith(_MARK) and seal != _MARK + _digest_without_seal(path).encode():
        raise TrainingError(f"{path}: is damaged (its sha256 is not the one that was written); copy it again")
    if damaged is not None:
        raise TrainingError(f"{path}: is damaged ({damaged} has a wrong checksum); copy it again")


def _digest_without_seal(path: Path) -> str:
    digest = hashlib.sha256()
    left = path.stat().st_size - _SEAL_BYTES
    with path.open("rb") as stream:
        while left > 0:
            piece = stream.read(min(left, _PIECE))
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()
