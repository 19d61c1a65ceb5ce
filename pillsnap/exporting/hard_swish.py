"""Hard swish as one operation.

ONNX Runtime's preparation for 8 bits spells it out as ``x * hard_sigmoid(x)``. OpenVINO computes hard swish within the
convolution before it, but the spelt-out form as operations of their own: `tf_efficientnetv2_s` with hard swish at 512
px, in 8 bits, took twice as long (docs/decisions/0009).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper


def join_hard_swish(model: onnx.ModelProto) -> None:
    """Write each ``x * hard_sigmoid(x)`` as ``HardSwish(x)``, which is defined as that (ONNX operator set 14)."""
    graph = model.graph
    known = any(entry.domain in ("", "ai.onnx") and entry.version >= 14 for entry in model.opset_import)
    if not known or any(entry.HasField("g") for node in graph.node for entry in node.attribute):
        return  # a branch within a node may take a hard sigmoid too
    sigmoids = {node.output[0]: node for node in graph.node if _is_of_hard_swish(node)}
    for node in graph.node:
        factor = next((name for name in node.input if name in sigmoids), None) if node.op_type == "Mul" else None
        if factor is None:
            continue
        source = sigmoids[factor].input[0]
        if sorted(node.input) == sorted([factor, source]):
            node.CopyFrom(helper.make_node("HardSwish", [source], node.output, node.name))
    taken = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for name, node in sigmoids.items():
        if name not in taken:
            graph.node.remove(node)


def _is_of_hard_swish(node: onnx.NodeProto) -> bool:
    given = {entry.name: entry.f for entry in node.attribute}
    slope, middle = given.get("alpha", 0.2), given.get("beta", 0.5)  # ONNX's defaults
    return bool(node.op_type == "HardSigmoid" and np.isclose(slope, 1 / 6) and middle == 0.5)
