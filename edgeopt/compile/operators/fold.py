"""Nodes whose result is known before anything runs: shapes, and arithmetic on them."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from tvm import relax

from edgeopt.compile.operators.standard import STANDARD
from edgeopt.compile.views import constant_of, shape_of

#: Constants beyond this size in bytes stay as they are stored.
LARGE = 4096
#: Not evaluated: they draw numbers, widen what is stored narrowly, or hold graphs of their own.
_KEPT = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",
        "Dropout",
        "If",
        "Loop",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Scan",
    }
)


def fold_node(
    node: NodeProto, inputs: Mapping[str, relax.Expr], opset: int
) -> list[np.ndarray] | None:
    """Evaluate a node by the standard's reference code; None where it must run on the device.

    Sizes of tensors are known, so that Shape and Size never run.
    """
    if node.domain not in STANDARD or node.op_type in _KEPT:
        return None
    if node.op_type == "Constant":
        return [_constant(node, opset)]
    if node.op_type in ("Shape", "Size"):
        return [_measured(node, shape_of(inputs[node.input[0]]))]
    values: dict[str, np.ndarray] = {}
    for name in filter(None, node.input):
        value = constant_of(inputs[name])
        if value is None or value.nbytes > LARGE:
            return None
        values[name] = value
    return _evaluate(node, values, opset) if values else None


def _constant(node: NodeProto, opset: int) -> np.ndarray:
    (attribute,) = node.attribute
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    return _evaluate(node, {}, opset)[0]


def _measured(node: NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(int(np.prod(shape)), np.int64)
    ends = {each.name: int(each.i) for each in node.attribute}
    return np.array(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)


def _evaluate(node: NodeProto, values: Mapping[str, np.ndarray], opset: int) -> list[np.ndarray]:
    outputs = [name for name in node.output if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [_described(name, value) for name, value in values.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, dict(values))
    return [np.asarray(each) for each in results]


def _described(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, value.shape)
