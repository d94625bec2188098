"""ONNX to Relax: first a look at the operators, then the conversion."""

from pathlib import Path

import onnx
import tvm

from edgeopt.compile.importer import KNOWN, KNOWN_MICROSOFT, import_graph
from edgeopt.compile.operators.quantized import MICROSOFT
from edgeopt.compile.operators.standard import (
    STANDARD,
    infer_types,
    inline_definitions,
    opset_of,
)
from edgeopt.errors import OperatorUnsupported


def check_operators(path: Path) -> None:
    """Refuse a graph with operators that cannot be compiled; name nodes and counts.

    Raises OperatorUnsupported. Reads the graph only: no weights, nothing slow.
    """
    model = onnx.load(path, load_external_data=False)
    _check_nodes(inline_definitions(model, KNOWN), path.name)


def _check_nodes(model: onnx.ModelProto, name: str) -> None:
    unknown: dict[str, list[str]] = {}
    for node in model.graph.node:
        standard = node.domain in STANDARD
        known = KNOWN if standard else KNOWN_MICROSOFT if node.domain == MICROSOFT else ()
        if node.op_type not in known:
            operator = node.op_type if standard else f"{node.domain}.{node.op_type}"
            unknown.setdefault(operator, []).append(node.name or node.output[0])
    if unknown:
        raise OperatorUnsupported(
            f"{name} has operators that cannot be compiled",
            why="; ".join(_describe(name, nodes) for name, nodes in sorted(unknown.items())),
            fix="export the model without them, or replace them by operators of the ONNX standard",
        )


def _describe(operator: str, nodes: list[str]) -> str:
    shown = ", ".join(nodes[:3])
    return f"{operator} x{len(nodes)} ({shown}{', ...' if len(nodes) > 3 else ''})"


def import_model(path: Path) -> tvm.IRModule:
    """Read a normalized ONNX file as a Relax module whose weights are untouched constants."""
    return import_proto(onnx.load(path), path.name)


def import_proto(model: onnx.ModelProto, name: str) -> tvm.IRModule:
    """Convert a model of fixed shapes; name is for what is said of it."""
    model = inline_definitions(model, KNOWN)
    _check_nodes(model, name)
    return import_graph(model.graph, opset_of(model), infer_types(model))
