"""Copies that were turned by quarter turns or mirrored: a gallery that drops the Exif orientation makes them.

dHash and pHash change wholly when a picture is turned, so these copies are found by the small grey pictures alone. On
820 phone photos of 6 pills and 647 of 305 drugs no two pictures of different sittings were linked, also not at 0.99;
36 turned copies (JPEG 92) stayed within 0.2 grey levels and above 0.9999.

Legend: N pictures, S side, P pixels, E links.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LEAST_CORRELATION = 0.995
"""Of the grey pictures less their mean, beside the limit on their difference: flat pictures all differ little."""
_BLOCK = 1024
"""Rows of the table of correlations that are in memory at once."""
_PIECE = 20_000
"""Pairs whose pictures are compared at once."""


def turned_copy_links(thumb_NP: NDArray[np.uint8], grey_levels: float) -> NDArray[np.int64]:
    """``link_E2``: pairs of positions whose pictures are the same but for a turn or a mirroring.

    Args:
        thumb_NP: square grey pictures, row by row.
        grey_levels: largest mean difference.
    """
    side = round(thumb_NP.shape[1] ** 0.5)
    plain_NP = thumb_NP.astype(np.float32)
    unit_NP = _unit(plain_NP)
    found = [np.zeros((0, 2), np.int64)]
    for turned_NSS in _turns(plain_NP.reshape(-1, side, side)):
        turned_NP = turned_NSS.reshape(len(plain_NP), -1)
        turned_unit_NP = _unit(turned_NP)
        for start in range(0, len(plain_NP), _BLOCK):
            alike = unit_NP[start : start + _BLOCK] @ turned_unit_NP.T >= LEAST_CORRELATION
            for pairs_E2 in in_pieces(np.argwhere(alike) + np.asarray([start, 0])):
                difference_EP = np.abs(plain_NP[pairs_E2[:, 0]] - turned_NP[pairs_E2[:, 1]])
                found.append(pairs_E2[difference_EP.mean(axis=1) <= grey_levels])
    return np.concatenate(found)


def in_pieces(pairs_E2: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """A few pairs at a time: of a thousand round pills that are all alike there are a million, 0.5 GB and more."""
    for start in range(0, len(pairs_E2), _PIECE):
        yield pairs_E2[start : start + _PIECE]


def _turns(image_NSS: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The seven ways to lay a square but the upright one."""
    mirrored_NSS = image_NSS[:, :, ::-1]
    turns = [np.rot90(image_NSS, quarter, axes=(1, 2)) for quarter in (1, 2, 3)]
    return turns + [np.rot90(mirrored_NSS, quarter, axes=(1, 2)) for quarter in range(4)]


def _unit(image_NP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Less the mean, of length 1; a flat picture becomes zero and is like nothing."""
    centred_NP = image_NP - image_NP.mean(axis=1, keepdims=True)
    length_N1 = np.linalg.norm(centred_NP, axis=1, keepdims=True)
    return np.asarray(centred_NP / np.maximum(length_N1, 1e-6), np.float32)
