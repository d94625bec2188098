"""How many products of numbers the nodes of a graph sum: the one count of its work."""

import math
from collections.abc import Mapping, Sequence

from onnx import NodeProto

from edgeopt.model.graph import attribute

MATRICES = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "MatMulNBits", "FusedMatMul")
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv")
RECURRENT = ("LSTM", "GRU", "RNN")
#: Fixed sizes of tensors by name.
Shapes = Mapping[str, Sequence[int]]


def weight_of(node: NodeProto) -> str:
    """Name the weight of a product among its inputs."""
    return str(node.input[3 if node.op_type.startswith("QLinear") else 1])


def count_sums(node: NodeProto, shapes: Shapes) -> int:
    """Count the multiplications that a node sums, each with its addition; 0 for no product.

    Also 0 where a shape that says so is not known.
    """
    if node.op_type in MATRICES:
        left = shapes.get(node.input[0], ())
        depth = left[-2 if attribute(node, "transA", 0) else -1] if left else 0
        return _values(node.output[0], shapes) * depth
    if node.op_type in CONVOLUTIONS:
        weight = shapes.get(weight_of(node), (0, 0))
        return _values(node.output[0], shapes) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        filters = shapes.get(node.input[1], (0, 0))
        return _values(node.input[0], shapes) * math.prod(filters[1:])
    if node.op_type in RECURRENT:
        steps = math.prod(shapes.get(node.input[0], (0,))[:2])
        return steps * sum(_values(name, shapes) for name in node.input[1:3])
    return 0


def _values(name: str, shapes: Shapes) -> int:
    return math.prod(shapes.get(name, (0,)))
