"""What rounded weights shift a layer's output by, on average, taken out of its bias.

Rounding moves each weight a little, and an input that is never negative (behind a ReLU) makes a shift of the output of
that: the mean difference, ``(rounded - float) weights · mean input``, is known before the net runs in 8 bits. Nagel et
al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with the means measured
on the calibration's images. Borders that are padded count as if they were not.
Legend: N batch, C input channel, O output channel, G group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pillsnap.core.bundle import INPUT_NAME
from pillsnap.exporting.qdq import calibration_session, layers_of

Means = Mapping[str, NDArray[np.float64]]
"""Name of a layer → the mean of each of its input channels."""
_CHANNEL_AXIS = 1


def input_means(prepared: onnx.ModelProto, images_1HWC_u8: Iterable[NDArray[np.uint8]]) -> Means:
    """The mean input of each layer of a prepared graph (see `prepared_graph`), over images and positions."""
    graph = prepared.graph
    names = {layer.name for layer in layers_of(prepared)}
    input_of = {node.name: node.input[0] for node in graph.node if node.name in names}
    tensors = sorted(set(input_of.values()))
    watched = onnx.ModelProto()
    watched.CopyFrom(prepared)
    outputs = {output.name for output in graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in outputs
    )
    session = calibration_session(watched.SerializeToString())
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for image_1HWC_u8 in images_1HWC_u8:
        for name, value in zip(tensors, session.run(tensors, {INPUT_NAME: image_1HWC_u8}), strict=True):
            others = tuple(axis for axis in range(value.ndim) if axis != _CHANNEL_AXIS)
            sums[name] = sums.get(name, 0.0) + value.mean(axis=others, dtype=np.float64)
        count += 1
    return {layer: sums[name] / count for layer, name in input_of.items() if name in sums}


def correct_biases(quantised: onnx.ModelProto, prepared: onnx.ModelProto, means: Means) -> None:
    """Change the bias of each 8-bit convolution and ``Gemm`` of ``quantised`` by what its rounded weights shift.

    Args:
        quantised: made from ``prepared`` by `quantised_graph`; changed in place.
        prepared: the graph in float, with the same names of layers.
        means: of `input_means`.
    """
    graph = quantised.graph
    float_weights = {tensor.name: tensor for tensor in prepared.graph.initializer}
    weights_of = {node.name: node.input[1] for node in prepared.graph.node if node.name in means}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        pair = [made_by[name] for name in node.input[1:3] if name in made_by]
        if node.name not in weights_of or [maker.op_type for maker in pair] != ["DequantizeLinear"] * 2:
            continue
        weights, bias = pair
        float_O = numpy_helper.to_array(float_weights[weights_of[node.name]]).astype(np.float64)
        shift_O = _shift(node, _dequantised(weights, tensors), float_O, means[node.name])
        if shift_O is None:
            continue
        whole_O, step_O = (numpy_helper.to_array(tensors[name]) for name in bias.input[:2])
        limits = np.iinfo(whole_O.dtype)
        moved_O = np.clip(np.rint(whole_O - shift_O / step_O), limits.min, limits.max).astype(whole_O.dtype)
        name = f"{bias.input[0]}_corrected"
        if name in tensors:
            continue  # two layers share a bias
        tensors[name] = numpy_helper.from_array(moved_O, name)
        graph.initializer.append(tensors[name])
        bias.input[0] = name


def _shift(
    node: onnx.NodeProto, rounded: NDArray[np.float64], original: NDArray[np.float64], mean_C: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Of each output, on average."""
    given = {entry.name: entry for entry in node.attribute}
    difference = rounded - original
    if node.op_type == "Gemm":
        plain = all(given[name].f == 1.0 for name in ("alpha", "beta") if name in given)
        if not plain or ("transA" in given and given["transA"].i):
            return None
        difference_OC = difference if "transB" in given and given["transB"].i else difference.T
        return np.asarray(difference_OC @ mean_C)
    groups = given["group"].i if "group" in given else 1
    difference_OC = difference.sum(axis=tuple(range(2, difference.ndim)))
    outputs = len(difference_OC) // groups
    mean_GC = mean_C.reshape(groups, -1)
    shift_GO = np.einsum("goc,gc->go", difference_OC.reshape(groups, outputs, -1), mean_GC)
    return np.asarray(shift_GO.reshape(-1))


def _dequantised(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> NDArray[np.float64]:
    whole = numpy_helper.to_array(tensors[node.input[0]]).astype(np.float64)
    step = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float64)
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) if step.ndim else 0
    shape = [1] * whole.ndim
    if step.ndim:
        shape[axis] = -1
    return np.asarray(whole * step.reshape(shape))
