"""The end of a graph as a model of its own: what comes before it is computed once and given."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper

from edgeopt.model.graph import describer, initializers
from edgeopt.model.oracle import Array, open_session

#: Values by name that sessions take without looking at them again.
Given = Mapping[str, Any]


def has_subgraphs(graph: GraphProto) -> bool:
    """Tell whether nodes hold graphs, which read tensors that their inputs do not name."""
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return any(each.type in kinds for node in graph.node for each in node.attribute)


def nodes_after(graph: GraphProto, changing: Iterable[str]) -> list[NodeProto]:
    """List the nodes that make some tensors, and those that read what comes of them."""
    changed = set(changing)
    found = []
    for node in graph.node:
        if changed.intersection((*node.input, *node.output)):
            changed.update(node.output)
            found.append(node)
    return found


def read_from_outside(graph: GraphProto, nodes: Sequence[NodeProto]) -> list[str]:
    """List the tensors that nodes read and do not make, without stored ones."""
    if has_subgraphs(graph):
        return [each.name for each in graph.input]
    made = {name for node in nodes for name in node.output}
    stored = initializers(graph)
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    return [name for name in read if name not in made and name not in stored]


def wrap(values: Array) -> Any:
    """Put values into one buffer for many runs: a numpy array would be looked at again in each."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))


class Tail:
    """Some last nodes of a graph, some of whose stored tensors can be replaced for a run."""

    def __init__(
        self,
        model: ModelProto,
        nodes: Sequence[NodeProto],
        *,
        replaced: Collection[str],
        extra: Sequence[str] = (),
    ) -> None:
        """Open the nodes of a model whose inner tensors are described: all, with subgraphs.

        extra: tensors that are outputs too, whose values run_all returns.
        """
        graph = model.graph
        made = {name for node in nodes for name in node.output}
        self.given = tuple(read_from_outside(graph, nodes))
        self.outputs = tuple(each.name for each in graph.output if each.name in made)
        self._extra = tuple(name for name in extra if name not in self.outputs)
        session = _write(model, nodes, (*self.outputs, *self._extra), replaced)
        self._session = open_session(session)
        self._inputs = {each.name for each in self._session.get_inputs()}

    def run(self, given: Given) -> list[Array]:
        """Return the graph's outputs for what the nodes are given, and what is replaced."""
        return [each.numpy() for each in self._run(given, self.outputs)]

    def run_all(self, given: Given) -> dict[str, Array]:
        """Return the graph's outputs and the other ones that were asked for, by name."""
        names = (*self.outputs, *self._extra)
        values = [each.numpy() for each in self._run(given, names)]
        return dict(zip(names, values, strict=True))

    def _run(self, given: Given, names: Sequence[str]) -> list[Any]:
        found: list[Any] = self._session.run_with_ort_values(list(names), dict(given))
        return found


def _write(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    outputs: Sequence[str],
    replaced: Collection[str],
) -> bytes:
    """Write nodes as a model; an initializer that is an input as well is one that can be replaced.

    No optimizer folds it then.
    """
    stored = initializers(model.graph)
    read = set(stored) if has_subgraphs(model.graph) else set()
    read.update(name for node in nodes for name in node.input)
    describe = describer(model.graph)
    defaults = [
        helper.make_tensor_value_info(name, stored[name].data_type, stored[name].dims)
        for name in replaced
        if name in read
    ]
    made = helper.make_graph(
        nodes,
        "tail",
        [*map(describe, read_from_outside(model.graph, nodes)), *defaults],
        [*map(describe, outputs)],
        [tensor for name, tensor in stored.items() if name in read],
    )
    whole = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    content: bytes = whole.SerializeToString()
    return content
