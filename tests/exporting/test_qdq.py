"""The graph in 8 bits: which ranges images set, and what is left as it was."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import TensorsData

from pillsnap.core.bundle import CalibrationName
from pillsnap.exporting import qdq
from pillsnap.exporting.qdq import layers_of, prepared_graph, quantised_graph, save_ranges

SIZE = 64


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A residual block, two convolutions of what it gives, and the product of the two, pooled."""
    return save_prepared(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "a"], ["y"], "first"),
            helper.make_node("Relu", ["y"], ["r"]),
            helper.make_node("Add", ["r", "x"], ["sum"], "sum"),
            helper.make_node("Conv", ["sum", "b"], ["d"], "second"),
            helper.make_node("Conv", ["sum", "c"], ["e"], "third"),
            helper.make_node("MatMul", ["d", "e"], ["f"], "product"),
        ],
    )


def save_prepared(folder: Path, nodes: list[onnx.NodeProto]) -> Path:
    """A graph whose ``nodes`` make ``f`` of the image's ``x`` and the kernels a (identity), b and c."""
    rng = np.random.default_rng(0)
    kernels = {name: rng.normal(size=(3, 3, 1, 1)).astype(np.float32) for name in ("b", "c")}
    kernels["a"] = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    kernels |= {"zero": np.float32(0), "six": np.float32(6)}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["x"], perm=[0, 3, 1, 2]),
            *nodes,
            helper.make_node("GlobalAveragePool", ["f"], ["p"]),
            helper.make_node("Flatten", ["p"], ["logits"]),
        ],
        "block",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in kernels.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(prepared_graph(model), folder / "prepared.onnx")
    return folder / "prepared.onnx"


def images(*levels: int) -> list[np.ndarray]:
    """One image a batch, each of one level."""
    return [np.full((1, SIZE, SIZE, 3), level, np.uint8) for level in levels]


def ends_of(
    prepared: Path, batches: Iterable[np.ndarray], calibration: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[float, float]]:
    """What would be written for each tensor."""
    found: list[TensorsData] = []
    with monkeypatch.context() as patch:
        patch.setattr(qdq, "save_tensors_data", lambda data, _: found.append(data))
        save_ranges(prepared, batches, calibration, prepared.with_suffix(".json"))
    return {name: tuple(float(np.ravel(end)[0]) for end in data.range_value) for name, data in found[0].items()}


@pytest.mark.parametrize(
    ("levels", "largest"),
    [
        ([50, 60, 70, 80, 90], 90.0),  # alike: nothing is cut
        ([2, 3, 4, 5, 250], 12.0),  # one is wild: three times the median
        ([0, 0, 0, 5, 250], 250.0),  # most are black: they say nothing of the range
    ],
)
def test_a_range_reaches_to_the_largest_image_but_not_to_a_wild_one(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, levels: list[int], largest: float
) -> None:
    ends = ends_of(prepared, images(*levels), "image-median", monkeypatch)
    low, high = ends["y"]
    assert high == largest
    assert low >= 0
    assert ends["x"] == (min(levels), max(levels))  # what the photos themselves are is not cut
    everything = ends_of(prepared, images(*levels), "minmax", monkeypatch)
    assert everything["y"][1] == max(levels)
    assert set(everything) == set(ends)


def test_each_calibration_finds_ranges_of_its_own(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 40, size=(1, SIZE, SIZE, 3), dtype=np.uint8) for _ in range(32)]
    photos[7][0, 0, 0, 0] = 250  # one of 393,216 values
    found = {name: ends_of(prepared, photos, name, monkeypatch)["y"][1] for name in get_args(CalibrationName)}
    assert set(found) == set(qdq.CALIBRATIONS)
    assert found["image-median"] < found["minmax"] == 250
    assert len(set(found.values())) == len(found), found


def test_negative_ends_are_cut_as_positive_ones_are(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(prepared)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "a")
    kernel.CopyFrom(numpy_helper.from_array(-np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "a"))
    onnx.save(model, prepared)
    low, _ = ends_of(prepared, images(2, 3, 4, 5, 250), "image-median", monkeypatch)["y"]
    assert low == -12.0


@pytest.mark.parametrize("float_outputs", [False, True])
def test_a_residual_sum_takes_the_map_as_it_was_before_it_was_rounded(prepared: Path, float_outputs: bool) -> None:
    ranges = prepared.with_suffix(".json")
    save_ranges(prepared, images(10, 20, 30), "image-median", ranges)
    assert {layer.name for layer in layers_of(onnx.load(prepared))} == {"first", "second", "third"}
    model = quantised_graph(prepared, ranges, "image-median", (), float_outputs=float_outputs)
    maker = {output: node for node in model.graph.node for output in node.output}
    taken = [maker[name].op_type for node in model.graph.node if node.name == "sum" for name in node.input]
    assert taken == ["Relu" if float_outputs else "DequantizeLinear", "Transpose"]
    non_linearity = next(node for node in model.graph.node if node.op_type == "Relu")
    assert maker[non_linearity.input[0]].op_type == "Conv"
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert [maker[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("float_outputs", [False, True])
def test_a_layer_in_float_takes_its_input_in_float_where_another_takes_it_rounded(
    prepared: Path, float_outputs: bool
) -> None:
    ranges = prepared.with_suffix(".json")
    save_ranges(prepared, images(10, 20, 30), "image-median", ranges)
    model = quantised_graph(prepared, ranges, "image-median", ("third",), float_outputs=float_outputs)
    maker = {output: node.op_type for node in model.graph.node for output in node.output}
    taken = {node.name: maker[node.input[0]] for node in model.graph.node if node.op_type == "Conv"}
    assert taken == {"first": "DequantizeLinear", "second": "DequantizeLinear", "third": "Add"}
    onnx.checker.check_model(model, full_check=True)


def test_what_a_layer_in_float_gives_is_rounded_for_8_bit_layers_only(tmp_path: Path) -> None:
    """For ONNX Runtime, which rounds what its 8-bit layers give."""
    prepared = save_prepared(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "a"], ["y"], "first"),
            helper.make_node("Conv", ["y", "b"], ["d"], "second"),
            helper.make_node("Add", ["y", "d"], ["f"], "sum"),
        ],
    )
    ranges = prepared.with_suffix(".json")
    save_ranges(prepared, images(10, 20, 30), "image-median", ranges)
    model = quantised_graph(prepared, ranges, "image-median", ("first",), float_outputs=False)
    maker = {output: node for node in model.graph.node for output in node.output}
    taken = {node.name: [maker[name].name for name in node.input] for node in model.graph.node if node.name == "sum"}
    assert taken["sum"][0] == "first"
    assert (
        maker[next(node for node in model.graph.node if node.name == "second").input[0]].op_type == "DequantizeLinear"
    )


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_a_layer_and_its_activation_are_rounded_once_within_what_the_activation_leaves(
    tmp_path: Path, activation: str
) -> None:
    """One in the middle, and one before a pooling, which takes no rounded map."""
    limits = ["zero", "six"] if activation == "Clip" else []
    prepared = save_prepared(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "b"], ["y"], "first"),
            helper.make_node(activation, ["y", *limits], ["r"]),
            helper.make_node("Conv", ["r", "c"], ["d"], "second"),
            helper.make_node(activation, ["d", *limits], ["f"]),
        ],
    )
    ranges = prepared.with_suffix(".json")
    save_ranges(prepared, images(10, 20, 30), "image-median", ranges)
    model = quantised_graph(prepared, ranges, "image-median", (), float_outputs=False)
    onnx.checker.check_model(model, full_check=True)
    maker = {output: node for node in model.graph.node for output in node.output}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    activations = [node for node in model.graph.node if node.op_type == activation]
    assert [maker[node.input[0]].name for node in activations] == ["first", "second"]
    rounding = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(rounding) == 3, "the picture, and what each layer gives"
    for node in activations:
        [quantise] = [other for other in rounding if other.input[0] == node.output[0]]
        scale, zero = (float(values[name]) for name in quantise.input[1:])
        assert zero == 0
        assert 255 * scale <= 6.001 or activation == "Relu"
    fused = tmp_path / "fused.onnx"
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(fused)
    ours = ort.InferenceSession(model.SerializeToString(), options)
    kinds = {node.op_type for node in onnx.load(fused).graph.node}
    assert {"Conv", "Relu", "Clip"}.isdisjoint(kinds), "ONNX Runtime computes layer and activation as one"
    [image] = images(20)
    [found_NK], [expected_NK] = (
        session.run(["logits"], {"image": image}) for session in (ours, ort.InferenceSession(prepared))
    )
    np.testing.assert_allclose(found_NK, expected_NK, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("float_outputs", [False, True])
def test_a_product_of_two_maps_is_no_layer_and_stays_in_float(prepared: Path, float_outputs: bool) -> None:
    ranges = prepared.with_suffix(".json")
    save_ranges(prepared, images(10, 20, 30), "image-median", ranges)
    model = quantised_graph(prepared, ranges, "image-median", (), float_outputs=float_outputs)
    maker = {output: node for node in model.graph.node for output in node.output}
    product = next(node for node in model.graph.node if node.name == "product")
    # ONNX Runtime's 8-bit convolutions give what is rounded; for the product alone nothing is
    assert [maker[name].op_type for name in product.input] == ["Conv" if float_outputs else "DequantizeLinear"] * 2
    all_float = quantised_graph(
        prepared, ranges, "image-median", ("first", "second", "third"), float_outputs=float_outputs
    )
    assert not [node.op_type for node in all_float.graph.node if node.op_type == "QuantizeLinear"]
