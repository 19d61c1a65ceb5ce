"""What computes a bundle's graph on the CPU: ONNX Runtime, or OpenVINO.

A bundle names its engine in its metadata, so that the digest that the gate judges stands for both: nothing can be
served by another engine than it was measured with. Knows the two libraries; knows nothing of photos or classes.
Legend: N batch, H height, W width, C channel, K classes.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from pillsnap.core.bundle import INPUT_NAME, OUTPUT_NAMES, EngineName
from pillsnap.core.errors import BundleError, EngineError

OPENVINO_ADVICE = "pip install 'pillsnap[openvino]' -c constraints.txt"
_ORT_PROVIDER = "CPUExecutionProvider"
_ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)
_Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]


class Engine(Protocol):
    """Computes one graph.

    Safe to share between threads: ``run`` may be called from several at once, and nothing else changes. It keeps no
    reference to the images, and the caller owns what it returns.
    """

    name: EngineName
    library: str
    """The package that computes, as pip calls it."""
    version: str
    """Of the library."""
    provider: str
    """What computes, in the words of the evidence; starts with CPU (the gate's ``latency_profile.provider``)."""
    threads: int
    """Threads within one inference."""

    def run(self, image_NHWC_u8: NDArray[np.uint8]) -> _Outputs:
        """``logits_NK`` and ``probabilities_NK``, as the graph gives them: nothing of them is checked.

        Raises:
            BundleError: the graph cannot be computed.
        """
        ...


def open_engine(name: EngineName, data: bytes, source: str, threads: int) -> Engine:
    """The engine ``name`` with a graph in it.

    Args:
        name: as the bundle's metadata have it.
        data: the bytes of the ``.onnx`` file.
        source: how messages call the bundle.
        threads: within one inference, at least 1.

    Raises:
        BundleError: the engine does not read the graph.
        EngineError: it is not installed, or not for this processor.
    """
    if name == "onnxruntime":
        return _OnnxRuntime(data, source, threads)
    return _OpenVino(name, data, source, threads)


def session_options(threads: int) -> ort.SessionOptions:
    """How every session of ONNX Runtime computes: its threads sleep while they wait for each other.

    Threads that spin between two layers take the cores from the decoder (worse p95 with fast nets) and from other
    processes.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class _OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name: EngineName = "onnxruntime"
    library = "onnxruntime"
    version: str = ort.__version__

    def __init__(self, data: bytes, source: str, threads: int) -> None:
        try:
            self._session = ort.InferenceSession(data, session_options(threads), providers=[_ORT_PROVIDER])
        except _ORT_ERRORS as error:
            raise BundleError(
                f"{source}: is not an ONNX model that ONNX Runtime {ort.__version__} reads ({error})"
            ) from error
        self.threads = int(self._session.get_session_options().intra_op_num_threads)
        self.provider = str(self._session.get_providers()[0])
        self._source = source

    def run(self, image_NHWC_u8: NDArray[np.uint8]) -> _Outputs:
        try:
            logits_NK, probabilities_NK = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: image_NHWC_u8})
        except _ORT_ERRORS as error:
            raise BundleError(f"{self._source}: the model cannot be run ({error}); export it again") from error
        return np.asarray(logits_NK), np.asarray(probabilities_NK)


class _OpenVino:
    """OpenVINO's CPU plugin, compiled from the bundle's own bytes. Keeps no cache and sends nothing anywhere.

    Compiled for one photo at a time, which a batch goes through one by one: with a batch of any size in the graph each
    answer takes longer, and a batch brings OpenVINO nothing (docs/decisions/0009). So it is also the very same
    computation for a photo, alone or among others.
    """

    library = "openvino"

    def __init__(self, name: EngineName, data: bytes, source: str, threads: int) -> None:
        openvino = _import_openvino(source, name)
        self.name = name
        self.version = str(openvino.__version__).partition("-")[0]
        precision = "bf16" if name == "openvino-bf16" else "f32"
        self.provider = f"CPU OpenVINO {precision}"
        self._source = source
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError(
                f"{source}: is for engine {name!r}, and this processor "
                f"({core.get_property('CPU', 'FULL_DEVICE_NAME')}) does not compute in bf16; take a machine with "
                "AVX512_BF16 or AMX, or make a variant with: pillsnap quantise --engine openvino"
            )
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_HYPER_THREADING": True,  # `threads` counts what the system calls cores
            "ENABLE_CPU_PINNING": False,  # several processes on one machine would all sit on the same cores
        }
        try:
            model = core.read_model(data, b"")
            shape = model.input(INPUT_NAME).partial_shape
            shape[0] = 1
            model.reshape({INPUT_NAME: shape})
            self._model: Any = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(
                f"{source}: is not an ONNX model that OpenVINO {self.version} reads ({_first_line(error)})"
            ) from error
        self.threads = int(self._model.get_property("INFERENCE_NUM_THREADS"))
        self._outputs = [self._model.output(output) for output in OUTPUT_NAMES]
        self._idle: deque[Any] = deque()  # a request serves one call at a time; append and pop are atomic

    def run(self, image_NHWC_u8: NDArray[np.uint8]) -> _Outputs:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        try:
            answers = []
            for image_HWC_u8 in image_NHWC_u8:
                found = request.infer({INPUT_NAME: np.ascontiguousarray(image_HWC_u8[np.newaxis])})
                answers.append([np.array(found[output]) for output in self._outputs])  # the next run writes over them
            logits_NK, probabilities_NK = (np.concatenate(rows_1K) for rows_1K in zip(*answers, strict=True))
        except RuntimeError as error:
            raise BundleError(f"{self._source}: the model cannot be run ({_first_line(error)}); export it again") from (
                error
            )
        finally:
            self._idle.append(request)
        return logits_NK, probabilities_NK


def _import_openvino(source: str, name: EngineName) -> Any:
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise EngineError(
            f"{source}: is for engine {name!r}, and OpenVINO cannot be imported ({error}); {OPENVINO_ADVICE}"
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """OpenVINO reports its import to its makers, unless its telemetry package is missing: then a stub stands in."""
    if "openvino" in sys.modules:
        yield
        return
    package = "openvino_telemetry"
    former = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]  # `import` raises ModuleNotFoundError
    try:
        yield
    finally:
        if former is None:
            del sys.modules[package]
        else:
            sys.modules[package] = former


def _first_line(error: Exception) -> str:
    """The part of an OpenVINO message that says what is wrong, without the C++ places."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or ["no reason given"])[-1][:300]
