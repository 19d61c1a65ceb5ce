"""Answer every image of one split with a session. Knows how to keep the cores busy; measures nothing.

Images are read and prepared in a few threads while the session works on the former ones. It answers one at a time, as a
server does: a graph whose answer hangs on what else is in a batch (a range or a mean over all of it) would be measured
on batches of one drug, and no phone sends those.
Legend: N images, K classes, H height, W width, C channel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pillsnap.core.errors import DataError
from pillsnap.core.manifest import Manifest, Split
from pillsnap.core.preprocessing import Examined
from pillsnap.evaluation.metrics import true_ranks
from pillsnap.inference.session import PillSession

PORTION = 8
"""Images that are prepared and told of together."""
_WORKERS = 2
_PORTIONS_AHEAD = 2
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


class Answers(NamedTuple):
    """What a session says to N images."""

    probabilities_NK: NDArray[np.float32]
    doubted_N: NDArray[np.bool_]
    """Nothing can be seen in the picture, so that no answer to it is sure (`image_codes.DOUBTS`)."""


@dataclass(frozen=True)
class Predictions:
    """The answers to the rows of one split, in the order of the rows."""

    rows: pa.Table
    labels_N: NDArray[np.int64]
    probabilities_NK: NDArray[np.float32]
    retired: tuple[int, ...] = ()
    """Indices that are never answered; their probabilities are 0."""
    doubted_N: NDArray[np.bool_] | None = None
    """As in `Answers`; None: of none."""

    @cached_property
    def predicted_N(self) -> NDArray[np.int64]:
        """Index of the answered class (of equal probabilities the lower index, as when served)."""
        return np.asarray(self.probabilities_NK.argmax(axis=1), np.int64)

    @cached_property
    def confidences_N(self) -> NDArray[np.float32]:
        """Probability of the answered class."""
        return np.asarray(self.probabilities_NK.max(axis=1), np.float32)

    def sure_N(self, unsure_below: float) -> NDArray[np.bool_]:
        """Which answers are called sure, by the rule that a server has."""
        sure_N = self.confidences_N >= unsure_below
        return sure_N if self.doubted_N is None else sure_N & ~self.doubted_N

    @cached_property
    def ranks_N(self) -> NDArray[np.int64]:
        """Rank of the true class, 1 is right."""
        return true_ranks(self.labels_N, self.probabilities_NK, self.retired)

    def table(self, kcodes: tuple[str, ...]) -> pa.Table:
        """One row an image: what it is, what was answered, and how sure."""
        return pa.table(
            {
                "path": self.rows["path"],
                "domain": self.rows["domain"],
                "label": pa.array(self.labels_N, pa.int32()),
                "kcode": [kcodes[label] for label in self.labels_N],
                "predicted": pa.array(self.predicted_N, pa.int32()),
                "predicted_kcode": [kcodes[index] for index in self.predicted_N],
                "confidence": pa.array(self.confidences_N, pa.float32()),
                "true_rank": pa.array(self.ranks_N, pa.int32()),
            }
        )


@dataclass(frozen=True)
class Way:
    """A way from a photo's bytes to probabilities."""

    session: PillSession
    before: Callable[[bytes, str], bytes] | None = None
    """What happens to the bytes first (the phone's steps); None: nothing."""
    every: int = 1
    """Only every so many images go this way."""


def predict_split(
    session: PillSession, manifest: Manifest, split: Split = "test", progress: Progress | None = None
) -> Predictions:
    """Answer every image of ``split``. Raises as `predict_ways`."""
    rows = manifest.split(split)
    [answers] = predict_ways([Way(session)], manifest, rows, progress)
    labels_N = manifest.labels(rows)
    return Predictions(rows, labels_N, answers.probabilities_NK, session.metadata.retired_indices, answers.doubted_N)


def predict_ways(
    ways: Sequence[Way], manifest: Manifest, rows: pa.Table, progress: Progress | None = None
) -> list[Answers]:
    """Answer images in several ways at once; each file is read once, and prepared once where two ways do it alike.

    Returns:
        The answers of each way, to the images that go it.

    Raises:
        DataError: there are no rows.
        ImageError: an image is gone or cannot be decoded.
        TamperedError: an image is not the one that the manifest recorded.
        BundleError: a model answers NaN or infinity.
    """
    if rows.num_rows == 0:
        raise DataError(f"{manifest.root}: the test split holds no images; prepare the data with more photos")
    answers: list[list[tuple[NDArray[np.float32], bool]]] = [[] for _ in ways]
    done = 0
    for portion in _prepared(ways, manifest, rows):
        for way, answered in enumerate(answers):
            for examined in (prepared[way] for prepared in portion):
                if examined is not None:
                    prediction = ways[way].session.predict(examined.image_u8)
                    answered.append((prediction.probabilities_NK, bool(examined.doubts)))
        done += len(portion)
        if progress is not None:
            progress(done, rows.num_rows)
    return [
        Answers(np.concatenate([found for found, _ in answered]), np.array([doubted for _, doubted in answered]))
        for answered in answers
    ]


def _prepared(ways: Sequence[Way], manifest: Manifest, rows: pa.Table) -> Iterator[list[list[Examined | None]]]:
    """Portions of images; of each image, what each way's session takes (1,H,W,C); None: it does not go that way."""
    files = list(zip(range(rows.num_rows), rows["path"].to_pylist(), rows["sha256"].to_pylist(), strict=True))

    def prepare(place: int, path: str, sha256: str) -> list[Examined | None]:
        name = str(manifest.root / path)
        photo = manifest.read_image(path, sha256)
        known: dict[tuple[object, str], Examined] = {}
        found: list[Examined | None] = []
        for way in ways:
            if place % way.every:
                found.append(None)
                continue
            key = (way.before, way.session.metadata.preprocessing_fingerprint)
            if key not in known:
                data = photo if way.before is None else way.before(photo, name)
                preprocessor = way.session.preprocessor
                image_HWC_u8, doubts = preprocessor.decode_examined(data, name)
                known[key] = Examined(preprocessor.prepare_pixels(image_HWC_u8), doubts)
            found.append(known[key])
        return found

    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="prepare")
    waiting: deque[Future[list[Examined | None]]] = deque()
    submitted = 0
    try:
        while submitted < len(files) or waiting:
            ahead = min(len(files), submitted + PORTION * _PORTIONS_AHEAD - len(waiting))
            waiting.extend(pool.submit(prepare, *file) for file in files[submitted:ahead])
            submitted = ahead
            yield [waiting.popleft().result() for _ in range(min(PORTION, len(waiting)))]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
