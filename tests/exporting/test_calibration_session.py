from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pillsnap.exporting import qdq


def test_threads_that_calibrate_sleep_while_they_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["x"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["x", "a"], ["logits"], "only"),
        ],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "a")],
    )
    prepared = tmp_path / "prepared.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), prepared)
    sessions: list[Any] = []
    ranges_of = qdq._ranges_of_typical_images

    def spied(calibrator: Any, *rest: Any) -> Any:
        sessions.append(calibrator.infer_session)
        return ranges_of(calibrator, *rest)

    monkeypatch.setattr(qdq, "_ranges_of_typical_images", spied)
    qdq.save_ranges(prepared, [np.full((1, 8, 8, 3), 7, np.uint8)], "image-median", tmp_path / "ranges.json")
    options = sessions[0].get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"  # an optimized graph has other tensors
