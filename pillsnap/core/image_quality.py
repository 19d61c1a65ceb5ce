"""Whether anything can be seen in a picture: brightness, contrast, sharpness, shape, and the limits of each. Pure.

The audit leaves out of a data set what fails here, and the server calls no answer to it sure: the same measures and the
same limits, so that what is trained on and tested with is what is answered. Limits were set on 2,400 real and drawn
pictures of pills: the dullest good one has a sharpness of 5, a pill that fills 1 % of black cloth still has its
brightest thousandth at 107, a line drawing 0.26 of its variance at 32 × 32 (photos 0.68); blurred by 2 % of their side
pictures fall under a sharpness of 2.5. Noise looks sharp: two grey levels of it (at 640 px) already hide that blur.
Legend: H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pillsnap.core.image_codes import Finding, Remark
from pillsnap.core.images import Decoded

SMALL_SIDE = 256
"""Pixels per side of the grey picture that the figures are taken from."""
MEASURED_FROM_PX = 2 * SMALL_SIDE
"""Pixels of the shorter side that a picture of more is decoded or halved to before."""
_SHAPE_SIDE = 32
_TAIL = 0.001


class Figures(NamedTuple):
    """What is judged: brightness 0 to 255, sharpness and shape of the grey picture of 256 × 256."""

    darkest: float
    """0.1 % of the pixels are darker."""
    brightest: float
    """0.1 % of the pixels are brighter."""
    mean: float
    sharpness: float
    """Variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000)."""
    shape: float
    """Share of its variance that is left at 32 × 32: 1/64 of noise; 1 where there is no variance."""


class QualityLimits(BaseModel):
    """Where a picture stops being usable. Brightness is 0 to 255."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dark_below: float = Field(default=48, ge=0, le=255)
    """Too dark where all but the brightest thousandth of the pixels is darker."""
    bright_above: float = Field(default=225, ge=0, le=255)
    """Too bright where all but the darkest thousandth of the pixels is brighter."""
    blank_below: float = Field(default=12, ge=0, le=255)
    """Blank where these two thousandths are closer together."""
    sharpness_below: float = Field(default=2.5, ge=0)
    """Blurred where the variance of the Laplacian is lower."""
    shape_below: float = Field(default=0.15, ge=0, le=1)
    """Noise where less of the variance is left at 32 × 32."""


def small_grey(grey_HW_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole picture at 256 × 256."""
    return np.asarray(cv2.resize(grey_HW_u8, (SMALL_SIDE, SMALL_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def measure(grey_HW_u8: NDArray[np.uint8]) -> Figures:
    """The figures of a grey picture of 256 × 256."""
    share_of_darker = np.bincount(grey_HW_u8.ravel(), minlength=256).cumsum() / grey_HW_u8.size
    darkest, brightest = np.searchsorted(share_of_darker, [_TAIL, 1 - _TAIL])
    mean, deviation = cv2.meanStdDev(grey_HW_u8)
    _, deviation_of_edges = cv2.meanStdDev(cv2.Laplacian(grey_HW_u8, cv2.CV_16S))
    shapes = cv2.resize(grey_HW_u8, (_SHAPE_SIDE, _SHAPE_SIDE), interpolation=cv2.INTER_AREA)
    _, deviation_of_shapes = cv2.meanStdDev(shapes)
    shape = (deviation_of_shapes[0, 0] / deviation[0, 0]) ** 2 if deviation[0, 0] else 1
    sharpness = deviation_of_edges[0, 0] ** 2
    return Figures(float(darkest), float(brightest), float(mean[0, 0]), float(sharpness), float(shape))


def judge(figures: Figures, limits: QualityLimits) -> Iterator[Finding]:
    """Why nothing can be seen, with the figure that says so; nothing of a good picture. One cause hides the next."""
    if figures.brightest < limits.dark_below:
        yield Finding(code=Remark.TOO_DARK, message=f"its brightest parts have {figures.brightest:.0f} of 255")
    elif figures.darkest > limits.bright_above:
        yield Finding(code=Remark.TOO_BRIGHT, message=f"its darkest parts have {figures.darkest:.0f} of 255")
    elif figures.brightest - figures.darkest < limits.blank_below:
        between = f"{figures.darkest:.0f} and {figures.brightest:.0f} of 255"
        yield Finding(code=Remark.BLANK, message=f"all of it is between {between}")
    elif figures.sharpness < limits.sharpness_below:
        under = f"{figures.sharpness:.1f}, under {limits.sharpness_below:g}"
        yield Finding(code=Remark.BLURRED, message=f"sharpness {under}")
    elif figures.shape < limits.shape_below:
        under = f"{figures.shape:.0%} of its contrast is left, under {limits.shape_below:.0%}"
        yield Finding(code=Remark.NOISE, message=f"made smaller, {under}")


def doubts(decoded: Decoded) -> tuple[Finding, ...]:
    """Why no answer to a photo is sure (codes: `image_codes.DOUBTS`), by what was decoded of it, in colour or grey."""
    image: NDArray[np.uint8] = decoded.pixels
    found = tuple(judge(measure(small_grey(_grey(_halved(image)))), QualityLimits()))
    if decoded.whole:
        return found
    return Finding(code=Remark.DAMAGED, message="a part of its pixel data is missing or damaged"), *found


def _halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At half its size as often as it stays large enough: a fifth of the time of one resize from 12 megapixels."""
    while min(image.shape[:2]) >= 2 * MEASURED_FROM_PX:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        even = image[: 2 * height, : 2 * width]
        image = np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return image


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
