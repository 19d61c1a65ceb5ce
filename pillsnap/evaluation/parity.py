"""One table of nets that should answer alike: accuracy, agreement and difference, by batch and by the photo's way.

Knows the test split, the phone's steps and how to count; what computes the logits is the caller's, so that PyTorch can
stand beside bundles. Legend: N images, K classes, H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pillsnap.clients.phone import PhoneClient
from pillsnap.core.errors import ConfigError, DataError, EvidenceError
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.evaluation.metrics import share
from pillsnap.inference.session import PillSession

WAYS = ("direct", "client")
"""The photo's file as it is, and after the phone's steps (crop, 512 pixels, JPEG)."""
Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""``image_NHWC_u8`` → ``logits_NK``."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Contestant:
    """A net to compare."""

    name: str
    preprocessor: InferencePreprocessor
    kcodes: tuple[str, ...]
    """Of its classes, in their order."""
    logits: Logits

    @classmethod
    def of_session(cls, name: str, session: PillSession) -> Contestant:
        """A bundle."""
        kcodes = tuple(entry.kcode for entry in session.metadata.classes)
        return cls(name, session.preprocessor, kcodes, lambda image_NHWC_u8: session.predict(image_NHWC_u8).logits_NK)


@dataclass(frozen=True)
class ParityRow:
    """One net, one batch size, one way."""

    name: str
    batch: int
    way: str
    images: int
    top1: float
    low: float
    """Ends of Wilson's 95 % interval of ``top1``."""
    high: float
    agreement: float
    """Share of images with the same first answer as the first row."""
    largest_difference: float
    """Of a logit from that of the first row, as a share of the largest logit of the first row."""
    mean_difference: float


def parity_rows(
    contestants: Sequence[Contestant],
    manifest: Manifest,
    *,
    batches: Sequence[int] = (1, 8),
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[ParityRow, ...]:
    """Let all nets answer the test images.

    Args:
        contestants: the first one is what the others are compared with.
        manifest: its test split is answered.
        batches: images at once.
        limit: at most so many test images, evenly over the split; None: all.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: nothing to compare.
        DataError: no test images.
        EvidenceError: a net of other drugs than the manifest.
        ImageError, TamperedError: an image is gone or another one.
        BundleError: a bundle answers NaN.
    """
    if not contestants or not batches:
        raise ConfigError("a parity table needs at least one net and one batch size")
    for contestant in contestants:
        if contestant.kcodes != manifest.catalog.kcodes:
            raise EvidenceError(
                f"{contestant.name}: its classes are not those of {manifest.root}; give the data set it was trained on"
            )
    rows = _chosen(manifest, limit)
    answers: dict[tuple[str, int, int], list[NDArray[np.float32]]] = {}
    size = max(batches)
    for start in range(0, rows.num_rows, size):
        part = rows.slice(start, size)
        for way in WAYS:
            images = _prepared(manifest, part, way, contestants)
            for who, contestant in enumerate(contestants):
                image_NHWC_u8 = images[contestant.preprocessor.spec.fingerprint]
                for batch in batches:
                    found = answers.setdefault((way, who, batch), [])
                    found += [contestant.logits(image_NHWC_u8[i : i + batch]) for i in range(0, len(part), batch)]
        if progress is not None:
            progress(min(start + size, rows.num_rows), rows.num_rows)
    in_use = [index for index, drug in enumerate(manifest.catalog.drugs) if not drug.retired]
    logits = {key: np.concatenate(parts)[:, in_use] for key, parts in answers.items()}
    place = {index: place for place, index in enumerate(in_use)}
    labels_N = np.asarray([place.get(int(label), -1) for label in manifest.labels(rows)], np.int64)
    first_NK = logits[WAYS[0], 0, batches[0]]
    return tuple(
        _row(contestant.name, batch, way, logits[way, who, batch], first_NK, labels_N)
        for way in WAYS
        for who, contestant in enumerate(contestants)
        for batch in batches
    )


def parity_table(rows: Sequence[ParityRow]) -> str:
    """Markdown."""
    first = rows[0]
    lines = [
        f"Against {first.name}, batch {first.batch}, {first.way}; differences as shares of its largest logit.",
        "",
        "| net | batch | photo | images | top-1 | 95 % interval | same first answer | largest difference | mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.batch} | {row.way} | {row.images} | {row.top1:.2%} | {row.low:.1%}–{row.high:.1%} | "
        f"{row.agreement:.2%} | {row.largest_difference:.1e} | {row.mean_difference:.1e} |"
        for row in rows
    ]
    return "\n".join(lines)


def parity_report(rows: Sequence[ParityRow]) -> list[dict[str, object]]:
    """For JSON."""
    return [asdict(row) for row in rows]


def _chosen(manifest: Manifest, limit: int | None) -> pa.Table:
    rows = manifest.split("test")
    if rows.num_rows == 0:
        raise DataError(f"{manifest.root}: the test split holds no images; prepare the data with more photos")
    if limit is None or rows.num_rows <= limit:
        return rows
    return rows.take(np.linspace(0, rows.num_rows - 1, limit).round().astype(int))


def _prepared(
    manifest: Manifest, rows: pa.Table, way: str, contestants: Sequence[Contestant]
) -> dict[str, NDArray[np.uint8]]:
    """``image_NHWC_u8`` by the fingerprint of the preprocessing."""
    photos = []
    for path, sha256 in zip(rows["path"].to_pylist(), rows["sha256"].to_pylist(), strict=True):
        photo, name = manifest.read_image(path, sha256), str(manifest.root / path)
        photos.append((PhoneClient().prepare(photo, name) if way == "client" else photo, name))
    preprocessors = {contestant.preprocessor.spec.fingerprint: contestant.preprocessor for contestant in contestants}
    return {
        fingerprint: np.concatenate([preprocessor.prepare_for_model(photo, name) for photo, name in photos])
        for fingerprint, preprocessor in preprocessors.items()
    }


def _row(
    name: str,
    batch: int,
    way: str,
    logits_NK: NDArray[np.float32],
    first_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64],
) -> ParityRow:
    top1 = share(np.asarray(logits_NK.argmax(axis=1) == labels_N, np.bool_))
    assert top1 is not None
    assert top1.low is not None
    assert top1.high is not None
    difference_NK = np.abs(logits_NK - first_NK) / max(float(np.abs(first_NK).max()), 1e-6)
    return ParityRow(
        name=name,
        batch=batch,
        way=way,
        images=len(labels_N),
        top1=top1.value,
        low=top1.low,
        high=top1.high,
        agreement=float((logits_NK.argmax(axis=1) == first_NK.argmax(axis=1)).mean()),
        largest_difference=float(difference_NK.max()),
        mean_difference=float(difference_NK.mean()),
    )
