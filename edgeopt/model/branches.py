"""Take the branches whose conditions follow from constants and fixed shapes."""

import math
from collections.abc import Iterator

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from edgeopt.model.evaluate import (
    NESTED,
    RANDOM,
    Array,
    evaluate_constant,
    evaluate_node,
    evaluate_size,
)
from edgeopt.model.graph import producers

#: Elements of the largest tensor that takes part in a condition.
_SMALL = 1024


def inline_branches(model: ModelProto) -> ModelProto:
    """Replace every If at the top whose condition is known by the branch that it takes.

    What was inside comes to the top and is looked at in its turn.
    """
    while any(node.op_type == "If" for node in model.graph.node):
        known = _Known(model)
        taken = {
            node.output[0]: branch
            for node in model.graph.node
            if (branch := _branch(node, known)) is not None
        }
        if not taken:
            break
        names = set(_names(model.graph))
        nodes: list[NodeProto] = []
        for node in model.graph.node:
            branch = taken.get(node.output[0]) if node.op_type == "If" else None
            nodes.extend([node] if branch is None else _inlined(model, node, branch, names))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def _branch(node: NodeProto, known: "_Known") -> GraphProto | None:
    if node.op_type != "If":
        return None
    condition = known.value(node.input[0])
    if condition is None:
        return None
    wanted = "then_branch" if condition.reshape(-1)[0] else "else_branch"
    branches: dict[str, GraphProto] = {each.name: each.g for each in node.attribute}
    return branches[wanted]


class _Known:
    """Tensors whose values follow from what is stored and from shapes."""

    def __init__(self, model: ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._opset = max(each.version for each in model.opset_import if not each.domain)
        self._made = producers(model.graph)
        described = (*graph.value_info, *graph.input)
        self._shapes = {each.name: _fixed_shape(each) for each in described}
        self._values: dict[str, Array | None] = {
            each.name: numpy_helper.to_array(each)
            for each in model.graph.initializer
            if math.prod(each.dims) <= _SMALL
        }

    def value(self, name: str) -> Array | None:
        """Return a tensor's value, or None where only a run can tell."""
        if name not in self._values:
            node = self._made.get(name)
            found = None if node is None else self._evaluate(node)
            self._values[name] = found
        return self._values[name]

    def _evaluate(self, node: NodeProto) -> Array | None:
        if node.domain or node.op_type in RANDOM | NESTED or len(node.output) != 1:
            return None
        if node.op_type == "Constant":
            return evaluate_constant(node, self._opset)
        if node.op_type in ("Shape", "Size"):
            shape = self._shapes.get(node.input[0])
            return None if shape is None else evaluate_size(node, shape)
        values = {name: self.value(name) for name in node.input if name}
        inputs = {name: each for name, each in values.items() if each is not None}
        if not inputs or len(inputs) < len(values):
            return None
        (result,) = evaluate_node(node, inputs, self._opset)
        return result if result.size <= _SMALL else None


def _fixed_shape(described: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    kind = described.type.tensor_type
    if not kind.HasField("shape") or any(not each.HasField("dim_value") for each in kind.shape.dim):
        return None
    return tuple(each.dim_value for each in kind.shape.dim)


def _names(graph: GraphProto) -> Iterator[str]:
    """Yield the names of all tensors of a graph, not those of its subgraphs."""
    for each in (*graph.input, *graph.initializer):
        yield each.name
    for node in graph.node:
        yield from node.output


def _inlined(
    model: ModelProto, node: NodeProto, branch: GraphProto, names: set[str]
) -> list[NodeProto]:
    """Return the nodes of a branch under names of their own, then one Identity per output.

    A result may be a tensor of the graph around, which keeps its name.
    """
    renamed: dict[str, str] = {}
    for name in dict.fromkeys(filter(None, _names(branch))):
        fresh, number = name, 0
        while fresh in names:
            number += 1
            fresh = f"{name}.{number}"
        names.add(fresh)
        renamed[name] = fresh
    for stored in branch.initializer:
        kept = model.graph.initializer.add()
        kept.CopyFrom(stored)
        kept.name = renamed[stored.name]
    nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in branch.node]
    for each in nodes:
        _rename(each, renamed)
    results = (renamed.get(each.name, each.name) for each in branch.output)
    return [
        *nodes,
        *(
            helper.make_node("Identity", [result], [name])
            for result, name in zip(results, node.output, strict=True)
            if name
        ),
    ]


def _rename(node: NodeProto, renamed: dict[str, str]) -> None:
    """Rename a node's tensors, and what its subgraphs read of the graph around them."""
    for field in (node.input, node.output):
        field[:] = [renamed.get(name, name) for name in field]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else ():
            own = set(_names(graph))
            outer = {old: new for old, new in renamed.items() if old not in own}
            for each in graph.node:
                _rename(each, outer)
            for result in graph.output:
                result.name = outer.get(result.name, result.name)
