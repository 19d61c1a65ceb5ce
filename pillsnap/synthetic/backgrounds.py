"""What a pill lies on in the real photos: palm, wood, white, black, checked pattern.

Textures are large; a sitting takes its own crop, turn, scale and tint of one. Built on first use and kept for the
process, from fixed seeds, so every process builds the same bytes.

Legend: H, W height and width in pixels; C channels (RGB).
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

TEXTURE_PX = 960
VARIANTS = 4
_SKIN_RGB = ((232, 190, 164), (214, 166, 138), (240, 204, 182), (196, 148, 120))
_WOOD_RGB = ((176, 128, 84), (142, 96, 62), (206, 166, 118), (110, 74, 50))
_CHECK_RGB = (
    ((196, 48, 52), (244, 238, 232)),
    ((62, 92, 158), (240, 242, 244)),
    ((52, 52, 56), (232, 230, 226)),
    ((96, 138, 92), (236, 228, 206)),
)


def _smooth_noise(rng: np.random.Generator, cells_x: int, cells_y: int) -> F32:
    """Gaussian noise on a coarse grid, enlarged smoothly to a texture; about unit spread."""
    coarse = rng.standard_normal((cells_y, cells_x), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (TEXTURE_PX, TEXTURE_PX), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _fine_noise(rng: np.random.Generator, sigma_px: float) -> F32:
    """Gaussian noise blurred to a grain of about sigma, scaled back to unit spread."""
    noise = rng.standard_normal((TEXTURE_PX, TEXTURE_PX), dtype=np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma_px)
    return np.asarray(blurred / max(float(blurred.std()), 1e-6), dtype=np.float32)


def _tinted(rgb: tuple[int, int, int], gain_HW: F32) -> F32:
    return np.asarray(gain_HW[..., None] * np.array(rgb, dtype=np.float32), dtype=np.float32)


def _curve(points_xy: NDArray[np.float64]) -> NDArray[np.int32]:
    """A smooth line through points given as shares of the texture's side (a uniform Catmull-Rom spline)."""
    padded = np.concatenate([2 * points_xy[:1] - points_xy[1:2], points_xy, 2 * points_xy[-1:] - points_xy[-2:-1]])
    t = np.linspace(0, 1, 16, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    line = np.concatenate([*pieces, points_xy[-1:]]) * TEXTURE_PX
    return np.round(line).astype(np.int32).reshape(-1, 1, 2)


# A right hand, fingers up, thumb to the left: the lines that palms have in common, strongest first.
_PALM_LINES: tuple[tuple[float, tuple[tuple[float, float], ...]], ...] = (
    (1.00, ((0.02, 0.36), (0.22, 0.38), (0.40, 0.50), (0.47, 0.68), (0.46, 0.86), (0.40, 1.02))),
    (0.90, ((0.03, 0.37), (0.26, 0.36), (0.52, 0.43), (0.74, 0.54), (0.90, 0.62))),
    (0.95, ((1.01, 0.36), (0.80, 0.38), (0.60, 0.33), (0.46, 0.24), (0.40, 0.17))),
    (0.45, ((0.56, 1.00), (0.55, 0.78), (0.57, 0.58), (0.58, 0.38))),
    (0.35, ((0.86, 0.95), (0.78, 0.74), (0.76, 0.56), (0.78, 0.42))),
    (0.55, ((0.06, 0.11), (0.18, 0.14), (0.29, 0.10))),
    (0.55, ((0.29, 0.08), (0.41, 0.11), (0.54, 0.08))),
    (0.55, ((0.54, 0.09), (0.67, 0.13), (0.79, 0.10))),
    (0.50, ((0.79, 0.13), (0.89, 0.18), (1.00, 0.17))),
)


def _palm_creases(rng: np.random.Generator) -> F32:
    """How deep the skin is folded, 0..1: the lines of the hand, their branches, and the fine net between them."""
    deep = np.zeros((TEXTURE_PX, TEXTURE_PX), dtype=np.uint8)
    fine = np.zeros_like(deep)
    for strength, points in _PALM_LINES:
        line = _curve(np.array(points) + rng.normal(0, 0.014, (len(points), 2)))
        cv2.polylines(deep, [line], False, round(255 * strength), 2 + round(3 * strength), cv2.LINE_AA)
        for start in line[rng.integers(len(line), size=round(7 * strength))]:
            step = rng.normal(0, 0.07, 2) * TEXTURE_PX
            branch = np.stack([start[0], start[0] + 0.5 * step + rng.normal(0, 6, 2), start[0] + step])
            cv2.polylines(fine, [branch.astype(np.int32)], False, round(230 * strength), 2, cv2.LINE_AA)
    middle = rng.random((260, 1, 2)) * TEXTURE_PX
    angle = rng.choice([0.35, 1.25, 2.3], 260) + rng.normal(0, 0.22, 260)
    reach = (rng.gamma(2.0, 14.0, 260)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))[:, None]
    for line in np.round(
        np.concatenate([middle - reach, middle + rng.normal(0, 4, reach.shape), middle + reach], axis=1)
    ):
        cv2.polylines(fine, [line.astype(np.int32)], False, int(rng.integers(40, 150)), 1, cv2.LINE_AA)
    soft = 0.55 * cv2.GaussianBlur(deep.astype(np.float32), (0, 0), 2.2)
    soft += 0.75 * cv2.GaussianBlur(deep.astype(np.float32), (0, 0), 7.0)
    return np.asarray((soft + 0.7 * cv2.GaussianBlur(fine.astype(np.float32), (0, 0), 1.1)) / 255, dtype=np.float32)


def _palm(rng: np.random.Generator, variant: int) -> F32:
    """Skin with the mounts, lines and ridges of a hand."""
    side = np.linspace(0, 1, TEXTURE_PX, dtype=np.float32)
    x, y = side[None, :], side[:, None]
    mounts = np.zeros((TEXTURE_PX, TEXTURE_PX), dtype=np.float32)
    for center_x, center_y, wide, high in (
        (0.20, 0.68, 0.24, 0.30), (0.82, 0.72, 0.20, 0.32),
        (0.17, 0.24, 0.10, 0.09), (0.42, 0.22, 0.10, 0.08), (0.66, 0.23, 0.10, 0.08), (0.90, 0.27, 0.09, 0.08),
    ):  # fmt: skip
        mounts += np.exp(-(((x - center_x) / wide) ** 2) - ((y - center_y) / high) ** 2)
    creases = _palm_creases(rng)
    height = 46 * mounts - 5.0 * creases + 1.5 * _smooth_noise(rng, 14, 14)
    relief = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125) + cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    flow = 70 * (x + 0.55 * y) + 26 * np.hypot(x - 0.3, y - 0.55) + 1.2 * _smooth_noise(rng, 7, 7)
    ridges = np.sin(np.float32(2 * np.pi) * flow)
    gain = 1 + 0.05 * (mounts - 0.5) + 0.16 * relief + 0.016 * ridges
    gain += 0.02 * _smooth_noise(rng, 60, 60) + 0.014 * _fine_noise(rng, 1.2)
    skin = _tinted(_SKIN_RGB[variant], gain.astype(np.float32))
    flush = np.clip(0.6 * _smooth_noise(rng, 9, 9) + 0.5 * _smooth_noise(rng, 26, 26) + 1.3 * mounts - 0.7, -2, 2)
    skin *= 1 - creases[..., None] * np.array([0.30, 0.42, 0.42], dtype=np.float32)  # folds are redder than dark
    skin *= 1 - flush[..., None] * np.array([0.0, 0.040, 0.035], dtype=np.float32)
    return np.asarray(skin, dtype=np.float32)


def _wood(rng: np.random.Generator, variant: int) -> F32:
    y = np.arange(TEXTURE_PX, dtype=np.float32)[:, None]
    warp = 26 * _smooth_noise(rng, 4, 8) + 5 * _smooth_noise(rng, 10, 40)
    rings = np.sin((y + warp) * np.float32(2 * np.pi / rng.uniform(24, 44)))
    streaks = _smooth_noise(rng, 8, 480)
    pores = np.clip(_smooth_noise(rng, 50, 900) - 1.2, 0, 2)
    gain = 1 + 0.09 * rings + 0.06 * streaks - 0.14 * pores + 0.05 * _smooth_noise(rng, 5, 5)
    plank_px = int(rng.integers(260, 420))
    for top in range(plank_px // 2, TEXTURE_PX, plank_px):
        gain[top : top + plank_px] *= rng.uniform(0.88, 1.08)
        gain[top : top + 3] *= 0.45
    return _tinted(_WOOD_RGB[variant], gain.astype(np.float32))


def _white(rng: np.random.Generator, variant: int) -> F32:
    gain = 1 + 0.012 * _smooth_noise(rng, 4, 4) + 0.012 * _fine_noise(rng, 1.0)
    if variant % 2:
        veins = np.exp(-np.abs(_smooth_noise(rng, 7, 7) + 0.3 * _smooth_noise(rng, 30, 30)) * 14)
        gain = gain - 0.07 * veins
    return _tinted(((236, 236, 233), (232, 233, 236), (240, 237, 230), (228, 230, 230))[variant], gain)


def _black(rng: np.random.Generator, variant: int) -> F32:
    gain = 1 + 0.10 * _smooth_noise(rng, 5, 5) + 0.16 * _fine_noise(rng, 1.3)
    if variant % 2:
        wave = np.sin(np.arange(TEXTURE_PX, dtype=np.float32) * np.float32(2 * np.pi / 7))
        gain = gain + 0.16 * wave[:, None] * wave[None, :]
    dust = np.clip(_fine_noise(rng, 0.9) - 3.4, 0, 1)
    base = _tinted(((34, 34, 37), (44, 43, 42), (28, 29, 33), (50, 49, 52))[variant], gain.astype(np.float32))
    return np.asarray(base + 60 * dust[..., None], dtype=np.float32)


def _checked(rng: np.random.Generator, variant: int) -> F32:
    dark, light = (np.array(rgb, dtype=np.float32) for rgb in _CHECK_RGB[variant])
    cell = int(rng.integers(44, 84))
    stripe = ((np.arange(TEXTURE_PX) // cell) % 2).astype(np.float32)
    down, across = stripe[:, None], stripe[None, :]
    share = np.abs(down - across) if variant == 2 else (down + across) / 2  # a chess board, or gingham
    share = cv2.GaussianBlur(share.astype(np.float32), (0, 0), 1.0)[..., None]
    thread = np.sin(np.arange(TEXTURE_PX, dtype=np.float32) * np.float32(2 * np.pi / 5))
    gain = 1 + 0.03 * (thread[:, None] + thread[None, :]) + 0.03 * _fine_noise(rng, 1.2)
    gain += 0.03 * _smooth_noise(rng, 5, 5)
    return np.asarray((light * (1 - share) + dark * share) * gain[..., None], dtype=np.float32)


_MAKERS = (_palm, _wood, _white, _black, _checked)


@cache
def background_texture(background: int, variant: int) -> U8:
    """A square texture H,W,C in RGB of one of the five backgrounds; do not change it."""
    rng = np.random.default_rng([background, variant, 909])
    texture = np.clip(_MAKERS[background](rng, variant), 0, 255).astype(np.uint8)
    texture.setflags(write=False)
    return texture
