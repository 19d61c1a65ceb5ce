"""What the preprocessing is, in values: its spec and its fingerprint. How it is computed stands in ``preprocessing``.

Apart from it, so that who only reads or compares a spec (bundle metadata, experiment, registry) loads no OpenCV.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pillsnap.core.files import sha256_json

PREPROCESSING_VERSION = "1.1"
REDUCED_TOLERANCE_LEVELS = 2.0
"""How far ``decoding: reduced`` may be from an alias-free shrinking of all pixels: mean absolute difference, of 255
levels, before CLAHE. ``benchmarks/preprocessing.py`` measures it on photos; a test holds it on drawn pictures."""
_Positive = Annotated[float, Field(gt=0)]


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
