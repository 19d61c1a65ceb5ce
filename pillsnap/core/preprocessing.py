"""The one implementation of preprocessing: training, evaluation and serving all call it.

The way from bytes to a model's input is `InferencePreprocessor.prepare_for_model`, and there is no other. The
fingerprint of its spec travels in the manifest, the prepared cache and the bundle, so that a model is never fed by
another preprocessing than its own. Legend: N batch, H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.core.boxes import Box, crop_to_box
from pillsnap.core.errors import ImageError
from pillsnap.core.image_codes import Finding, Refusal
from pillsnap.core.image_header import ImageHeader
from pillsnap.core.image_quality import MEASURED_FROM_PX, SMALL_SIDE, doubts
from pillsnap.core.images import decode_grey, decode_inspected, decode_rgb, inspect, reduction
from pillsnap.core.preprocessing_spec import PreprocessingSpec

_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


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


class Examined(NamedTuple):
    """A photo's pixels, and why no answer to them is sure."""

    image_u8: NDArray[np.uint8]
    doubts: tuple[Finding, ...]
    """Codes: `image_codes.DOUBTS`."""


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

    def decode_examined(self, data: bytes, name: str = "image", header: ImageHeader | None = None) -> Examined:
        """As `decode`, and what the whole picture gives to doubt: the figures are those that the audit takes.

        Args:
            data: the photo's file.
            name: how messages call it.
            header: what `inspect` has said of ``data``, where it was asked already.

        Raises:
            ImageError: the message starts with ``name``.
        """
        header = header or inspect(data, name)
        scale = reduction(header, self.spec.target_size) if self.spec.decoding == "reduced" else 1
        decoded = seen = decode_inspected(data, header, scale, name)
        if scale > 1 and min(decoded.pixels.shape[:2]) < SMALL_SIDE:  # too small to tell sharp from blurred
            seen = decode_grey(data, header, reduction(header, MEASURED_FROM_PX), name)
        return Examined(decoded.pixels, doubts(seen))

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
