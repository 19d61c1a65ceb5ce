"""From light in the scene to a stored picture: geometry, shadow, exposure, blur, noise.

Pictures are 8-bit between the steps: OpenCV is several times faster on them than on floats, and the sensor's noise
hides the rounding.

Legend: H, W height and width in pixels; C channels (RGB).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Matrix = NDArray[np.float64]

_NOISE_PX = 700


def translation(x: float, y: float) -> Matrix:
    """Moves by x, y pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def turn(angle_deg: float) -> Matrix:
    """Turns about the origin; positive is clockwise on the screen."""
    radian = np.deg2rad(angle_deg)
    cos, sin = float(np.cos(radian)), float(np.sin(radian))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=np.float64)


def stretch(x: float, y: float) -> Matrix:
    """Scales along x and y."""
    return np.diag([x, y, 1.0])


def tilt(x: float, y: float) -> Matrix:
    """A mild perspective: what lies towards +x or +y shrinks; x, y in 1/pixel."""
    return np.array([[1, 0, 0], [0, 1, 0], [x, y, 1]], dtype=np.float64)


def centered(patch_HW: tuple[int, int]) -> Matrix:
    """Takes pixel coordinates of a patch to coordinates about its centre."""
    return translation(-(patch_HW[1] - 1) / 2, -(patch_HW[0] - 1) / 2)


def warp(image_HWC_u8: U8, matrix: Matrix, size_WH: tuple[int, int], reflect: bool = False) -> U8:
    """Looks at a patch through a homography (source pixels to target pixels)."""
    border = cv2.BORDER_REFLECT_101 if reflect else cv2.BORDER_CONSTANT
    warped = cv2.warpPerspective(image_HWC_u8, matrix, size_WH, flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(warped, dtype=np.uint8)


def blend(under_HWC_u8: U8, over_HWC_u8: U8, cover_HW_u8: U8) -> U8:
    """Lays one picture over another."""
    share = cover_HW_u8.astype(np.float32) / np.float32(255)
    return np.asarray(cv2.blendLinear(over_HWC_u8, under_HWC_u8, share, 1 - share), dtype=np.uint8)


def dimmed(image_HWC_u8: U8, share_HW: F32) -> U8:
    """Multiplies every channel by the same map."""
    return np.asarray(cv2.multiply(image_HWC_u8, cv2.merge([share_HW] * 3), dtype=cv2.CV_8U), dtype=np.uint8)


def color_mixed(image_HWC_u8: U8, matrix_CC: NDArray[np.float64]) -> U8:
    """Applies a 3x3 colour matrix to every pixel."""
    return np.asarray(cv2.transform(image_HWC_u8, matrix_CC), dtype=np.uint8)


def tinted(image_HWC_u8: U8, gains_rgb: tuple[float, float, float]) -> U8:
    """Multiplies each channel by its own gain."""
    levels = np.arange(256, dtype=np.float64)[:, None] * np.array(gains_rgb)
    table = np.clip(np.round(levels), 0, 255).astype(np.uint8).reshape(1, 256, 3)
    return np.asarray(cv2.LUT(image_HWC_u8, table), dtype=np.uint8)


@dataclass(frozen=True)
class Shadow:
    """How soft a shadow is, where it falls (both in pixels), and which share of the light it takes."""

    blur_px: float
    shift_px: tuple[float, float]
    strength: float


def shadow_map(cover_HW_u8: U8, *shadows: Shadow) -> F32:
    """How much light is left around something that stands in it, 0..1; computed at half size."""
    height, width = cover_HW_u8.shape
    small = cv2.resize(cover_HW_u8, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    left = np.ones(small.shape, dtype=np.float32)
    for shadow in shadows:
        move = np.array([[1, 0, shadow.shift_px[0] / 2], [0, 1, shadow.shift_px[1] / 2]], dtype=np.float64)
        moved = cv2.warpAffine(small, move, (small.shape[1], small.shape[0]), flags=cv2.INTER_LINEAR)
        soft = cv2.GaussianBlur(moved, (0, 0), shadow.blur_px / 2)
        left *= 1 - soft.astype(np.float32) * np.float32(shadow.strength / 255)
    return np.asarray(cv2.resize(left, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def falloff(size_WH: tuple[int, int], slope_xy: tuple[float, float], corner_loss: float) -> F32:
    """Light that weakens towards one side, and towards the corners (vignetting); about 1 in the centre."""
    x = np.linspace(-1, 1, 20, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, 15, dtype=np.float32)[:, None]
    coarse = 1 + slope_xy[0] * x + slope_xy[1] * y - corner_loss * (x**2 + y**2) / 2
    fine = cv2.resize(coarse.astype(np.float32), size_WH, interpolation=cv2.INTER_LINEAR)
    return np.asarray(fine, dtype=np.float32)


def motion_blur(image_HWC_u8: U8, length_px: float, angle_deg: float) -> U8:
    """Smears along a short straight path."""
    if length_px < 1.2:
        return image_HWC_u8
    kernel = np.zeros((9, 9), dtype=np.float32)
    reach = length_px / 2 * np.array([np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))])
    start, end = (np.round((4 + sign * reach) * 16).astype(int) for sign in (-1, 1))
    cv2.line(kernel, start.tolist(), end.tolist(), 1.0, 1, cv2.LINE_8, 4)
    return np.asarray(cv2.filter2D(image_HWC_u8, -1, kernel / kernel.sum()), dtype=np.uint8)


@lru_cache(maxsize=1)
def _noise_field() -> F32:
    """Sensor noise of unit spread, mostly luminance, with a little blotchy colour."""
    rng = np.random.default_rng(717)
    shape = (_NOISE_PX, _NOISE_PX)
    luma = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), 0.55)
    chroma = cv2.GaussianBlur(rng.standard_normal((*shape, 3), dtype=np.float32), (0, 0), 1.2)
    return np.asarray(luma[..., None] / luma.std() + 0.55 * chroma / chroma.std(), dtype=np.float32)


def add_noise(image_HWC_u8: U8, spread: float, rng: np.random.Generator) -> U8:
    """Adds a random cut of the noise field."""
    height, width = image_HWC_u8.shape[:2]
    top, left = (int(rng.integers(_NOISE_PX - size)) for size in (height, width))
    field = _noise_field()[top : top + height, left : left + width]
    return np.asarray(cv2.add(image_HWC_u8, field * np.float32(spread), dtype=cv2.CV_8U), dtype=np.uint8)


@lru_cache(maxsize=1)
def film_curve_u8() -> U8:
    """A phone's tone curve: a little contrast in the middle, a soft shoulder."""
    x = np.arange(256) / 255.0
    curve = np.clip(x + 0.05 * np.sin(2 * np.pi * (x - 0.5)), 0, 1)
    return np.round(255 * curve).astype(np.uint8)
