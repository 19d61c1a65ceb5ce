"""Imprint glyphs as strokes and filled logos, drawn into a mask.

Knows the outline of every character a pill or a label may carry, and nothing about pills.
Glyphs are polylines on a grid of 4 wide by 6 high, y down; a polyline that starts with ``~`` is rounded
by corner cutting, one that starts with ``|`` is kept straight. Logos are polygons in the unit square -1..1.

Legend: H, W height and width in pixels; P points.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

GLYPH_WIDTH = 4.0
GLYPH_HEIGHT = 6.0
GLYPH_GAP = 1.9
_SUBPIXEL_BITS = 4

_GLYPHS: Mapping[str, str] = MappingProxyType(
    {
        "A": "|0,6 2,0 4,6;|0.8,4.1 3.2,4.1",
        "B": "|0,0 0,6;~0,0 3.6,0 3.8,2.9 0,2.9;~0,2.9 4.2,2.9 4.2,6 0,6",
        "C": "~4,1.2 3.6,0 0.2,-0.2 0,3 0.2,6.2 3.6,6 4,4.8",
        "D": "|0,0 0,6;~0,0 3.6,0 4.2,3 3.6,6 0,6",
        "E": "|4,0 0,0 0,6 4,6;|0,3 3.2,3",
        "F": "|4,0 0,0 0,6;|0,3 3.2,3",
        "G": "~4,1.2 3.6,0 0.2,-0.2 0,3 0.2,6.2 3.2,6 4,5.2;|2.4,3.5 4,3.5 4,6",
        "H": "|0,0 0,6;|4,0 4,6;|0,3 4,3",
        "J": "~3.4,0 3.4,4 3.2,6.2 0.4,6.2 0,4.2",
        "K": "|0,0 0,6;|4,0 0,3.6;|1.3,2.5 4,6",
        "L": "|0,0 0,6 4,6",
        "M": "|0,6 0,0 2,3.4 4,0 4,6",
        "N": "|0,6 0,0 4,6 4,0",
        "P": "|0,6 0,0;~0,0 4,-0.1 4.3,1.7 4,3.5 0,3.4",
        "R": "|0,6 0,0;~0,0 4,-0.1 4.3,1.6 4,3.2 0,3.2;|1.9,3.2 4,6",
        "S": "~4,1 3.4,0 0.2,-0.1 -0.2,2.6 4.2,3.2 4.2,6.2 0.6,6.1 0,5",
        "T": "|0,0 4,0;|2,0 2,6",
        "U": "~0,0 0,4 0.3,6.2 3.7,6.2 4,4 4,0",
        "V": "|0,0 2,6 4,0",
        "X": "|0,0 4,6;|4,0 0,6",
        "Y": "|0,0 2,3 4,0;|2,3 2,6",
        "Z": "|0,0 4,0 0,6 4,6",
        "0": "~2,0 0,0 0,3 0,6 2,6 4,6 4,3 4,0 2,0",
        "1": "|0.8,1.4 2.2,0 2.2,6;|0.9,6 3.5,6",
        "2": "~0,1.5 0.3,0 3.8,-0.2 4.2,2.2 0,6;|0,6 4,6",
        "3": "~0,0.7 0.8,0 4,-0.2 4,2.9 1.4,2.9;~1.4,2.9 4.3,2.9 4.3,6.2 0.8,6.1 0,5.2",
        "4": "|3,6 3,0 0,4.2 4,4.2",
        "5": "|3.8,0 0.5,0 0.3,2.6;~0.3,2.6 2.2,1.9 4.3,2.2 4.2,6 1,6.3 0,5.1",
        "6": "~3.6,0.3 1.2,0 0,2.4 0,4.4 0.2,6.1 3.8,6.1 4,4.3 3.8,2.5 0.6,2.5 0,4.2",
        "7": "|0,0 4,0 1.4,6",
        "8": "~2,0 0.3,0 0.3,2.9 2,2.9 3.7,2.9 3.7,0 2,0;~2,2.9 0,2.9 0,6 2,6 4,6 4,2.9 2,2.9",
        "9": "~0.4,5.7 2.8,6 4,3.6 4,1.6 3.8,-0.1 0.2,-0.1 0,1.7 0.2,3.5 3.4,3.5 4,1.8",
        "-": "|0.6,3 3.4,3",
    }
)
LOGOS = "★✚♥▲◆◯☾⚡➤≈■"


def _star_points(arms: int, inner: float) -> NDArray[np.float64]:
    angle = np.arange(2 * arms) * np.pi / arms - np.pi / 2
    radius = np.where(np.arange(2 * arms) % 2 == 0, 1.0, inner)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart_points() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16.0


def _crescent_points() -> NDArray[np.float64]:
    outer = np.linspace(0.22 * np.pi, 1.78 * np.pi, 30)
    arc_out = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    inner = np.linspace(1.70 * np.pi, 0.30 * np.pi, 30)
    arc_in = np.stack([0.42 + 0.70 * np.cos(inner), 0.70 * np.sin(inner)], axis=1)
    return np.concatenate([arc_out, arc_in])


def _ring_points() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 48)
    circle = np.stack([np.cos(t), np.sin(t)], axis=1)
    return np.concatenate([circle * 0.95, circle[::-1] * 0.5])


def _wave_points() -> NDArray[np.float64]:
    x = np.linspace(-1, 1, 30)
    y = 0.28 * np.sin(x * 2 * np.pi)
    upper, lower = np.stack([x, y - 0.2], axis=1), np.stack([x, y + 0.2], axis=1)
    return np.concatenate([upper, lower[::-1]])


@cache
def _logo_polygons(logo: str) -> tuple[NDArray[np.float64], ...]:
    """The filled polygons of one logo, each P,2 in -1..1."""
    wave, lift = _wave_points(), np.array([0.0, 0.5])
    table: dict[str, tuple[NDArray[np.float64], ...]] = {
        "★": (_star_points(5, 0.45),),
        "✚": (
            np.array(
                [
                    (-0.34, -1),
                    (0.34, -1),
                    (0.34, -0.34),
                    (1, -0.34),
                    (1, 0.34),
                    (0.34, 0.34),
                    (0.34, 1),
                    (-0.34, 1),
                    (-0.34, 0.34),
                    (-1, 0.34),
                    (-1, -0.34),
                    (-0.34, -0.34),
                ]
            ),
        ),
        "♥": (_heart_points(),),
        "▲": (np.array([(0, -1), (1, 0.85), (-1, 0.85)]),),
        "◆": (np.array([(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]),),
        "◯": (_ring_points(),),
        "☾": (_crescent_points(),),
        "⚡": (np.array([(0.35, -1), (-0.75, 0.2), (-0.05, 0.2), (-0.35, 1), (0.75, -0.25), (0.05, -0.25)]),),
        "➤": (np.array([(-0.9, -0.9), (1, 0), (-0.9, 0.9), (-0.35, 0)]),),
        "≈": (wave - lift, wave + lift),
        "■": (np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),),
    }
    return table[logo]


def _rounded(points_P2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cuts the corners three times (Chaikin), keeping both ends."""
    for _ in range(3):
        near = 0.75 * points_P2[:-1] + 0.25 * points_P2[1:]
        far = 0.25 * points_P2[:-1] + 0.75 * points_P2[1:]
        middle = np.stack([near, far], axis=1).reshape(-1, 2)
        points_P2 = np.concatenate([points_P2[:1], middle, points_P2[-1:]])
    return points_P2


@cache
def _glyph_lines(character: str) -> tuple[NDArray[np.float64], ...]:
    lines = []
    for stroke in _GLYPHS[character].split(";"):
        points = np.array([[float(v) for v in pair.split(",")] for pair in stroke[1:].split()])
        lines.append(_rounded(points) if stroke[0] == "~" else points)
    return tuple(lines)


def drawable(text: str) -> bool:
    """Whether every character of the text has a glyph or is a logo."""
    return bool(text) and all(character in _GLYPHS or character in LOGOS for character in text)


def _fixed_point(points_P2: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.round(points_P2 * (1 << _SUBPIXEL_BITS)).astype(np.int32).reshape(-1, 1, 2)


def draw_text(
    mask_HW_u8: NDArray[np.uint8],
    text: str,
    box_px: tuple[float, float, float, float],
    weight: float = 0.11,
    color: int = 255,
) -> None:
    """Draws the text into the mask, as large as the box allows and centred in it.

    Args:
        mask_HW_u8: Changed in place.
        text: Characters of the glyph table and logos.
        box_px: Centre x, centre y, width and height of the box.
        weight: Stroke width as a share of the glyph height.
        color: Value written.
    """
    center_x, center_y, width_px, height_px = box_px
    pad = weight * GLYPH_HEIGHT
    units_wide = len(text) * GLYPH_WIDTH + (len(text) - 1) * GLYPH_GAP
    scale = min(width_px / (units_wide + pad), height_px / (GLYPH_HEIGHT + pad))
    thickness_px = max(1, round(weight * GLYPH_HEIGHT * scale))
    left = center_x - units_wide * scale / 2
    top = center_y - GLYPH_HEIGHT * scale / 2
    for position, character in enumerate(text):
        origin = np.array([left + position * (GLYPH_WIDTH + GLYPH_GAP) * scale, top])
        if character in LOGOS:
            middle = origin + np.array([GLYPH_WIDTH / 2, GLYPH_HEIGHT / 2]) * scale
            size = 2.95 if len(text) == 1 else 2.5
            polygons = [_fixed_point(p * size * scale + middle) for p in _logo_polygons(character)]
            cv2.fillPoly(mask_HW_u8, polygons, color, cv2.LINE_AA, _SUBPIXEL_BITS)
        else:
            lines = [_fixed_point(p * scale + origin) for p in _glyph_lines(character)]
            cv2.polylines(mask_HW_u8, lines, False, color, thickness_px, cv2.LINE_AA, _SUBPIXEL_BITS)
