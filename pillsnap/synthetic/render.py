"""One picture of one pill: in the studio, or by phone.

Pure functions: the same design, condition and seed give the same pixels, in any order and in any process.
The two domains differ on purpose. The studio has plain grey, even light, a centred pill and no blur; the phone has
textured ground, real exposure and colour errors, tilt, blur, noise and compression.

Legend: H, W height and width in pixels; C channels (RGB).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.synthetic import camera
from pillsnap.synthetic.backgrounds import TEXTURE_PX, VARIANTS, background_texture
from pillsnap.synthetic.camera import Shadow
from pillsnap.synthetic.conditions import RealCondition, StudioCondition, stable_rng
from pillsnap.synthetic.drugs import PillDesign
from pillsnap.synthetic.pill import LONG_PX, PillSurface, build_surface, shade
from pillsnap.synthetic.vocabulary import Shape

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

STUDIO_SIZE_WH = (244, 320)
REAL_SIZE_WH = (400, 300)
SPAN_SHARES = (0.45, 0.85)
"""So much of a photo's short side the long side of a pill takes, from and to."""
_STUDIO_GREY = (208, 150, 96)
# Direction to the light (x, y, z), ambient share, gains for R, G, B.
_STUDIO_LIGHTS = (
    ((-0.5, -0.6, 1.0), 0.50, (1.00, 1.00, 1.00)),
    ((0.1, -0.9, 0.9), 0.42, (1.03, 1.00, 0.96)),
    ((0.8, -0.3, 0.9), 0.46, (0.93, 0.95, 0.97)),
)
# LED level: exposure, its spread, colour temperature (gain of R over B), noise.
_LED = ((0.62, 0.08, 1.10, 5.5), (0.88, 0.08, 1.00, 3.2), (1.10, 0.07, 0.94, 2.2))


@dataclass(frozen=True, eq=False)
class PillModel:
    """A drug with both its surfaces built, to be drawn many times."""

    design: PillDesign
    surfaces: tuple[PillSurface, PillSurface]


def build_model(design: PillDesign) -> PillModel:
    """Builds front and back once."""
    return PillModel(design, (build_surface(design, 0), build_surface(design, 1)))


@dataclass(frozen=True)
class Sitting:
    """What the photos of one sitting share; lengths in pixels, angles in degrees."""

    variant: int
    texture_xy: tuple[float, float]
    texture_scale: float
    texture_turn_deg: float
    phase_deg: float
    long_px: float
    offset_xy: tuple[float, float]
    tilt_xy: tuple[float, float]
    light_xyz: tuple[float, float, float]
    ambient: float
    shadow: float
    gain_rgb: tuple[float, float, float]
    ground_rgb: tuple[float, float, float]
    slope_xy: tuple[float, float]
    corner_loss: float
    blur_px: float
    motion_px: float
    noise: float
    saturation: float
    jpeg_quality: int


def _span_share(design: PillDesign) -> float:
    """Small pills look smaller: the share of the picture's short side that the long side takes."""
    share = 0.50 + 0.32 * float(np.clip((design.long_mm - 7) / 11, 0, 1))
    return share * (0.90 if design.shape is Shape.SQUARE else 1.0)  # room for its diagonal


def _with_wall(surface: PillSurface, rgba_HWC_u8: U8, rise_px: float) -> tuple[U8, U8]:
    """Adds the near side wall below an already warped pill; returns its colour and coverage."""
    cover = np.ascontiguousarray(rgba_HWC_u8[..., 3])
    reach = round(rise_px)
    if surface.wall_rgb is None or reach < 1:
        return np.ascontiguousarray(rgba_HWC_u8[..., :3]), cover
    kernel = np.ones((reach + 1, 1), dtype=np.uint8)
    whole = np.asarray(cv2.dilate(cover, kernel, anchor=(0, reach)), dtype=np.uint8)
    wall = np.empty((*cover.shape, 3), dtype=np.uint8)
    wall[:] = np.round(np.array(surface.wall_rgb) * 0.66)
    return camera.blend(wall, np.ascontiguousarray(rgba_HWC_u8[..., :3]), cover), whole


def _turned_light(light_xyz: tuple[float, float, float], angle_deg: float) -> tuple[float, float, float]:
    """The light's direction in the frame of a pill that is turned by the angle."""
    x, y = camera.turn(-angle_deg)[:2, :2] @ np.array(light_xyz[:2])
    return float(x), float(y), light_xyz[2]


def render_studio(model: PillModel, condition: StudioCondition, seed: int) -> U8:
    """A studio picture, RGB, 320x244 (H,W): plain grey, centred, crisp."""
    design, surface = model.design, model.surfaces[condition.side]
    rng = stable_rng(seed, design.index, condition.key())
    direction, ambient, gains = _STUDIO_LIGHTS[condition.light]
    width, height = STUDIO_SIZE_WH
    zoom = _span_share(design) * width / LONG_PX
    elevation = np.deg2rad(condition.elevation_deg)
    squash, rise_px = float(np.sin(elevation)), float(np.cos(elevation)) * surface.wall_px * zoom
    patch = shade(surface, _turned_light(direction, condition.rotation_deg), ambient)
    place = (
        camera.translation((width - 1) / 2 + rng.normal(0, 1), (height - 1) / 2 - rise_px / 2 + rng.normal(0, 1))
        @ camera.stretch(zoom, zoom * squash)
        @ camera.turn(condition.rotation_deg)
        @ camera.centered((patch.shape[0], patch.shape[1]))
    )
    color, cover = _with_wall(surface, camera.warp(patch, place, STUDIO_SIZE_WH), rise_px)
    away = (-9 * direction[0], -9 * direction[1])
    left = camera.shadow_map(cover, Shadow(3.0, (0, 1.5), 0.35), Shadow(9.0, away, 0.30))
    left *= camera.falloff(STUDIO_SIZE_WH, (-0.03 * direction[0], -0.03 * direction[1]), 0.05)
    grey = np.round(left * _STUDIO_GREY[condition.background]).astype(np.uint8)
    ground = np.asarray(cv2.merge([grey] * 3), dtype=np.uint8)
    image = camera.tinted(camera.blend(ground, color, cover), gains)
    return camera.add_noise(image, 0.8, rng)


def _white_balance(rng: np.random.Generator, warmth: float) -> tuple[float, float, float]:
    """Gains for R, G, B: the lamp's colour, half corrected by the phone, and the phone's own error."""
    red_blue = float(np.clip(warmth * np.exp(rng.normal(0, 0.055)), 0.84, 1.22))
    green = float(np.exp(np.clip(rng.normal(0, 0.022), -0.05, 0.05)))
    return float(np.sqrt(red_blue)), green, float(1 / np.sqrt(red_blue))


def draw_sitting(model: PillModel, condition: RealCondition, seed: int) -> Sitting:
    """Draws everything that the photos of this sitting share."""
    design, reach_px = model.design, model.surfaces[condition.side].reach_px
    rng = stable_rng(seed, design.index, condition.sitting_key())
    exposure, spread, warmth, noise = _LED[condition.light]
    level = exposure * float(np.exp(np.clip(rng.normal(0, spread), -0.18, 0.18)))
    red, green, blue = _white_balance(rng, warmth)
    short_side = REAL_SIZE_WH[1]
    long_px = short_side * float(np.clip(_span_share(design) * np.exp(rng.normal(0, 0.11)), *SPAN_SHARES))
    room_px = 0.47 * short_side  # from the middle of the centre crop; the rest is for tilt and jitter
    long_px = min(long_px, room_px * LONG_PX / reach_px)
    free_px = room_px - long_px * reach_px / LONG_PX
    offset_radius, offset_angle = free_px * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    azimuth = rng.uniform(0, 2 * np.pi)
    ground = 1 + rng.normal(0, 0.05) + rng.normal(0, 0.02, 3)
    slope = rng.uniform(0.02, 0.12)
    return Sitting(
        variant=int(rng.integers(VARIANTS)),
        texture_xy=(float(rng.uniform(-0.25, 0.25)) * TEXTURE_PX, float(rng.uniform(-0.25, 0.25)) * TEXTURE_PX),
        texture_scale=float(rng.uniform(0.7, 1.35)),
        texture_turn_deg=float(rng.uniform(0, 360)),
        phase_deg=float(rng.uniform(0, 360)),
        long_px=long_px,
        offset_xy=(float(offset_radius * np.cos(offset_angle)), float(offset_radius * np.sin(offset_angle))),
        tilt_xy=(float(np.clip(rng.normal(0, 1.3e-4), -2.5e-4, 2.5e-4)), float(rng.uniform(-2e-4, 2e-4))),
        light_xyz=(float(np.cos(azimuth)), float(np.sin(azimuth)), float(rng.uniform(0.75, 1.5))),
        ambient=float(rng.uniform(0.34, 0.55)),
        shadow=float(rng.uniform(0.30, 0.55)),
        gain_rgb=(level * red, level * green, level * blue),
        ground_rgb=(float(ground[0]), float(ground[1]), float(ground[2])),
        slope_xy=(float(slope * np.cos(azimuth)), float(slope * np.sin(azimuth))),
        corner_loss=float(rng.uniform(0.08, 0.24)),
        blur_px=float(rng.uniform(0.5, 1.6)),
        motion_px=float(rng.uniform(2.0, 4.0)) if rng.random() < 0.2 else 0.0,
        noise=noise * float(rng.uniform(0.7, 1.3)),
        saturation=float(rng.uniform(0.80, 1.05)),
        jpeg_quality=int(rng.integers(62, 93)),
    )


def _scene(model: PillModel, condition: RealCondition, sitting: Sitting, angle_deg: float, jitter: F32) -> U8:
    """Pill on its ground under the LED, before the camera: scene and light turn together."""
    surface = model.surfaces[condition.side]
    width, height = REAL_SIZE_WH
    view = (
        camera.translation((width - 1) / 2 + sitting.offset_xy[0], (height - 1) / 2 + sitting.offset_xy[1])
        @ camera.translation(float(jitter[0]), float(jitter[1]))
        @ camera.tilt(*sitting.tilt_xy)
        @ camera.turn(angle_deg)
    )
    texture = background_texture(condition.background, sitting.variant)
    ground_place = (
        view
        @ camera.translation(*sitting.texture_xy)
        @ camera.turn(sitting.texture_turn_deg)
        @ camera.stretch(sitting.texture_scale, sitting.texture_scale)
        @ camera.centered((TEXTURE_PX, TEXTURE_PX))
    )
    image = camera.tinted(camera.warp(texture, ground_place, REAL_SIZE_WH, reflect=True), sitting.ground_rgb)
    patch = shade(surface, sitting.light_xyz, sitting.ambient)
    zoom = sitting.long_px / LONG_PX
    pill_place = view @ camera.stretch(zoom, zoom) @ camera.centered((patch.shape[0], patch.shape[1]))
    light_x, light_y, _ = _turned_light(sitting.light_xyz, -angle_deg)
    reach = 0.065 * sitting.long_px / sitting.light_xyz[2]
    soft_px = 0.035 * sitting.long_px
    x, y, size_WH = _window(pill_place, (patch.shape[0], patch.shape[1]), reach + 3 * soft_px)
    window = image[y : y + size_WH[1], x : x + size_WH[0]]  # where pill and shadow are; the rest stays as it is
    rgba = camera.warp(patch, camera.translation(-x, -y) @ pill_place, size_WH)
    cover = np.ascontiguousarray(rgba[..., 3])
    left = camera.shadow_map(
        cover,
        Shadow(2.6, (-light_x * reach * 0.35, -light_y * reach * 0.35), 0.34),
        Shadow(soft_px, (-light_x * reach, -light_y * reach), sitting.shadow),
    )
    window[:] = camera.blend(camera.dimmed(window, left), np.ascontiguousarray(rgba[..., :3]), cover)
    return image


def _window(place: camera.Matrix, patch_HW: tuple[int, int], margin_px: float) -> tuple[int, int, tuple[int, int]]:
    """The part of a photo that a patch and its margin cover: left, top, (width, height)."""
    height, width = patch_HW
    corners = place @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]], dtype=np.float64)
    xy = corners[:2] / corners[2]
    low = np.maximum(np.floor(xy.min(axis=1) - margin_px), 0).astype(int)
    high = np.minimum(np.ceil(xy.max(axis=1) + margin_px), REAL_SIZE_WH).astype(int)
    return int(low[0]), int(low[1]), (int(high[0] - low[0]), int(high[1] - low[1]))


def _expose(scene: U8, sitting: Sitting, rng: np.random.Generator, angle_deg: float) -> U8:
    """The phone's optics, sensor and tone curve."""
    slope_x, slope_y, _ = _turned_light((*sitting.slope_xy, 0.0), -angle_deg)
    light = camera.falloff(REAL_SIZE_WH, (slope_x, slope_y), sitting.corner_loss)
    gain = np.array(sitting.gain_rgb) * (1 + rng.normal(0, 0.015))
    saturate = sitting.saturation * np.eye(3) + (1 - sitting.saturation) / 3
    image = camera.dimmed(camera.color_mixed(scene, saturate @ np.diag(gain)), light)
    blur_px = max(0.3, sitting.blur_px + float(rng.normal(0, 0.12)))
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur_px), dtype=np.uint8)
    image = camera.motion_blur(image, sitting.motion_px, float(rng.uniform(0, 180)))
    image = camera.add_noise(image, sitting.noise, rng)
    return np.asarray(cv2.LUT(image, camera.film_curve_u8()), dtype=np.uint8)


def render_real(model: PillModel, condition: RealCondition, seed: int) -> tuple[U8, int]:
    """A phone photo, RGB, 300x400 (H,W), and the JPEG quality to store it with."""
    sitting = draw_sitting(model, condition, seed)
    rng = stable_rng(seed, model.design.index, condition.key())
    angle_deg = sitting.phase_deg + condition.rotation_deg + float(np.clip(rng.normal(0, 1.5), -4, 4))
    jitter = np.clip(rng.normal(0, 1.2, 2), -3, 3).astype(np.float32)
    scene = _scene(model, condition, sitting, angle_deg, jitter)
    return _expose(scene, sitting, rng, angle_deg), sitting.jpeg_quality
