"""Hard swish as one operation: the same values, and OpenVINO computes it within the layer before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pillsnap.exporting.hard_swish import join_hard_swish


def graph_of(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """``nodes`` behind a convolution of ``image``, which gives ``x``."""
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "k"], ["x"], "conv"), *nodes],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 9, 9])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 7, 7]) for name in outputs],
        [numpy_helper.from_array(kernel, "k")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def hard_swish(slope: float = 1 / 6, other: str = "x") -> list[onnx.NodeProto]:
    return [
        helper.make_node("HardSigmoid", ["x"], ["s"], alpha=slope, beta=0.5),
        helper.make_node("Mul", [other, "s"], ["y"]),
    ]


def computed(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image_NCHW = np.random.default_rng(1).normal(size=(1, 3, 9, 9)).astype(np.float32)
    values: NDArray[np.float32] = session.run(None, {"image": image_NCHW})[0]
    return values


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("turned", [False, True])
def test_the_values_stay_and_openvino_computes_them_in_the_convolution(turned: bool, openvino_layers: Any) -> None:
    nodes = hard_swish()
    if turned:
        nodes[1].input[:] = reversed(nodes[1].input)
    before, after = graph_of(nodes), graph_of(nodes)
    join_hard_swish(after)
    onnx.checker.check_model(after, full_check=True)
    assert kinds(after) == ["Conv", "HardSwish"]
    expected = computed(before)
    assert expected.min() < -0.3, "the values reach below zero, where hard swish differs from ReLU"
    np.testing.assert_allclose(computed(after), expected, atol=1e-6)
    assert "Math" in openvino_layers(before), "OpenVINO fuses it by itself by now: this module can go"
    assert set(openvino_layers(after)) <= {"Input", "Const", "Reorder", "Convolution", "Output"}


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(hard_swish(slope=0.2), id="another slope"),
        pytest.param([helper.make_node("Relu", ["x"], ["r"]), *hard_swish(other="r")], id="a gate of another map"),
        pytest.param([helper.make_node("Relu", ["x"], ["y"])], id="none"),
    ],
)
def test_what_is_no_hard_swish_is_left(nodes: list[onnx.NodeProto]) -> None:
    model = graph_of(nodes)
    before = model.SerializeToString(deterministic=True)
    join_hard_swish(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_hard_sigmoid_that_others_take_stays() -> None:
    model = graph_of(hard_swish(), outputs=("y", "s"))
    join_hard_swish(model)
    assert kinds(model) == ["Conv", "HardSigmoid", "HardSwish"]
    onnx.checker.check_model(model, full_check=True)
