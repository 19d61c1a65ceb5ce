"""Graphs with 8-bit layers: which layers there are, what ranges they see, and the graph with QuantizeLinear pairs.

Weights int8 per channel, at most 64 (`LARGEST_8_BIT_WEIGHT`: every processor computes the same), activations uint8: of
ONNX Runtime's kernels the fast ones (see docs/decisions/0009). Knows ONNX and ONNX Runtime's quantiser; knows nothing
of manifests, bundles' metadata or what is accurate enough.
Legend: N batch, H height, W width, C channel, L images, T ends of tensors' ranges.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import MinMaxCalibrater, TensorsData, create_calibrator, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from pillsnap.core.bundle import INPUT_NAME, MOST_OVER_MEDIAN, OUTPUT_NAMES
from pillsnap.core.cpu import usable_cores
from pillsnap.core.errors import BundleError
from pillsnap.exporting.hard_swish import join_hard_swish
from pillsnap.inference.engines import session_options

CALIBRATIONS = {
    "image-median": CalibrationMethod.MinMax,
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_OPTIONS: dict[str, dict[str, float]] = {
    # The default of 128 bins, over a range that the first image sets, leaves entropy nothing to choose from.
    "entropy": {"num_bins": 512, "num_quantized_bins": 128},
    "percentile": {"num_bins": 2048, "percentile": 99.999},
}
_QUANTISED = ("Conv", "Gemm", "MatMul")
_FLOAT_OUTPUTS = ("Gemm", "MatMul")
"""What gives logits: 256 levels would be too few for them, and both engines multiply 8-bit numbers into float."""
_POOLING = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights."""

    name: str
    macs: int
    """Multiply-accumulates of one image."""
    gate: bool
    """A convolution behind a global pooling, as in squeeze-and-excitation: it costs nothing, and weighs whole maps."""


def prepared_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with batch norms folded, constants computed, shapes inferred, and a name for each node.

    Raises:
        BundleError: ONNX Runtime cannot prepare it.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    _name_nodes(named)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(_temporary_folder()))
        stack.enter_context(_quiet())
        onnx.save(named, folder / "in.onnx")
        try:
            quant_pre_process(folder / "in.onnx", folder / "out.onnx", skip_symbolic_shape=True)
            prepared = onnx.load(folder / "out.onnx")
        except Exception as error:  # the quantiser's errors have no common base
            raise BundleError(f"the graph cannot be prepared for 8 bits ({type(error).__name__}: {error})") from error
    join_hard_swish(prepared)
    _name_nodes(prepared)
    return prepared


def layers_of(prepared: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers that can be quantised, in the order of the graph. ``prepared``: see `prepared_graph`."""
    graph = prepared.graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    pooled: set[str] = set()
    found = []
    for node in graph.node:
        inputs = [name for name in node.input if name and name not in weights]
        if node.op_type in _POOLING or (inputs and all(name in pooled for name in inputs)):
            pooled.update(node.output)
        if node.op_type not in _QUANTISED or len(node.input) < 2 or node.input[1] not in weights:
            continue
        kernel = math.prod(weights[node.input[1]])
        positions = math.prod(shapes.get(node.output[0], [])[2:]) if node.op_type == "Conv" else 1
        gate = node.op_type == "Conv" and node.input[0] in pooled
        found.append(Layer(node.name, kernel * max(positions, 1), gate))
    return tuple(found)


def save_ranges(prepared: Path, images_1HWC_u8: Iterable[NDArray[np.uint8]], calibration: str, ranges: Path) -> None:
    """Run images through a prepared graph and write the range of each tensor to ``ranges`` (JSON).

    One image at a time is looked at and forgotten; ``image-median`` keeps two numbers a tensor of each.
    """
    with _temporary_folder() as folder, _quiet():
        calibrator = create_calibrator(
            prepared,
            list(_QUANTISED),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CALIBRATIONS[calibration],
            extra_options={"symmetric": False, **_OPTIONS.get(calibration, {})},
        )
        calibrator.infer_session = calibration_session(calibrator.augmented_model_path)
        if calibration == "image-median":
            found = _ranges_of_typical_images(calibrator, images_1HWC_u8, _behind_layers(onnx.load(prepared).graph))
        else:
            for image_1HWC_u8 in images_1HWC_u8:
                calibrator.collect_data(_OneImage(image_1HWC_u8))
            found = calibrator.compute_data()
        save_tensors_data(found, ranges)


def calibration_session(graph: str | bytes) -> ort.InferenceSession:
    """A graph (a file's path, or its bytes) computed as it stands, by threads that do not spin."""
    options = session_options(usable_cores())
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def quantised_graph(
    prepared: Path, ranges: Path, calibration: str, float_layers: Collection[str], *, float_outputs: bool
) -> onnx.ModelProto:
    """The graph with all layers in 8 bits but ``float_layers``.

    Args:
        prepared: file of a prepared graph.
        ranges: what `save_ranges` wrote.
        calibration: by which method.
        float_layers: names of nodes.
        float_outputs: leave what a convolution gives in float until the next one takes it. OpenVINO fuses the
            activation into its 8-bit layer all the same; ONNX Runtime would compute such a convolution in float.

    Raises:
        BundleError: the quantiser cannot do it.
    """
    graph = onnx.load(prepared)
    eight_bit = {layer.name for layer in layers_of(graph)} - set(float_layers)
    products = [node for node in graph.graph.node if node.op_type in _QUANTISED]
    with _temporary_folder() as folder, _quiet():
        target = Path(folder) / "q.onnx"
        try:
            quantize_static(
                prepared,
                target,
                None,
                calibration_cache_path=ranges,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                per_channel=True,
                reduce_range=True,  # LARGEST_8_BIT_WEIGHT
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # a product of two maps (attention) is no layer: ``MatMulConstBOnly`` is not for this format
                nodes_to_exclude=sorted(node.name for node in products if node.name not in eight_bit),
                calibrate_method=CALIBRATIONS[calibration],
                extra_options={
                    "OpTypesToExcludeOutputQuantization": list(_QUANTISED if float_outputs else _FLOAT_OUTPUTS),
                },
            )
            quantised = onnx.load(target)
        except Exception as error:  # the quantiser's errors have no common base
            raise BundleError(f"the graph cannot be quantised ({type(error).__name__}: {error})") from error
    _round_for_layers_only(quantised, eight_bit, float_outputs=float_outputs)
    if not float_outputs:
        _round_behind_activations(quantised, eight_bit)
    return quantised


def set_temperature(model: onnx.ModelProto, temperature: float) -> None:
    """Make ``probabilities`` = softmax(``logits`` / temperature), whatever it was. The logits stay.

    Raises:
        BundleError: the graph's probabilities are made in another way.
    """
    graph = model.graph
    logits, probabilities = OUTPUT_NAMES
    heads = [node for node in graph.node if probabilities in node.output]
    if [node.op_type for node in heads] != ["Softmax"]:
        raise BundleError("the graph's probabilities are no softmax; export the model again")
    graph.node.remove(heads[0])
    _drop_unused(graph)
    constant = numpy_helper.from_array(np.asarray(temperature, np.float32), "pillsnap_temperature")
    graph.initializer.append(constant)
    graph.node.append(helper.make_node("Div", [logits, constant.name], ["pillsnap_tempered"], "pillsnap_tempered"))
    graph.node.append(
        helper.make_node("Softmax", ["pillsnap_tempered"], [probabilities], "pillsnap_probabilities", axis=1)
    )


def tidy(model: onnx.ModelProto) -> None:
    """Drop what depends on how a graph was made: notes, inferred shapes, operator sets that no node uses."""
    graph = model.graph
    del graph.value_info[:]
    del model.metadata_props[:]
    used = {node.domain for node in graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.doc_string = graph.doc_string = ""
    for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]
    ordered = sorted(graph.initializer, key=lambda tensor: tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)


def _ranges_of_typical_images(
    calibrator: MinMaxCalibrater, images_1HWC_u8: Iterable[NDArray[np.uint8]], behind_layers: Collection[str]
) -> TensorsData:
    """Of each tensor, its smallest and largest value of all images; behind a layer at most a multiple of the median.

    The net's input is not cut: from zero, which is some mean colour there, a bright photo is far and a dark one near.
    """
    session = calibrator.infer_session
    ends = [output.name for output in session.get_outputs() if output.name.endswith(("_ReduceMin", "_ReduceMax"))]
    end_LT = np.array(
        [np.concatenate(session.run(ends, {INPUT_NAME: image_1HWC_u8})) for image_1HWC_u8 in images_1HWC_u8]
    )
    tensor_of = {name: name.removesuffix("_ReduceMin").removesuffix("_ReduceMax") for name in ends}
    cut_T = np.array([tensor_of[name] in behind_layers for name in ends])
    low_T = np.where(cut_T, -_capped(-end_LT), end_LT.min(axis=0))
    high_T = np.where(cut_T, _capped(end_LT), end_LT.max(axis=0))
    low_of, high_of = (dict(zip(ends, values_T, strict=True)) for values_T in (low_T, high_T))
    tensors = sorted(set(tensor_of.values()))
    return TensorsData(
        CalibrationMethod.MinMax,
        {name: (low_of[f"{name}_ReduceMin"], high_of[f"{name}_ReduceMax"]) for name in tensors},
    )


def _capped(end_LT: NDArray[np.float32]) -> NDArray[np.float32]:
    largest_T, median_T = end_LT.max(axis=0), np.median(end_LT, axis=0)
    most_T = np.where(median_T > 0, MOST_OVER_MEDIAN * median_T, largest_T)
    capped_T: NDArray[np.float32] = np.minimum(largest_T, most_T, dtype=np.float32)
    return capped_T


def _behind_layers(graph: onnx.GraphProto) -> set[str]:
    """The tensors that hang on a layer's output: all but the input and what is made of it alone."""
    behind: set[str] = set()
    for node in graph.node:
        if node.op_type in _QUANTISED or not behind.isdisjoint(node.input):
            behind.update(node.output)
    return behind


class _OneImage(CalibrationDataReader):  # type: ignore[misc]  # untyped
    def __init__(self, image_1HWC_u8: NDArray[np.uint8]) -> None:
        self._left: list[dict[str, NDArray[np.uint8]]] = [{INPUT_NAME: image_1HWC_u8}]

    def get_next(self) -> dict[str, NDArray[np.uint8]]:
        return self._left.pop() if self._left else {}


def _name_nodes(model: onnx.ModelProto) -> None:
    taken = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{number}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)


def _round_for_layers_only(model: onnx.ModelProto, eight_bit: Collection[str], *, float_outputs: bool) -> None:
    """Give what is no 8-bit layer the values as they were before they were rounded for one.

    The quantiser hands the rounded map to all that take it. For the sum of a residual block that would round, and cut
    off at the range's ends, the one path that goes through the whole net, once more at every block. What an 8-bit layer
    itself gives stays rounded without ``float_outputs``.
    """
    graph = model.graph
    outputs = {name for node in graph.node if node.name in eight_bit and not float_outputs for name in node.output}
    before = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in outputs
    }
    rounded = {
        node.output[0]: before[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in before
    }
    for node in graph.node:
        if node.name not in eight_bit:
            for place, name in enumerate(node.input):
                node.input[place] = rounded.get(name, name)


def _round_behind_activations(model: onnx.ModelProto, eight_bit: Collection[str]) -> None:
    """Round what an 8-bit layer gives behind its ReLU, not before: within the range that the ReLU leaves, and once.

    The quantiser rounds between the two. That spends levels on what is cut off at once, and ONNX Runtime then computes
    the ReLU in float and rounds again; rounded behind it, it is a part of the layer (docs/decisions/0012).
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    for layer in [node for node in graph.node if node.name in eight_bit]:
        chain = [layer]
        while len(chain) < 4 and len(following := takers.get(chain[-1].output[0], [])) == 1:
            chain += following
        if [node.op_type for node in chain[1:3]] != ["QuantizeLinear", "DequantizeLinear"] or len(chain) < 4:
            continue
        quantise, dequantise, activation = chain[1:]
        bounds = _bounds(activation, tensors)
        if bounds is None:
            continue
        behind = takers.get(activation.output[0], [])
        if any(node.op_type == "QuantizeLinear" for node in behind):
            if len(behind) == 1:
                activation.input[0] = layer.output[0]
            continue  # what takes it in float besides would no longer get what the layer gives rounded
        activation.input[0] = layer.output[0]
        unrounded = activation.output[0]
        activation.output[0] = quantise.input[0] = f"{unrounded}_to_round"
        dequantise.output[0] = unrounded
        graph.initializer.extend(_narrowed(quantise, tensors, bounds))
        dequantise.input[1:] = quantise.input[1:]
        for node in (quantise, dequantise):  # behind the activation: a graph's nodes stand in their order
            moved = onnx.NodeProto()
            moved.CopyFrom(node)
            graph.node.remove(node)
            place = next(number for number, other in enumerate(graph.node) if moved.input[0] in other.output)
            graph.node.insert(place + 1, moved)
    _drop_unused(graph)


def _bounds(activation: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> tuple[float, float] | None:
    """Least and largest value of a ReLU or a clip; None for everything else."""
    if activation.op_type == "Relu":
        return 0.0, math.inf
    if activation.op_type != "Clip":
        return None
    ends = [-math.inf, math.inf]
    for place, name in enumerate(activation.input[1:]):
        if name:
            if name not in tensors:
                return None
            ends[place] = float(numpy_helper.to_array(tensors[name]))
    return ends[0], ends[1]


def _narrowed(
    quantise: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], bounds: tuple[float, float]
) -> list[onnx.TensorProto]:
    """Make a node's range that of the values that ``bounds`` leave; the tensors of its new scale and zero point."""
    scale, zero = (numpy_helper.to_array(tensors[name]) for name in quantise.input[1:3])
    low = min(max(float((0.0 - zero) * scale), bounds[0]), 0.0)
    high = max(min(float((255.0 - zero) * scale), bounds[1]), 0.0)
    step = max((high - low) / 255.0, float(np.finfo(np.float32).tiny))
    values = (np.asarray(step, np.float32), np.asarray(round(-low / step), np.uint8))
    found = []
    for place, value in enumerate(values, start=1):
        name = f"{quantise.input[place]}_behind"
        found.append(numpy_helper.from_array(np.asarray(value), name))
        quantise.input[place] = name
    return found


def _drop_unused(graph: onnx.GraphProto) -> None:
    wanted = {output.name for output in graph.output}
    for node in reversed(list(graph.node)):
        if wanted.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            wanted.update(node.input)
    for tensor in list(graph.initializer):
        if tensor.name not in wanted:
            graph.initializer.remove(tensor)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pillsnap-quantise-")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser prints its progress and warns on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
