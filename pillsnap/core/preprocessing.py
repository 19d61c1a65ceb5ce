"""The one implementation of preprocessing: training, evaluation and serving all call it.

The way from bytes to a model's input is `InferencePreprocessor.prepare_for_model`, and there is no other. The
fingerprint of its spec travels in the manifest, the prepared cache and the bundle, so that a model is never fed by
another preprocessing than its own. Legend: N batch, H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pillsnap.core.boxes import Box, crop_to_box
from pillsnap.core.errors import ImageError
from pillsnap.core.files import sha256_json
from pillsnap.core.image_codes import Refusal
from pillsnap.core.images import decode_rgb

PREPROCESSING_VERSION = "1.1"
REDUCED_TOLERANCE_LEVELS = 2.0
"""How far ``decoding: reduced`` may be from an alias-free shrinking of all pixels: mean absolute difference, of 255
levels, before CLAHE. ``benchmarks/preprocessing.py`` measures it on photos; a test holds it on drawn pictures."""
_Positive = Annotated[float, Field(gt=0)]
_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


class ClaheSpec(BaseModel):
    """Contrast-limited adaptive histogram equalisation on the L channel of LAB."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = True
    clip_limit: float = Field(default=2.0, gt=0, le=100)
    tile_grid: int = Field(default=8, ge=1, le=64)
    """Tiles per side."""


class PreprocessingSpec(BaseModel):
    """Every value of the preprocessing. The defaults are those of the specification (part A)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    target_size: int = Field(default=512, ge=16, le=2048)
    """Side of the square that the model sees, in pixels."""
    interpolation: Literal["linear", "area"] = "linear"
    """``area`` averages the pixels: for targets far smaller than the photo, where ``linear`` aliases."""
    decoding: Literal["exact", "reduced"] = "exact"
    """``exact`` decodes all pixels: the specification's steps to the bit, which any other system can repeat.
    ``reduced`` decodes a large JPEG at 1/2, 1/4 or 1/8, never under the target size: 1.7 to 5.9 times faster at 12
    megapixels and with less aliasing, but other pixels, which only libjpeg's scaled decoding gives. Nothing changes
    where the short side is under twice the target, nor for PNG and WebP."""
    clahe: ClaheSpec = ClaheSpec()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel R, G, B, on the scale 0..1 (ImageNet)."""
    std: tuple[_Positive, _Positive, _Positive] = (0.229, 0.224, 0.225)

    def get_config(self) -> dict[str, Any]:
        """All values, the fixed ones and the version too, in the form other systems synchronise with."""
        return {
            "version": PREPROCESSING_VERSION,
            "channel_order": "RGB",
            "orientation": "EXIF applied before the crop",
            "crop": "center_square",
            "alpha": "ignored",
            "animation": "first frame",
            **self.model_dump(mode="json"),
        }

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when anything of the preprocessing does."""
        return sha256_json(self.get_config())[:16]


class UnifiedPreprocessor:
    """Centre-crop to the short side, resize, CLAHE; then normalise. Safe to share between threads."""

    def __init__(self, spec: PreprocessingSpec | None = None) -> None:
        self.spec = spec or PreprocessingSpec()
        self._mean = np.asarray(self.spec.mean, np.float32)
        self._std = np.asarray(self.spec.std, np.float32)

    def get_config(self) -> dict[str, Any]:
        """Every value and a version (see `PreprocessingSpec.get_config`)."""
        return self.spec.get_config()

    def to_model_input(self, image_rgb_HWC_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop, resize, CLAHE: what a bundle takes (normalisation is inside its graph).

        Returns:
            ``image_HWC_u8`` of target_size × target_size × 3.

        Raises:
            ImageError: not H×W×3 uint8, or without pixels.
        """
        return self.equalise(self.crop_and_resize(image_rgb_HWC_u8))

    def crop_and_resize(self, image_rgb_HWC_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The first half of `to_model_input`: the centre square, at the target size.

        Raises:
            ImageError: not H×W×3 uint8, or without pixels.
        """
        image = image_rgb_HWC_u8
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < 1:
            raise ImageError(
                f"expected H×W×3 uint8 pixels, got {image.dtype} of shape {image.shape}", Refusal.WRONG_PIXELS
            )
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[top : top + side, left : left + side]
        size = self.spec.target_size
        resized = cv2.resize(square, (size, size), interpolation=_INTERPOLATION[self.spec.interpolation])
        return np.asarray(resized, np.uint8)

    def equalise(self, square_HWC_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The second half of `to_model_input`: CLAHE, where the spec asks for it."""
        return np.ascontiguousarray(self._clahe(square_HWC_u8), np.uint8)

    def process(self, image_rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The whole of the preprocessing: ``image_CHW_f32``, normalised. Raises ImageError."""
        image_HWC_f32 = self.to_model_input(image_rgb).astype(np.float32) / np.float32(255.0)
        normalized = (image_HWC_f32 - self._mean) / self._std
        return np.ascontiguousarray(normalized.transpose(2, 0, 1), np.float32)

    def _clahe(self, image_HWC_u8: Any) -> Any:
        if not self.spec.clahe.enabled:
            return image_HWC_u8
        lab = cv2.cvtColor(image_HWC_u8, cv2.COLOR_RGB2LAB)
        grid = self.spec.clahe.tile_grid
        # A new object per call: one cv2.CLAHE must not be used from two threads.
        lightness = cv2.createCLAHE(self.spec.clahe.clip_limit, (grid, grid)).apply(cv2.extractChannel(lab, 0))
        return cv2.cvtColor(cv2.insertChannel(lightness, lab, 0), cv2.COLOR_LAB2RGB)


class InferencePreprocessor:
    """From the bytes of photos to the input of a bundle: decode, RGB, the same `UnifiedPreprocessor`.

    Safe to share between threads.
    """

    def __init__(self, spec: PreprocessingSpec | None = None) -> None:
        self.preprocessor = UnifiedPreprocessor(spec)

    @property
    def spec(self) -> PreprocessingSpec:
        """How it prepares."""
        return self.preprocessor.spec

    def prepare_for_model(self, data: bytes, name: str = "image", box: Box | None = None) -> NDArray[np.uint8]:
        """One photo: ``image_NHWC_u8`` with N = 1.

        Args:
            data: the photo's file.
            name: how messages call it.
            box: the pill in it, in pixels of the upright picture; the crop is then around the pill, and all pixels
                are decoded. None: the centre square.

        Raises:
            ImageError: the message starts with ``name``.
        """
        return self.prepare_pixels(self.decode(data, name, box))

    def decode(self, data: bytes, name: str = "image", box: Box | None = None) -> NDArray[np.uint8]:
        """The first half of `prepare_for_model`: ``image_rgb_HWC_u8``, upright; with a box only its surroundings.

        Raises:
            ImageError: the message starts with ``name``.
        """
        if box is not None:
            return _cropped(decode_rgb(data, name), box, name)
        return decode_rgb(data, name, self.spec.target_size if self.spec.decoding == "reduced" else None)

    def prepare_pixels(self, image_rgb_HWC_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The second half of `prepare_for_model`: ``image_NHWC_u8`` with N = 1. Raises ImageError."""
        return self.preprocessor.to_model_input(image_rgb_HWC_u8)[np.newaxis]

    def prepare_batch(self, photos: Sequence[bytes]) -> NDArray[np.uint8]:
        """N photos: ``image_NHWC_u8``. Raises ImageError, also for no photo at all."""
        if not photos:
            raise ImageError("a batch needs at least one photo", Refusal.EMPTY_BATCH)
        return np.concatenate([self.prepare_for_model(data, f"image {i}") for i, data in enumerate(photos)])


def _cropped(image_HWC_u8: NDArray[np.uint8], box: Box, name: str) -> NDArray[np.uint8]:
    try:
        return crop_to_box(image_HWC_u8, box)
    except ImageError as error:
        raise ImageError(f"{name}: {error}", error.code) from None
