"""The reference client: what a phone does to a photo, in Python.

Knows the steps of the contract and OpenCV; knows nothing of networks or of the server's preprocessing.
Legend: H height, W width, C channel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pillsnap.core.client_contract import ClientContract
from pillsnap.core.errors import ImageError
from pillsnap.core.images import decode_rgb

FOLDER = Path(__file__).parent
"""Where ``contract.json``, the browser and the Flutter client and the golden vectors lie, also when installed."""


class PhoneClient:
    """Carries out a `ClientContract`. Safe to share between threads: nothing here changes."""

    def __init__(self, contract: ClientContract | None = None) -> None:
        self.contract = contract or ClientContract()

    def get_config(self) -> dict[str, Any]:
        """What this client publishes of itself."""
        return self.contract.get_config()

    def prepare(self, photo: bytes, name: str = "photo") -> bytes:
        """From the photo's file to the JPEG that is sent.

        Raises:
            ImageError: the photo cannot be decoded; the message starts with ``name``.
        """
        return self.encode(self.square(photo, name))

    def square(self, photo: bytes, name: str = "photo") -> NDArray[np.uint8]:
        """Everything before the JPEG: upright, cropped, resized.

        Returns:
            ``image_rgb_HWC_u8`` of target_size × target_size × 3.

        Raises:
            ImageError: the photo cannot be decoded; the message starts with ``name``.
        """
        image_HWC_u8 = decode_rgb(photo, name)
        height, width = image_HWC_u8.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image_HWC_u8[top : top + side, left : left + side]
        size = self.contract.target_size
        return np.ascontiguousarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)

    def encode(self, image_rgb_HWC_u8: NDArray[np.uint8]) -> bytes:
        """The last step alone: a baseline JPEG, 4:2:0, without metadata. Raises ImageError where OpenCV cannot."""
        options = [
            *(cv2.IMWRITE_JPEG_QUALITY, self.contract.jpeg_quality),
            *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
            *(cv2.IMWRITE_JPEG_PROGRESSIVE, 0),
        ]
        done, buffer = cv2.imencode(".jpg", cv2.cvtColor(image_rgb_HWC_u8, cv2.COLOR_RGB2BGR), options)
        if not done:
            raise ImageError(f"a picture of shape {image_rgb_HWC_u8.shape} cannot be written as JPEG")
        return buffer.tobytes()
