"""Operators that TVM's own importer converts as the standard defines them."""

from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map, onnx_input

from edgeopt.compile.operators.node import Node

#: Converted by TVM as another domain's, or not at all as asked: their definition is right.
_DEFINED = frozenset(
    {
        "AffineGrid",
        "Attention",
        "CastLike",
        "Celu",
        "GroupNormalization",
        "RMSNormalization",
        "Range",
        "ReduceLogSumExp",
    }
)
#: What TVM's importer is asked for; its results' types and shapes are compared with the standard's.
TRUSTED = frozenset(_get_convert_map()) - _DEFINED


def convert_by_tvm(node: Node) -> relax.Expr:
    """Let TVM convert a node."""
    attributes = dict(node.attributes)
    attributes["tvm_custom"] = {"name": node.operator, "num_outputs": node.outputs}
    converter = _get_convert_map()[node.operator].get_converter(node.opset)
    return converter(node.builder, onnx_input(node.inputs), attributes, [{}, {}])
