"""The weights of products as matrices [K, N]: one row per value that is summed."""

import numpy as np
from onnx import NodeProto

from edgeopt.compress.ties import Label, Units
from edgeopt.model.graph import attribute
from edgeopt.model.oracle import Array


def as_matrix(node: NodeProto, values: Array) -> Array:
    """Return the weight of a MatMul, a Gemm or a Conv of one group as [K, N]."""
    if node.op_type == "Conv":
        return values.reshape(len(values), -1).T
    return values.T if _turned(node) else values


def from_matrix(node: NodeProto, matrix: Array, shape: tuple[int, ...]) -> Array:
    """Return a matrix [K, N] in the shape that the node reads."""
    turned = node.op_type == "Conv" or _turned(node)
    return np.ascontiguousarray(matrix.T if turned else matrix).reshape(shape)


def row_units(label: Label, shape: tuple[int, ...]) -> Units:
    """Return the unit of each row, from a label of the axis that is summed over."""
    values = int(np.prod(shape[2:]))
    return np.repeat(label.units, values)


def _turned(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
