"""The second waist: the bundle is ONE ``.onnx`` file that describes itself.

Input ``image`` uint8 N,H,W,C (what the preprocessor gives before normalisation), outputs ``logits`` and
``probabilities`` N,K. Its metadata holds the classes, the preprocessing and where it came from. Knows the
metadata; knows nothing of how the graph is made or run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from pillsnap.core.errors import BundleError
from pillsnap.core.preprocessing_spec import PREPROCESSING_VERSION, PreprocessingSpec
from pillsnap.core.text import Line

BUNDLE_VERSION = "1"
INPUT_NAME = "image"
OUTPUT_NAMES = ("logits", "probabilities")
RETIRED_LOGIT = -1e9
"""Logit of a class whose drug is retired: finite, and its probability is exactly 0 at any temperature."""
LARGEST_BUNDLE = 1_000_000_000
"""Bytes. What is larger is not read at all: six times the most that the gate lets through."""
LARGEST_8_BIT_WEIGHT = 64
"""Of the int8 weights, so that every processor computes the same sums. One without VNNI adds pairs of products of a
uint8 activation with an int8 weight in 16 bits, and cuts off what does not fit: 2 · 255 · 64 does, 2 · 255 · 65 not."""
MOST_OVER_MEDIAN = 3.0
"""Largest end of a range, as a multiple of that of the median image. A net may answer the photos of one easy drug with
values up to 60 times as large as all others: ranges that hold them leave the others no steps, and no percentile of all
values sees them, because such a photo's are large everywhere. Of a net without them (one was measured) nothing is cut
(docs/decisions/0009)."""
CalibrationName = Literal["image-median", "percentile", "minmax", "entropy"]
"""How the range of a layer's input is chosen: from the smallest to the largest value of all images, but behind the
first layer at most ``MOST_OVER_MEDIAN`` times the median image's; between percentiles of all values; all of it; by
least entropy."""
EngineName = Literal["onnxruntime", "openvino", "openvino-bf16"]
"""What computes the graph; OpenVINO in float32 or with its bf16 hint."""
ENGINE_NAMES: dict[EngineName, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO in bf16",
}
"""As people read them."""
_KEY = "pillsnap"
_PREFIX = "pillsnap."


class BundleClass(BaseModel):
    """One class of the model, by index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kcode: str
    drug_name: Line
    manufacturer: Line
    retired: StrictBool = Field(default=False, exclude_if=lambda value: not value)
    """The drug left the list: its place is kept, so that no index shifts, but it is never answered."""


class FirstWeights(BaseModel):
    """Published weights that the first training began with; later trainings may have gone on from its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """Package and version, name at the hub, or file, in words."""
    sha256: str
    """Of the file; of a hub's weights: of the loaded tensors."""
    license: str
    """SPDX identifier; empty: not known."""


class Provenance(BaseModel):
    """Where a bundle came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_hash: str
    backbone: str
    git_commit: str
    run_id: str
    """MLflow run of the training; empty where there was none."""
    pillsnap_version: str
    also_learned_from: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)
    """Hashes of other manifests that the first weights or the teacher learned from, and theirs before them."""
    first_weights: FirstWeights | None = Field(default=None, exclude_if=lambda value: value is None)
    """None: the first training began with random weights, or does not say."""


class PyTorchParity(BaseModel):
    """How the bundle agreed with the checkpoint in PyTorch, measured when it was exported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    """Test images."""
    top1_agreement: float
    largest_relative_difference: float
    """Of a logit, as a share of the largest logit."""


class Calibration(BaseModel):
    """How a bundle's numbers became 8-bit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: CalibrationName
    images: int
    """Training images that set the ranges."""
    manifest_hash: str
    """Of their data set."""
    float_layers: tuple[str, ...]
    """Layers that compute in floating point, by their name in the graph."""
    layers: int
    """Convolutions and matrix products in all."""
    biases_corrected: bool = Field(default=False, exclude_if=lambda value: not value)
    """Of what the rounding of weights shifts, on average."""


class SourceParity(BaseModel):
    """How a variant agrees with the bundle that it was made from, on validation images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    top1_agreement: float
    mean_relative_difference: float
    """Of a logit, as a share of the largest logit."""
    largest_relative_difference: float


class BundleMetadata(BaseModel):
    """What a bundle says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[BundleClass, ...]
    preprocessing: PreprocessingSpec
    preprocessing_version: str = PREPROCESSING_VERSION
    preprocessing_fingerprint: str
    temperature: float = Field(gt=0)
    """probabilities = softmax(logits / temperature), fitted on the validation split."""
    unsure_below: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda value: value is None)
    """Confidence under which an answer is to be called not sure, fitted on the validation split; None: of a bundle that
    was made before it was fitted."""
    provenance: Provenance
    parity: PyTorchParity | None = Field(default=None, exclude_if=lambda value: value is None)
    """None: of a bundle that was made before it was kept."""
    engine: EngineName = Field(default="onnxruntime", exclude_if=lambda value: value == "onnxruntime")
    """What computes the graph, where it is measured and where it serves: the gate judges both as one digest."""
    precision: Literal["float32", "int8"] = Field(default="float32", exclude_if=lambda value: value == "float32")
    """Of the weights and of what is multiplied with them."""
    source_sha256: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of the bundle that this one was made from (`pillsnap quantise`); None: exported from a checkpoint."""
    source_parity: SourceParity | None = Field(default=None, exclude_if=lambda value: value is None)
    calibration: Calibration | None = Field(default=None, exclude_if=lambda value: value is None)
    """None: nothing is 8-bit."""

    @property
    def retired_indices(self) -> tuple[int, ...]:
        """Indices that are never answered."""
        return tuple(index for index, entry in enumerate(self.classes) if entry.retired)

    @property
    def numbers_and_engine(self) -> str:
        """``8 bits, OpenVINO``: what its weights are, and what computes it, for people."""
        return f"{'8 bits' if self.precision == 'int8' else 'float'}, {ENGINE_NAMES[self.engine]}"

    def main_facts(self) -> dict[str, str | int]:
        """What tells two bundles apart at a glance, each a parameter of the runs that hold or measure it."""
        return {
            "backbone": self.provenance.backbone,
            "pixels": self.preprocessing.target_size,
            "classes": len(self.classes) - len(self.retired_indices),
            "precision": self.precision,
            "engine": self.engine,
        }

    def to_props(self) -> dict[str, str]:
        """ONNX ``metadata_props``: the whole under one key, and readable copies of the main facts."""
        props = {
            f"{_PREFIX}bundle_version": BUNDLE_VERSION,
            _KEY: json.dumps(self.model_dump(mode="json"), ensure_ascii=False, sort_keys=True),
            f"{_PREFIX}backbone": self.provenance.backbone,
            f"{_PREFIX}classes": str(len(self.classes)),
            f"{_PREFIX}input_size": str(self.preprocessing.target_size),
            f"{_PREFIX}manifest_hash": self.provenance.manifest_hash,
        }
        if self.engine != "onnxruntime":
            props[f"{_PREFIX}engine"] = self.engine
        if self.precision != "float32":
            props[f"{_PREFIX}precision"] = self.precision
        return props

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str) -> Self:
        """Read the metadata of an ONNX file.

        Raises:
            BundleError: not a bundle, another bundle version, or a preprocessing that this version of the
                platform does not have.
        """
        version = props.get(f"{_PREFIX}bundle_version")
        if version is None:
            raise BundleError(f"{source}: is an ONNX file without PillSnap's metadata; make one with: pillsnap export")
        if version != BUNDLE_VERSION:
            raise BundleError(f"{source}: bundle version {version}; this PillSnap reads version {BUNDLE_VERSION}")
        try:
            raw: Any = json.loads(props[_KEY])
            metadata = cls.model_validate(raw)
        except (KeyError, ValueError, ValidationError) as error:
            raise BundleError(f"{source}: the bundle's metadata cannot be read ({error})") from error
        if metadata.preprocessing_fingerprint != metadata.preprocessing.fingerprint:
            raise BundleError(
                f"{source}: made for preprocessing {metadata.preprocessing_fingerprint} (version "
                f"{metadata.preprocessing_version}); this PillSnap would preprocess by "
                f"{metadata.preprocessing.fingerprint}. Export the model again"
            )
        return metadata
