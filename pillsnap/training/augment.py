"""Augmentation of one training image, on uint8 pixels, before normalisation.

Rotation and random crop are one warp (one interpolation instead of two). OpenCV does the work: it is three to
forty times faster than tensor transforms at these sizes, and each image draws its own parameters.
Legend: H height, W width, C channel.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.core.experiment import AugmentationConfig, ColorJitterConfig

ImageU8 = NDArray[np.uint8]
_GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma of ITU-R BT.601, as in JPEG."""
_KEEP_33 = np.eye(3, dtype=np.float32)
_GRAY_33 = np.tile(_GRAY_WEIGHTS, (3, 1))


def augment(image_HWC_u8: ImageU8, config: AugmentationConfig, rng: np.random.Generator) -> ImageU8:
    """One random version of a square image: crop and rotation, colour, blur. The size stays."""
    image = _rotate_and_crop(image_HWC_u8, config, rng)
    image = _jitter_color(image, config.color_jitter, rng)
    if config.blur.probability > rng.random():
        sigma = rng.uniform(*config.blur.sigma)
        image = cv2.GaussianBlur(image, (config.blur.kernel, config.blur.kernel), sigma)
    return np.asarray(image, np.uint8)


def _rotate_and_crop(image: ImageU8, config: AugmentationConfig, rng: np.random.Generator) -> Any:
    """Rotate about the centre of a random crop of the given area and aspect ratio, and scale it to the size."""
    size = image.shape[0]
    angle = math.radians(rng.uniform(-config.rotation_degrees, config.rotation_degrees))
    area = rng.uniform(*config.random_crop.scale)
    low, high = config.random_crop.ratio
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    width = min(math.sqrt(area * ratio), 1.0) * size
    height = min(math.sqrt(area / ratio), 1.0) * size
    center_x = size / 2 + rng.uniform(-0.5, 0.5) * (size - width)
    center_y = size / 2 + rng.uniform(-0.5, 0.5) * (size - height)
    # Output pixel (x, y) is read at M · (x, y): centred, scaled to the crop, turned, moved to the crop's centre.
    scale_x, scale_y = width / size, height / size
    cos, sin = math.cos(angle), math.sin(angle)
    half = (size - 1) / 2
    matrix = np.array(
        [
            [cos * scale_x, -sin * scale_y, center_x - 0.5 - (cos * scale_x - sin * scale_y) * half],
            [sin * scale_x, cos * scale_y, center_y - 0.5 - (sin * scale_x + cos * scale_y) * half],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _jitter_color(image: Any, config: ColorJitterConfig, rng: np.random.Generator) -> Any:
    """Brightness, contrast and saturation as one 3×4 colour matrix; hue by turning HSV's angle."""
    brightness = 1 + rng.uniform(-1, 1) * config.brightness
    contrast = 1 + rng.uniform(-1, 1) * config.contrast
    saturation = 1 + rng.uniform(-1, 1) * config.saturation
    turn = rng.uniform(-1, 1) * config.hue
    if config.brightness or config.contrast or config.saturation:
        gray_mean = float(np.dot(cv2.mean(image)[:3], _GRAY_WEIGHTS)) * brightness
        mix = saturation * _KEEP_33 + (1 - saturation) * _GRAY_33
        matrix = np.empty((3, 4), np.float32)
        matrix[:, :3] = mix * (brightness * contrast)
        matrix[:, 3] = (1 - contrast) * gray_mean
        image = cv2.transform(image, matrix)
    if config.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[:, :, 0] += np.uint8(round(turn * 256) % 256)  # wraps around, as an angle should
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image
