"""Nodes whose result is known before anything runs: shapes, and arithmetic on them."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto
from tvm import relax

from edgeopt.compile.views import constant_of, shape_of
from edgeopt.model.evaluate import (
    NESTED,
    RANDOM,
    evaluate_constant,
    evaluate_node,
    evaluate_size,
)
from edgeopt.model.standard import STANDARD

#: Constants beyond this size in bytes stay as they are stored.
LARGE = 4096
#: Not evaluated: they draw numbers, hold graphs of their own, or widen what is stored narrowly.
_KEPT = RANDOM | NESTED | {"DequantizeLinear", "QuantizeLinear"}


def fold_node(
    node: NodeProto, inputs: Mapping[str, relax.Expr], opset: int
) -> list[np.ndarray] | None:
    """Evaluate a node by the standard's reference code; None where it must run on the device.

    Sizes of tensors are known, so that Shape and Size never run.
    """
    if node.domain not in STANDARD or node.op_type in _KEPT:
        return None
    if node.op_type == "Constant":
        return [evaluate_constant(node, opset)]
    if node.op_type in ("Shape", "Size"):
        return [evaluate_size(node, shape_of(inputs[node.input[0]]))]
    values: dict[str, np.ndarray] = {}
    for name in filter(None, node.input):
        value = constant_of(inputs[name])
        if value is None or value.nbytes > LARGE:
            return None
        values[name] = value
    found = evaluate_node(node, values, opset) if values else None
    widened = node.op_type == "Gather" and found is not None and found[0].nbytes > LARGE
    return None if widened else found
