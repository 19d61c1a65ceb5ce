"""The mean of what an 8-bit layer gives is that of the float layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pillsnap.exporting.bias_correction import correct_biases, input_means
from pillsnap.exporting.qdq import prepared_graph, quantised_graph, save_ranges

SIZE, CHANNELS = 8, 4


def save_prepared(folder: Path, groups: int) -> Path:
    """A convolution of an image's channels, a pooling, and a classifier; with coarse weights, which rounding moves."""
    rng = np.random.default_rng(3)

    def weights(*shape: int) -> np.ndarray:
        values = rng.normal(0, 0.02, shape).astype(np.float32)
        values[:, 0] += 1.0  # one large weight makes the steps of all the others large
        return values

    constants = {
        "widen": np.ones((CHANNELS, 3, 1, 1), np.float32) / 3,
        "w": weights(8, CHANNELS // groups, 3, 3),
        "b": rng.normal(0, 1, 8).astype(np.float32),
        "v": weights(5, 8),
        "c": rng.normal(0, 1, 5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "widen"], ["y"], "widen"),
        helper.make_node("Conv", ["y", "w", "b"], ["z"], "conv", group=groups),
        helper.make_node("GlobalAveragePool", ["z"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["logits"], "classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(prepared_graph(model), folder / "prepared.onnx")
    return folder / "prepared.onnx"


@pytest.mark.parametrize("groups", [1, 2, CHANNELS])
def test_the_mean_of_each_output_comes_back(tmp_path: Path, groups: int) -> None:
    path = save_prepared(tmp_path, groups)
    prepared = onnx.load(path)
    images = [np.random.default_rng(seed).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8) for seed in range(40)]
    save_ranges(path, images, "minmax", tmp_path / "ranges.json")
    means = input_means(prepared, images)
    assert {name: len(mean_C) for name, mean_C in means.items()} == {"widen": 3, "conv": CHANNELS, "classifier": 8}

    def mean_K(model: onnx.ModelProto) -> np.ndarray:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options)
        return np.mean([session.run(["logits"], {"image": image})[0][0] for image in images], axis=0)

    rounded = quantised_graph(path, tmp_path / "ranges.json", "minmax", (), float_outputs=True)
    expected_K, before_K = mean_K(prepared), mean_K(rounded)
    correct_biases(rounded, prepared, means)
    onnx.checker.check_model(rounded, full_check=True)
    after_K = mean_K(rounded)
    assert np.abs(after_K - expected_K).max() < 0.1 * np.abs(before_K - expected_K).max()


def test_layers_in_float_are_left_alone(tmp_path: Path) -> None:
    path = save_prepared(tmp_path, 1)
    prepared = onnx.load(path)
    images = [np.full((1, SIZE, SIZE, 3), level, np.uint8) for level in (10, 200)]
    save_ranges(path, images, "minmax", tmp_path / "ranges.json")
    names = ("widen", "conv", "classifier")
    model = quantised_graph(path, tmp_path / "ranges.json", "minmax", names, float_outputs=True)
    before = model.SerializeToString()
    correct_biases(model, prepared, input_means(prepared, images))
    assert model.SerializeToString() == before
