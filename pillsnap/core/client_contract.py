"""What a client does to a photo before it sends it, as values: the contract between phones and the server.

Knows the steps, their values, a fingerprint over them, and how to compare what a client says of itself with them.
Knows nothing of pixels: the clients that carry the steps out are in ``pillsnap.clients``, and what the server does
with the photo afterwards is in ``core.preprocessing``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pillsnap.core.files import sha256_json

CONTRACT_VERSION = "1.0"
"""Raised whenever a value or the meaning of a value changes."""

STEPS: tuple[tuple[str, str], ...] = (
    ("decode", "JPEG, PNG or WebP, 8 bits a channel; a file that is cut off or cannot be decoded is an error"),
    ("orientation", "apply the EXIF orientation (1..8) to the pixels first, then drop it"),
    ("color", "keep the stored R, G, B values: no colour profile is applied; grey becomes R = G = B"),
    ("alpha", "drop the alpha channel; do not blend and do not premultiply"),
    (
        "crop",
        "side = min(width, height); left = floor((width - side) / 2); top = floor((height - side) / 2)",
    ),
    (
        "resize",
        "for each output index i and each axis: s = (i + 0.5) * side / target_size - 0.5; low = floor(s); "
        "weight = s - low; the two source pixels are low and low + 1, each clamped to 0..side - 1; "
        "value = (1 - weight) * pixel[low] + weight * pixel[low + 1], across and then down, without rounding between",
    ),
    ("rounding", "floor(value + 0.5); fixed-point arithmetic may differ from that by 1 level"),
    ("upscale", "a square smaller than target_size is enlarged by the same rule"),
    (
        "encode",
        "baseline JPEG with the quantisation tables of the IJG library for jpeg_quality, chroma 4:2:0, "
        "without EXIF, profile or thumbnail",
    ),
)
"""The steps in their order, in words: what the values of the contract mean."""


class ClientContract(BaseModel):
    """Every value of a client's work. The defaults are the published contract (specification, part A)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_size: int = Field(default=512, ge=16, le=2048)
    """Side of the square that is sent, in pixels."""
    jpeg_quality: int = Field(default=85, ge=1, le=100)
    """On the scale of the IJG library (libjpeg)."""
    interpolation: Literal["linear"] = "linear"
    crop: Literal["center"] = "center"
    orientation: Literal["exif_applied_and_dropped"] = "exif_applied_and_dropped"
    color: Literal["stored_values"] = "stored_values"
    """R, G, B as they stand in the file; a colour profile is ignored, as the server ignores it."""
    alpha: Literal["ignored"] = "ignored"
    pixel_centers: Literal["half"] = "half"
    """A pixel's centre lies at index + 0.5."""
    border: Literal["clamp"] = "clamp"
    rounding: Literal["half_up"] = "half_up"
    upscale: Literal[True] = True
    """Photos smaller than ``target_size`` are enlarged."""
    chroma_subsampling: Literal["4:2:0"] = "4:2:0"
    metadata: Literal["none"] = "none"
    """Nothing but pixels leaves the phone: no place, no time, no device."""

    def get_config(self) -> dict[str, Any]:
        """What a client publishes: every value, the version, and the fingerprint over both."""
        values = self._versioned()
        return {**values, "fingerprint": sha256_json(values)[:16]}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when any value or the version does."""
        return str(self.get_config()["fingerprint"])

    def document(self) -> dict[str, Any]:
        """The content of ``contract.json``: the config, and the steps in words and in order."""
        return {
            "format": "pillsnap-client-contract",
            "config": self.get_config(),
            "steps": [{"step": step, "rule": rule} for step, rule in STEPS],
        }

    def _versioned(self) -> dict[str, Any]:
        return {"version": CONTRACT_VERSION, **self.model_dump(mode="json")}


@dataclass(frozen=True)
class ConfigDifference:
    """One value in which a client's published config is not ours. ``str()`` is a line for a log or an answer."""

    key: str
    kind: Literal["differs", "missing", "unknown"]
    expected: Any
    """None where we have no such key."""
    published: Any
    """None where the client publishes no such key."""

    def __str__(self) -> str:
        if self.kind == "missing":
            return f"{self.key}: not published, the contract says {self.expected!r}"
        shown = _short(self.published)
        if self.kind == "unknown":
            return f"{_short(self.key)}: {shown} is not part of contract {CONTRACT_VERSION}"
        return f"{self.key}: the client has {shown}, the contract says {self.expected!r}"


def _short(value: Any) -> str:
    """A value from outside, for a log: never more than 100 characters, control characters escaped."""
    text = reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_client_config(published: Mapping[str, Any], contract: ClientContract | None = None) -> list[ConfigDifference]:
    """Compare what a client publishes of itself with the contract; an empty list means that they agree.

    Values must have the same JSON type: ``"512"``, ``512.0`` and ``True`` are not 512 or 1. The published values may
    come from anywhere: nothing is raised over them, and long ones are shortened in the text of a difference.

    Args:
        published: the client's config, as `ClientContract.get_config` gives it.
        contract: ours; the published contract by default.

    Returns:
        Every difference: our keys in their order first, then the client's own in the order it has them.
    """
    expected = (contract or ClientContract()).get_config()
    differences = []
    for key, value in expected.items():
        if key not in published:
            differences.append(ConfigDifference(key, "missing", value, None))
        elif type(published[key]) is not type(value) or published[key] != value:
            differences.append(ConfigDifference(key, "differs", value, published[key]))
    unknown = [key for key in published if key not in expected]
    return differences + [ConfigDifference(str(key), "unknown", None, published[key]) for key in unknown]
