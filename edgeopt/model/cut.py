"""Cut a model after its first nodes: what is needed to find the node that goes wrong."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from edgeopt.artifact import Model
from edgeopt.model.describe import facts
from edgeopt.model.load import read_model
from edgeopt.model.oracle import run_model

Array = npt.NDArray[Any]


def read_nodes(model: Model) -> tuple[NodeProto, ...]:
    """List a model's nodes in the order in which they run."""
    return tuple(onnx.load(model.path, load_external_data=False).graph.node)


def cut_model(
    model: Model, count: int, *, feeds: Mapping[str, Array], directory: Path
) -> Model | None:
    """Write directory/cut.onnx: the first count nodes, with all that later ones read as outputs.

    Inputs and weights that only later nodes read are left out; None where no input is left.
    feeds: one sample, which tells the types and shapes of the new outputs.
    """
    cut = onnx.load(model.path, load_external_data=False)
    graph = cut.graph
    later = _read_by(graph.node[count:]) | {each.name for each in graph.output}
    del graph.node[count:]
    needed = _read_by(graph.node)
    for field in (graph.input, graph.initializer):
        kept = [each for each in field if each.name in needed]
        del field[:]
        field.extend(kept)
    if not graph.input:
        return None
    names = [name for node in graph.node for name in node.output if name in later]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "cut.onnx"
    onnx.save_model(cut, path)
    given = {each.name: feeds[each.name] for each in graph.input}
    del graph.output[:]
    for name, values in zip(names, run_model(path, given, optimize=False), strict=True):
        graph.output.append(_describe(name, values))
    onnx.save_model(cut, path)
    return read_model(path, facts(cut), provenance=(*model.provenance, f"first {count} nodes"))


def _read_by(nodes: Iterable[NodeProto]) -> set[str]:
    """Return the names of the tensors that nodes read, those in their subgraphs included."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for each in node.attribute:
            inner: list[GraphProto] = [each.g] if each.HasField("g") else list(each.graphs)
            for graph in inner:
                found |= _read_by(graph.node) | {output.name for output in graph.output}
    return found


def _describe(name: str, values: Array) -> onnx.ValueInfoProto:
    kind = numpy_helper.from_array(np.zeros((), values.dtype)).data_type
    return helper.make_tensor_value_info(name, kind, values.shape)
