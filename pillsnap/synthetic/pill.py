"""The body of a pill: outline, height, colour and imprint of one side, and how light falls on it.

A surface is built once for each drug and side, then shaded for each picture with the light turned into the pill's
own frame. Knows nothing about cameras or backgrounds.

Legend: H, W height and width in pixels; C channels (RGB); heights are in pixels too.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.synthetic.drugs import PillDesign, SideMark
from pillsnap.synthetic.strokes import draw_text
from pillsnap.synthetic.vocabulary import INK_RGB, PALETTE_RGB, Shape

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

LONG_PX = 288
MARGIN_PX = 8
_OVERSAMPLING = 2
# Imprint box as a share of long and short side: (width, height) for unsplit text.
_TEXT_BOX = {
    Shape.ROUND: (0.66, 0.42),
    Shape.BEVELLED: (0.60, 0.40),
    Shape.OVAL: (0.62, 0.52),
    Shape.OBLONG: (0.60, 0.58),
    Shape.CAPSULE: (0.78, 0.52),
    Shape.SQUARE: (0.70, 0.46),
    Shape.RHOMBUS: (0.50, 0.46),
    Shape.TRIANGLE: (0.50, 0.38),
    Shape.PENTAGON: (0.62, 0.42),
    Shape.HEXAGON: (0.64, 0.46),
    Shape.OCTAGON: (0.66, 0.44),
}
_CORNERS = {Shape.SQUARE: 4, Shape.TRIANGLE: 3, Shape.PENTAGON: 5, Shape.HEXAGON: 6, Shape.OCTAGON: 8}


@dataclass(frozen=True, eq=False)
class PillSurface:
    """One side of a pill, seen from straight above, in a patch centred on it.

    Attributes:
        albedo_HWC_f32: Own colour, 0..1, also filled in beyond the outline.
        normal_HWC_f32: Unit normals; x right, y down, z towards the viewer.
        ambient_HW_f32: Share of the ambient light that reaches the point: less on slopes and in grooves.
        key_HW_f32: Share of the directed light that reaches the point, lower in grooves.
        coverage_HW_u8: 255 inside the outline.
        reach_px: Distance from the centre to the farthest point of the outline.
        wall_rgb: Colour of the side wall in 0..255, or none for a pill without one.
        wall_px: Height of the side wall.
        gloss: Strength of the specular light.
        shininess: Its exponent.
    """

    albedo_HWC_f32: F32
    normal_HWC_f32: F32
    ambient_HW_f32: F32
    key_HW_f32: F32
    coverage_HW_u8: U8
    reach_px: float
    wall_rgb: tuple[float, float, float] | None
    wall_px: float
    gloss: float
    shininess: float


def _grid(half_w: float, half_h: float) -> tuple[F32, F32]:
    """Pixel-centre coordinates of a patch that holds the pill and its margin."""
    width = 2 * round(half_w + MARGIN_PX)
    height = 2 * round(half_h + MARGIN_PX)
    x = np.arange(width, dtype=np.float32) - (width - 1) / 2
    y = np.arange(height, dtype=np.float32) - (height - 1) / 2
    grid_x, grid_y = np.meshgrid(x, y)
    return grid_x.astype(np.float32), grid_y.astype(np.float32)


def _polygon_distance(x: F32, y: F32, corners: NDArray[np.float64]) -> F32:
    """Signed distance to a convex polygon (https://iquilezles.org/articles/distfunctions2d), negative inside."""
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.ones(x.shape, dtype=bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge = end - start
        px, py = x - start[0], y - start[1]
        t = np.clip((px * edge[0] + py * edge[1]) / float(edge @ edge), 0, 1)
        nearest = np.minimum(nearest, (px - edge[0] * t) ** 2 + (py - edge[1] * t) ** 2).astype(np.float32)
        inside &= edge[0] * py - edge[1] * px >= 0
    return (np.sqrt(nearest) * np.where(inside, -1, 1)).astype(np.float32)


def _regular_corners(count: int, half_w: float, half_h: float) -> NDArray[np.float64]:
    """Corners of a regular polygon stretched to the given half sizes; flat top for an even count."""
    turn = np.pi / count if count % 2 == 0 and count != 6 else 0.0
    angle = np.arange(count) * 2 * np.pi / count - np.pi / 2 + turn + (np.pi / 2 if count == 6 else 0.0)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - (low + high) / 2) / ((high - low) / 2) * (half_w, half_h)
    return np.asarray(scaled, dtype=np.float64)


def _outline_distance(shape: Shape, x: F32, y: F32, half_w: float, half_h: float) -> F32:
    """Signed distance to the outline in pixels, negative inside."""
    if shape in (Shape.ROUND, Shape.BEVELLED):
        return (np.hypot(x, y) - half_w).astype(np.float32)
    if shape is Shape.OVAL:
        # First-order distance to the ellipse: f / |grad f|.
        value = np.sqrt((x / half_w) ** 2 + (y / half_h) ** 2) + 1e-6
        slope = np.sqrt((x / half_w**2) ** 2 + (y / half_h**2) ** 2) / value + 1e-6
        return ((value - 1) / slope).astype(np.float32)
    if shape in (Shape.OBLONG, Shape.CAPSULE):
        return (np.hypot(np.maximum(np.abs(x) - (half_w - half_h), 0), y) - half_h).astype(np.float32)
    radius = 0.22 * half_h
    inset_w, inset_h = half_w - radius, half_h - radius
    if shape is Shape.RHOMBUS:
        corners = np.array([(inset_w, 0), (0, inset_h), (-inset_w, 0), (0, -inset_h)], dtype=np.float64)
    else:
        corners = _regular_corners(_CORNERS[shape], inset_w, inset_h)
    return np.asarray(_polygon_distance(x, y, corners) - radius, dtype=np.float32)


def _body_height(shape: Shape, depth: F32, y: F32, half_h: float) -> F32:
    """Height over the rim for the distance from the outline inwards."""
    if shape is Shape.CAPSULE:
        return np.asarray(np.sqrt(np.maximum(half_h**2 - np.square(half_h - depth), 0.5)), dtype=np.float32)
    if shape is Shape.BEVELLED:
        slant = 0.30 * half_h
        ramp = np.clip(depth / slant, 0, 1) * 0.85 * slant
        return np.asarray(cv2.GaussianBlur(ramp.astype(np.float32), (0, 0), 2.0), dtype=np.float32)
    bevel = 0.14 * half_h
    edge = bevel * np.sqrt(np.maximum(1 - (1 - np.clip(depth / bevel, 0, 1)) ** 2, 0))
    inner = np.clip(depth / half_h, 0, 1)
    dome = 0.30 * half_h * (1 - (1 - inner) ** 2)
    angular = shape in _CORNERS or shape is Shape.RHOMBUS
    smooth_dome = cv2.GaussianBlur(dome.astype(np.float32), (0, 0), (0.16 if angular else 0.05) * half_h)
    soft_edge = cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 1.2)
    return np.asarray(soft_edge + smooth_dome, dtype=np.float32)


def _imprint_masks(design: PillDesign, mark: SideMark, shape_hw: tuple[int, int]) -> tuple[F32, F32]:
    """The imprint and the score line, each 0..1."""
    height, width = shape_hw
    scale = _OVERSAMPLING
    text_mask = np.zeros((height * scale, width * scale), dtype=np.uint8)
    score_mask = np.zeros_like(text_mask)
    long_px = LONG_PX * scale
    short_px = long_px * design.short_mm / design.long_mm
    center_x, center_y = (width * scale) / 2, (height * scale) / 2
    if design.shape is Shape.TRIANGLE:
        center_y += 0.10 * short_px
    box_w, box_h = (share * size for share, size in zip(_TEXT_BOX[design.shape], (long_px, short_px), strict=True))
    if mark.split:
        gap = (0.06 if design.shape is Shape.CAPSULE else 0.10) * long_px
        half_w = (box_w - gap) / 2
        middle = (len(mark.text) + 1) // 2
        for part, sign in ((mark.text[:middle], -1), (mark.text[middle:], 1)):
            draw_text(text_mask, part, (center_x + sign * (gap + half_w) / 2, center_y, half_w, box_h))
        if design.shape is not Shape.CAPSULE:
            x, reach = round(center_x), round(short_px * 0.46)
            top, bottom = round(center_y) - reach, round(center_y) + reach
            cv2.line(score_mask, (x, top), (x, bottom), 255, round(0.030 * long_px), cv2.LINE_AA)
    else:
        draw_text(text_mask, mark.text, (center_x, center_y, box_w, box_h))
    size = (width, height)
    text, score = (cv2.resize(mask, size, interpolation=cv2.INTER_AREA) for mask in (text_mask, score_mask))
    return np.asarray(text / 255, dtype=np.float32), np.asarray(score / 255, dtype=np.float32)


def _normals(height_px: F32) -> F32:
    slope_x = cv2.Sobel(height_px, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(height_px, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    return np.stack([-slope_x / length, -slope_y / length, 1 / length], axis=-1).astype(np.float32)


def _base_albedo(design: PillDesign, x: F32, rng: np.random.Generator) -> F32:
    """Own colour with fine speckle; a two-colour capsule changes at the joint."""
    colors = [np.array(PALETTE_RGB[name], dtype=np.float32) / 255 for name in design.colors]
    albedo = np.broadcast_to(colors[0], (*x.shape, 3)).copy()
    if len(colors) == 2:
        body = np.clip(x + 0.5, 0, 1)[..., None]
        albedo = albedo * (1 - body) + colors[1] * body
    grain = cv2.GaussianBlur(rng.standard_normal(x.shape, dtype=np.float32), (0, 0), 1.0)
    albedo *= 1 + (0.012 if design.glossy else 0.05) * grain[..., None]
    if design.speckled:
        spots = cv2.GaussianBlur(rng.standard_normal(x.shape, dtype=np.float32), (0, 0), 1.8)
        albedo *= 1 - 0.35 * np.clip((spots - 0.28) * 8, 0, 1)[..., None]
    return albedo.astype(np.float32)


def build_surface(design: PillDesign, side: int) -> PillSurface:
    """The surface of side 0 (front) or 1 (back); the same bytes for the same design."""
    rng = np.random.default_rng([design.index, side, 505])
    half_w = LONG_PX / 2
    half_h = half_w * design.short_mm / design.long_mm
    x, y = _grid(half_w, half_h)
    distance = _outline_distance(design.shape, x, y, half_w, half_h)
    height = _body_height(design.shape, np.maximum(-distance, 0), y, half_h)
    albedo = _base_albedo(design, x, rng)
    mark = design.mark(side)
    text, score = _imprint_masks(design, mark, (x.shape[0], x.shape[1]))
    groove = score if mark.ink else np.maximum(text, score)
    if mark.ink is not None:
        ink_rgb = np.array(INK_RGB[mark.ink], dtype=np.float32) / 255
        ink_share = text[..., None] * (0.93 + 0.05 * (albedo[..., :1] - albedo[..., :1].mean()))
        albedo = (albedo * (1 - ink_share) + ink_rgb * ink_share).astype(np.float32)
    carved = cv2.GaussianBlur(groove, (0, 0), 2.4)
    height = (height - 11.0 * carved).astype(np.float32)
    if design.shape is Shape.CAPSULE:
        height += 2.2 / (1 + np.exp(np.clip((x - 0.5) / 0.7, -30, 30)))  # the cap slides over the body
    height += (0.10 if design.glossy else 0.30) * cv2.GaussianBlur(
        rng.standard_normal(x.shape, dtype=np.float32), (0, 0), 1.3
    )
    rim = np.clip(-distance / (0.10 * half_h), 0, 1)
    in_groove = 1 - 0.42 * cv2.GaussianBlur(groove, (0, 0), 1.2)
    capsule = design.shape is Shape.CAPSULE
    wall = None if capsule else PALETTE_RGB[design.colors[0]]
    normal = _normals(height.astype(np.float32))
    occlusion = (in_groove * (0.86 + 0.14 * rim)).astype(np.float32)
    return PillSurface(
        albedo_HWC_f32=np.ascontiguousarray(albedo),
        normal_HWC_f32=normal,
        ambient_HW_f32=((0.55 + 0.45 * normal[..., 2]) * occlusion).astype(np.float32),
        key_HW_f32=(0.5 + 0.5 * occlusion).astype(np.float32),
        coverage_HW_u8=(np.clip(0.5 - distance, 0, 1) * 255).astype(np.uint8),
        reach_px=float(np.hypot(x, y)[distance < 0].max()),
        wall_rgb=None if wall is None else (float(wall[0]), float(wall[1]), float(wall[2])),
        wall_px=0.0 if capsule else 0.5 * LONG_PX * design.thick_mm / design.long_mm,
        gloss=0.60 if capsule else (0.30 if design.glossy else 0.06),
        shininess=70.0 if capsule else (38.0 if design.glossy else 14.0),
    )


def shade(surface: PillSurface, light_xyz: tuple[float, float, float], ambient: float) -> U8:
    """Lights the surface.

    Args:
        surface: What to light.
        light_xyz: Direction to the light in the pill's frame; need not be of unit length.
        ambient: Share of light that comes from everywhere, 0..1.

    Returns:
        H,W,4: RGB and coverage; a flat, clean, upward-facing point keeps its own colour.
    """
    light = np.array(light_xyz, dtype=np.float32)
    light /= np.linalg.norm(light)
    half = light + np.array([0, 0, 1], dtype=np.float32)
    half /= np.linalg.norm(half)
    diffuse, mirror = cv2.split(np.maximum(cv2.transform(surface.normal_HWC_f32, np.stack([light, half])), 0))
    key_light = (1 - ambient) / max(float(light[2]), 0.2)
    lit = cv2.addWeighted(surface.ambient_HW_f32, ambient, cv2.multiply(diffuse, surface.key_HW_f32), key_light, 0.0)
    sheen = cv2.pow(mirror, surface.shininess) * np.float32(235.0 * surface.gloss)
    color = cv2.multiply(surface.albedo_HWC_f32, cv2.merge([lit] * 3), scale=255.0)
    red, green, blue = cv2.split(cv2.add(color, cv2.merge([sheen] * 3), dtype=cv2.CV_8U))
    return np.asarray(cv2.merge([red, green, blue, surface.coverage_HW_u8]), dtype=np.uint8)
