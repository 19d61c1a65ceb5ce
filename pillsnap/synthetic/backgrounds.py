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


def _curve(rng: np.random.Generator) -> NDArray[np.int32]:
    """A long, slightly bent line across the texture."""
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-0.8, 0.8, 40) * TEXTURE_PX
    bend = rng.uniform(-0.6, 0.6) * along**2 / TEXTURE_PX + rng.uniform(-0.5, 0.5) * TEXTURE_PX
    x = TEXTURE_PX / 2 + along * np.cos(angle) - bend * np.sin(angle)
    y = TEXTURE_PX / 2 + along * np.sin(angle) + bend * np.cos(angle)
    return np.round(np.stack([x, y], axis=1)).astype(np.int32).reshape(-1, 1, 2)


def _palm(rng: np.random.Generator, variant: int) -> F32:
    creases = np.zeros((TEXTURE_PX, TEXTURE_PX), dtype=np.uint8)
    for _ in range(5):
        cv2.polylines(creases, [_curve(rng)], False, int(rng.integers(140, 255)), int(rng.integers(3, 7)))
    fine = np.zeros_like(creases)
    for _ in range(70):
        cv2.polylines(fine, [_curve(rng)], False, int(rng.integers(60, 200)), 1)
    gain = 1 + 0.055 * _smooth_noise(rng, 6, 6) + 0.02 * _smooth_noise(rng, 60, 60) + 0.018 * _fine_noise(rng, 1.2)
    gain -= 0.30 * cv2.GaussianBlur(creases.astype(np.float32) / 255, (0, 0), 4.5)
    gain -= 0.09 * cv2.GaussianBlur(fine.astype(np.float32) / 255, (0, 0), 1.0)
    skin = _tinted(_SKIN_RGB[variant], gain)
    flush = np.clip(_smooth_noise(rng, 9, 9), -2, 2)
    skin[..., 1] -= 5 * flush
    skin[..., 2] -= 6 * flush
    return skin


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
