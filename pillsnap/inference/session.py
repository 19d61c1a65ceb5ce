"""Run a bundle: from the bytes of a photo to ranked drugs. The evaluation judges this very code, and it serves.

Knows the bundle's form (``core.bundle``), the engine that its metadata name, and the shared preprocessing; knows
nothing of manifests, metrics or who asks. Legend: N batch, H height, W width, C channel, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from pillsnap.core.bundle import INPUT_NAME, LARGEST_8_BIT_WEIGHT, LARGEST_BUNDLE, OUTPUT_NAMES, BundleMetadata
from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import BundleError, ConfigError, ImageError
from pillsnap.core.files import sha256_bytes
from pillsnap.core.image_codes import Finding
from pillsnap.core.image_header import ImageHeader
from pillsnap.core.preprocessing import InferencePreprocessor
from pillsnap.inference.engines import Engine, open_engine

UNSURE_BELOW = 0.5
"""Confidence under which an answer is called not sure, where the bundle names none."""
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
"""Operator sets that ONNX Runtime itself has."""


@dataclass(frozen=True)
class Prediction:
    """What a bundle answers to N images."""

    logits_NK: NDArray[np.float32]
    probabilities_NK: NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """One drug that the photo may show; rank 1 is the best."""

    rank: int
    kcode: str
    drug_name: str
    manufacturer: str
    confidence: float
    """Probability, 0..1."""


@dataclass(frozen=True)
class Answer:
    """What a photo may show, and what it cost to say so."""

    candidates: tuple[Candidate, ...]
    probabilities_K: NDArray[np.float32]
    sure: bool
    """Nothing speaks against the picture, and the best candidate's confidence is not under `unsure_below`."""
    doubts: tuple[Finding, ...]
    """Why the picture is too poor for any answer to be sure; codes: `image_codes.DOUBTS`."""
    stages_ms: dict[str, float]
    """Milliseconds of ``decode`` (bytes to pixels, and a look at them; without the header, where that was given),
    ``prepare`` (crop, resize, CLAHE) and ``inference`` (the model and the ranking), in this order."""


class PillSession:
    """A loaded bundle. Safe to share between threads: its engine is, and nothing here changes."""

    def __init__(self, engine: Engine, metadata: BundleMetadata, data: bytes, source: str) -> None:
        self.metadata = metadata
        self.engine = engine
        """What computes; the one that the metadata name."""
        self.sha256 = sha256_bytes(data)
        """Of the bundle's bytes."""
        self.size_bytes = len(data)
        self.source = source
        """The bundle's path, for messages."""
        self.preprocessor = InferencePreprocessor(metadata.preprocessing)

    @classmethod
    def load(cls, path: Path | str | bytes, *, threads: int | None = None) -> Self:
        """Load a bundle and try it on one black image, so that a wrong one fails here and not later.

        Args:
            path: the ``.onnx`` file, or its bytes.
            threads: threads within one inference; by default the cores that this process may use.

        Raises:
            BundleError: cannot be read, is not ONNX, or is not a bundle of this version; its engine is not here.
            ConfigError: ``threads`` is under 1.
        """
        threads = usable_cores() if threads is None else threads
        if threads < 1:
            raise ConfigError(f"threads: must be at least 1, not {threads}")
        source = "bundle" if isinstance(path, bytes) else str(path)
        data = path if isinstance(path, bytes) else _read(Path(path))
        model = _parse(data, source)
        _check_self_contained(model, source)
        metadata = BundleMetadata.from_props({prop.key: prop.value for prop in model.metadata_props}, source)
        _check_interface(model.graph, metadata, source)
        _check_sums(model.graph, source)
        del model  # the weights are in memory twice while it is there
        loaded = cls(open_engine(metadata.engine, data, source, threads), metadata, data, source)
        side = metadata.preprocessing.target_size
        loaded._run(np.zeros((1, side, side, 3), np.uint8))
        return loaded

    @property
    def threads(self) -> int:
        """Threads within one inference."""
        return self.engine.threads

    @property
    def provider(self) -> str:
        """What computes, e.g. ``CPUExecutionProvider`` (ONNX Runtime's) or ``CPU OpenVINO bf16``."""
        return self.engine.provider

    @property
    def unsure_below(self) -> float:
        """Confidence (0..1) under which an answer is called not sure."""
        fitted = self.metadata.unsure_below
        return UNSURE_BELOW if fitted is None else fitted

    def predict(self, image_NHWC_u8: NDArray[np.uint8]) -> Prediction:
        """Logits and probabilities of N prepared images (see `InferencePreprocessor`).

        Raises:
            ImageError: not uint8 of N × size × size × 3 with N ≥ 1.
            BundleError: the answer is not finite; such a model must not answer at all.
        """
        side = self.metadata.preprocessing.target_size
        wrong_shape = image_NHWC_u8.ndim != 4 or image_NHWC_u8.shape[1:] != (side, side, 3)
        if wrong_shape or len(image_NHWC_u8) < 1 or image_NHWC_u8.dtype != np.uint8:
            raise ImageError(
                f"{self.source}: expects uint8 images of N×{side}×{side}×3, "
                f"got {image_NHWC_u8.dtype} of shape {image_NHWC_u8.shape}"
            )
        logits_NK, probabilities_NK = self._run(image_NHWC_u8)
        if not (np.isfinite(logits_NK).all() and np.isfinite(probabilities_NK).all()):
            raise BundleError(f"{self.source}: the model answered NaN or infinity; train or export it again")
        return Prediction(logits_NK, probabilities_NK)

    def identify(self, photo: bytes, top: int = 5, name: str = "image") -> tuple[Candidate, ...]:
        """The ``top`` most probable drugs of one photo, the best first. `answer` tells whether that is sure."""
        return self.answer(photo, top, name).candidates

    def answer(self, photo: bytes, top: int = 5, name: str = "image", header: ImageHeader | None = None) -> Answer:
        """The ``top`` most probable drugs of one photo (fewer where there are fewer drugs in use), whether that is
        sure, and the times; ``header`` as in `InferencePreprocessor.decode_examined`.

        Raises:
            ImageError: the photo cannot be decoded; the message starts with ``name``.
            BundleError: the answer is not finite.
            ConfigError: ``top`` is under 1.
        """
        if top < 1:
            raise ConfigError(f"top: at least 1 answer must be asked for, not {top}")
        start = time.perf_counter()
        image_HWC_u8, doubts = self.preprocessor.decode_examined(photo, name, header)
        decoded = time.perf_counter()
        image_NHWC_u8 = self.preprocessor.prepare_pixels(image_HWC_u8)
        prepared = time.perf_counter()
        probabilities_K = self.predict(image_NHWC_u8).probabilities_NK[0]
        candidates = self.rank(probabilities_K, top)
        done = time.perf_counter()
        stages = {"decode": decoded - start, "prepare": prepared - decoded, "inference": done - prepared}
        sure = not doubts and candidates[0].confidence >= self.unsure_below
        stages_ms = {stage: 1000 * seconds for stage, seconds in stages.items()}
        return Answer(candidates, probabilities_K, sure, doubts, stages_ms)

    def rank(self, probabilities_K: NDArray[np.float32], top: int) -> tuple[Candidate, ...]:
        """The ``top`` most probable drugs in use, the best first; of equal probabilities the lower index."""
        ordered = np.argsort(-probabilities_K, kind="stable")
        best = [int(k) for k in ordered if not self.metadata.classes[k].retired][:top]
        return tuple(self._candidate(rank, k, probabilities_K) for rank, k in enumerate(best, start=1))

    def _candidate(self, rank: int, index: int, probabilities_K: NDArray[np.float32]) -> Candidate:
        entry = self.metadata.classes[index]
        return Candidate(rank, entry.kcode, entry.drug_name, entry.manufacturer, float(probabilities_K[index]))

    def _run(self, image_NHWC_u8: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        outputs = self.engine.run(image_NHWC_u8)
        expected = (len(image_NHWC_u8), len(self.metadata.classes))
        for name, output in zip(OUTPUT_NAMES, outputs, strict=True):
            if output.shape != expected:
                raise BundleError(
                    f"{self.source}: output {name!r} has shape {output.shape}, expected {expected} "
                    "(images, classes of the metadata); export it again"
                )
        return outputs


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_BUNDLE:
            raise BundleError(
                f"{path}: {path.stat().st_size / 1e6:.0f} MB; a bundle has at most {LARGEST_BUNDLE / 1e6:.0f}"
            )
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(data: bytes, source: str) -> onnx.ModelProto:
    if not data:
        raise BundleError(f"{source}: the file is empty; make a bundle with: pillsnap export")
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise BundleError(f"{source}: is not an ONNX model, or one that is cut off ({error}); copy it again") from error


def _check_self_contained(model: onnx.ModelProto, source: str) -> None:
    """No weights in other files, wherever in the graph, and no operators that somebody else would have to bring.

    An engine would look for the files from the current folder on, and they are in no digest.
    """
    foreign = sorted({entry.domain for entry in model.opset_import} - _DOMAINS)
    if foreign or model.functions:
        named = ", ".join(foreign) or ", ".join(sorted(function.name for function in model.functions))
        raise BundleError(f"{source}: uses custom operators ({named[:200]}); export it with standard ones")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise BundleError(
                f"{source}: weights {tensor.name[:100]!r} lie in another file; a bundle is one file: export it again"
            )


def _check_sums(graph: onnx.GraphProto, source: str) -> None:
    """8-bit weights whose sums overflow on some processors: what was judged on one answers otherwise on another."""
    for tensor in _tensors(graph):
        if tensor.data_type != onnx.TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        largest = int(np.abs(onnx.numpy_helper.to_array(tensor).astype(np.int16)).max(initial=0))
        if largest > LARGEST_8_BIT_WEIGHT:
            raise BundleError(
                f"{source}: its 8-bit weights reach {largest} ({tensor.name[:100]}), and above {LARGEST_8_BIT_WEIGHT} "
                "processors without VNNI compute other answers; make the variant again with: pillsnap quantise"
            )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph and of the graphs within its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def _check_interface(graph: onnx.GraphProto, metadata: BundleMetadata, source: str) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if [(value.name, *_form(value)) for value in inputs] != [(INPUT_NAME, onnx.TensorProto.UINT8, 4)]:
        found = ", ".join(_described(value) for value in inputs)
        raise BundleError(f"{source}: expected one input '{INPUT_NAME}' uint8 N,H,W,C, found: {found}")
    batch, *axes = inputs[0].type.tensor_type.shape.dim
    side = metadata.preprocessing.target_size
    for axis, dimension, expected in zip("HWC", axes, (side, side, 3), strict=True):
        if dimension.HasField("dim_value") and dimension.dim_value != expected:
            raise BundleError(
                f"{source}: axis {axis} of the input is {dimension.dim_value}, its metadata says {expected}"
            )
    if batch.HasField("dim_value"):
        raise BundleError(f"{source}: takes {batch.dim_value} image(s) at a time; export with a dynamic batch")
    outputs = {value.name: value for value in graph.output}
    for name in OUTPUT_NAMES:
        if name not in outputs or _form(outputs[name]) != (onnx.TensorProto.FLOAT, 2):
            found = ", ".join(_described(value) for value in outputs.values())
            raise BundleError(f"{source}: expected an output {name!r} float32 N,K, found: {found}")
        classes = outputs[name].type.tensor_type.shape.dim[1]
        if classes.HasField("dim_value") and classes.dim_value != len(metadata.classes):
            raise BundleError(
                f"{source}: output {name!r} has {classes.dim_value} classes, its metadata {len(metadata.classes)}; "
                "export again"
            )


def _form(value: onnx.ValueInfoProto) -> tuple[int, int]:
    """Type of the elements, and number of axes."""
    tensor = value.type.tensor_type
    return tensor.elem_type, len(tensor.shape.dim)


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    axes = ",".join(axis.dim_param or str(axis.dim_value) for axis in tensor.shape.dim)
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} {axes}"
