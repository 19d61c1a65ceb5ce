"""Are the pictures still those that the manifest recorded? Compares, repairs nothing."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass

from pillsnap.core.errors import ImageError, TamperedError
from pillsnap.core.image_codes import Refusal
from pillsnap.core.manifest import Manifest
from pillsnap.core.text import as_text
from pillsnap.data.ledger import LEDGER_FILE, ledger_paths
from pillsnap.data.links import LINK_FOLDERS
from pillsnap.data.parallel import Progress, map_in_order, no_progress
from pillsnap.data.sources.tree import list_pictures


@dataclass(frozen=True)
class VerifyReport:
    """Paths relative to the manifest, sorted."""

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    """Pictures that came after the manifest was made (those that it left out on purpose are not meant)."""

    @property
    def is_clean(self) -> bool:
        """Nothing differs."""
        return not (self.changed or self.missing or self.extra)

    @property
    def differ_in_form_only(self) -> int:
        """How many missing pictures are there under the same name in another Unicode form.

        macOS and some tools for archives take Korean syllables apart (NFD): the name looks the same and is another one.
        """
        composed = {unicodedata.normalize("NFC", path) for path in self.extra}
        return sum(unicodedata.normalize("NFC", path) in composed for path in self.missing)


def verify(manifest: Manifest, workers: int = 0, progress: Progress = no_progress) -> VerifyReport:
    """Read every picture of a manifest again and compare its sha256."""
    rows = list(zip(manifest.rows["path"].to_pylist(), manifest.rows["sha256"].to_pylist(), strict=True))

    def check(row: tuple[str, str]) -> str:
        try:
            manifest.read_image(*row)
        except TamperedError:
            return "changed"
        except ImageError as error:
            return "missing" if error.code == Refusal.UNREADABLE else "changed"
        return "same"

    states = list(map_in_order(check, rows, workers or os.cpu_count() or 1, "verifying", progress))
    found = {state: tuple(p for (p, _), s in zip(rows, states, strict=True) if s == state) for state in set(states)}
    return VerifyReport(found.get("changed", ()), found.get("missing", ()), _extra(manifest))


def _extra(manifest: Manifest) -> tuple[str, ...]:
    known = {*manifest.rows["path"].to_pylist(), *ledger_paths(manifest.root / LEDGER_FILE)}
    present = [
        f"{folder}/{path}"
        for folder in LINK_FOLDERS.values()
        if (manifest.root / folder).is_dir()
        for path in map(as_text, list_pictures(manifest.root / folder))
    ]
    return tuple(sorted(path for path in present if path not in known))
