"""Values of nodes that are known before anything runs, by the standard's reference code."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]

#: Results that depend on more than a node's inputs.
RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
#: Operators that hold graphs of their own.
NESTED = frozenset({"If", "Loop", "Scan"})


def evaluate_constant(node: NodeProto, opset: int) -> Array:
    """Return what a Constant stands for."""
    (attribute,) = node.attribute
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    return evaluate_node(node, {}, opset)[0]


def evaluate_size(node: NodeProto, shape: Sequence[int]) -> Array:
    """Return what Shape or Size gives for an input of that shape."""
    if node.op_type == "Size":
        return np.array(int(np.prod(shape)), np.int64)
    ends = {each.name: int(each.i) for each in node.attribute}
    return np.array(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)


def evaluate_node(node: NodeProto, values: Mapping[str, Array], opset: int) -> list[Array]:
    """Run a node of the standard's domain on values by name."""
    outputs = [name for name in node.output if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [_described(name, value) for name, value in values.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, dict(values))
    return [np.asarray(each) for each in results]


def _described(name: str, value: Array) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, value.shape)
