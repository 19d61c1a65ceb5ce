"""Which test images are worth a look, and how to show them. Knows answers and pixels; draws no page.

Legend: N images, M mistakes, H height, W width, C channel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pillsnap.core.images import decode_rgb
from pillsnap.core.manifest import Manifest
from pillsnap.core.preprocessing import UnifiedPreprocessor
from pillsnap.core.preprocessing_spec import ClaheSpec, PreprocessingSpec
from pillsnap.evaluation.predict import Predictions


def thumbnails(predictions: Predictions, manifest: Manifest, side_px: int) -> Callable[[int], NDArray[np.uint8]]:
    """A function from the index of a test image to its ``image_rgb_HWC_u8``, a square of ``side_px``.

    The function raises TamperedError or ImageError where the file is no longer the one of the manifest.
    """
    crop = UnifiedPreprocessor(
        PreprocessingSpec(target_size=side_px, interpolation="area", clahe=ClaheSpec(enabled=False))
    )

    def open_thumb(index: int) -> NDArray[np.uint8]:
        path, sha256 = predictions.rows["path"][index].as_py(), predictions.rows["sha256"][index].as_py()
        return crop.to_model_input(decode_rgb(manifest.read_image(path, sha256), path))

    return open_thumb


def mistakes_in_order(predictions: Predictions) -> list[int]:
    """Indices of the wrong answers: the surest one of every confused pair, then every pair's second, and so on."""
    wrong_M = np.flatnonzero(predictions.predicted_N != predictions.labels_N)
    surest_M = wrong_M[np.argsort(-predictions.confidences_N[wrong_M], kind="stable")]
    seen: Counter[tuple[int, int]] = Counter()
    turns = []
    for place, index in enumerate(surest_M):
        pair = int(predictions.labels_N[index]), int(predictions.predicted_N[index])
        turns.append((seen[pair], place, int(index)))
        seen[pair] += 1
    return [index for _, _, index in sorted(turns)]


def example_of(predictions: Predictions, label: int, domain: str) -> int | None:
    """A test image of a class: of the same domain and answered right, if there is one."""
    candidates = np.flatnonzero(predictions.labels_N == label)
    domains = predictions.rows["domain"].to_pylist()
    ordered = sorted(candidates, key=lambda i: (domains[i] != domain, predictions.predicted_N[i] != label, i))
    return int(ordered[0]) if ordered else None
