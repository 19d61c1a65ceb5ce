"""Images of a manifest as a bundle takes them, in batches, so that a split at full size need not fit in memory.

Legend: N batch, H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pillsnap.core.boxes import box_of_row
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing import InferencePreprocessor

Before = Callable[[bytes, str], bytes]
"""What happens to a photo's bytes first, given its name: the phone's steps, for instance."""


def spread_over_rows(rows: pa.Table, limit: int) -> pa.Table:
    """At most ``limit`` rows, evenly over the table."""
    if rows.num_rows <= limit:
        return rows
    return rows.take(np.linspace(0, rows.num_rows - 1, limit).round().astype(int))


def spread_over_classes(rows: pa.Table, limit: int) -> pa.Table:
    """``limit`` rows or fewer: the same number of each class, evenly over its rows. Always the same ones."""
    places: dict[int, list[int]] = {}
    for place, label in enumerate(rows["label"].to_pylist()):
        places.setdefault(label, []).append(place)
    chosen: list[int] = []
    for turn, label in enumerate(sorted(places)):
        share = limit // len(places) + (turn < limit % len(places))
        own = places[label]
        chosen += [own[i] for i in sorted({round(i) for i in np.linspace(0, len(own) - 1, min(share, len(own)))})]
    return rows.take(sorted(chosen))


def prepared_batches(
    manifest: Manifest,
    rows: pa.Table,
    preprocessor: InferencePreprocessor,
    batch: int,
    before: Before | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """``image_NHWC_u8`` of up to ``batch`` rows at a time, in their order; cut out where the manifest has a box.

    Raises:
        ImageError: an image is gone or cannot be decoded.
        TamperedError: an image is not the one that the manifest recorded.
    """
    waiting: list[NDArray[np.uint8]] = []
    for row in rows.to_pylist():
        name = str(manifest.root / row["path"])
        photo = manifest.read_image(row["path"], row["sha256"])
        box = box_of_row(row)
        if before is not None:
            photo, box = before(photo, name), None
        waiting.append(preprocessor.prepare_for_model(photo, name, box))
        if len(waiting) == batch:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)
