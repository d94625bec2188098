"""Operators on 16-bit floats that are computed in 32 bits and rounded once, at the end."""

from collections.abc import Callable
from dataclasses import replace

from tvm import relax

from edgeopt.compile.operators.node import HALVES, Node, Result, dtype_of

#: Sums that would lose digits in 16 bits, and what TVM's importer only knows in 32.
_WIDENED = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Elu",
        "Gelu",
        "Gemm",
        "HardSigmoid",
        "LogSoftmax",
        "MatMul",
        "Mish",
        "ReduceMax",
        "ReduceMin",
        "Selu",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "ThresholdedRelu",
    }
)


def in_single(node: Node, convert: Callable[[Node], Result]) -> Result | None:
    """Convert a node on float32 copies of its 16-bit inputs; None where it has none."""
    if node.operator not in _WIDENED or not node.has(0) or node.dtype(0) not in HALVES:
        return None
    result = convert(replace(node, inputs=tuple(_single(node, each) for each in node.inputs)))
    if not isinstance(result, relax.Expr):
        return None
    return relax.op.astype(node.emit(result), node.dtype(0))


def _single(node: Node, source: relax.Expr | None) -> relax.Expr | None:
    if source is None or dtype_of(source) not in HALVES:
        return source
    return node.emit(relax.op.astype(source, "float32"))
