"""ONNX to Relax: first a look at the operators, then the conversion."""

from pathlib import Path

import onnx
import tvm

from edgeopt.compile.importer import import_graph
from edgeopt.model.operators import KNOWN, check_nodes
from edgeopt.model.standard import infer_types, inline_definitions, opset_of


def import_model(path: Path) -> tvm.IRModule:
    """Read a normalized ONNX file as a Relax module whose weights are untouched constants."""
    return import_proto(onnx.load(path), path.name)


def import_proto(model: onnx.ModelProto, name: str) -> tvm.IRModule:
    """Convert a model of fixed shapes; name is for what is said of it."""
    model = inline_definitions(model, KNOWN)
    check_nodes(model, name)
    return import_graph(model.graph, opset_of(model), infer_types(model))
