"""Groups of units that can be cut out of a graph together, found from the graph alone.

A unit is a neuron between two products, an attention head, or a channel between convolutions. From
a weight's output channels its units are followed through every node, forward to what sums over
them and back to whatever else makes them (the dependency graph of DepGraph, Fang et al. 2023,
arXiv 2301.12900); a Reshape that splits an axis into heads makes the heads the units.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from edgeopt.compress.residual import Branch, Surroundings, find_branches
from edgeopt.compress.ties import Blocked, Coarser, Label, Shapes, Units, is_depthwise, spread
from edgeopt.model.graph import Weight, attribute, consumers, initializers, producers, weights

Kind = Literal["neurons", "heads", "channels"]
_PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True, slots=True)
class Group:
    """Units that are made by some weights, read by others, and can be left out."""

    #: Its first weight, in the graph's order.
    name: str
    kind: Kind
    #: Number of units.
    units: int
    #: Where the units lie in every tensor that has them.
    labels: Mapping[str, Label]
    #: The stored weights that sum over the units, each with the node that does.
    readers: Mapping[str, NodeProto]
    #: Where it is all of residual branches: their sums. Empty: one unit has to stay at least.
    branches: tuple[Branch, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A graph, and what following units through it needs."""

    graph: GraphProto
    shapes: Shapes
    axes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, list[NodeProto]]
    makers: Mapping[str, NodeProto]
    outside: frozenset[str]


def open_network(model: ModelProto) -> Network:
    """Infer the shapes of a model whose inputs have fixed ones."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    whole = {
        name: tuple(int(each) for each in np.ravel(numpy_helper.to_array(tensor)))
        for name, tensor in initializers(graph).items()
        if tensor.data_type == onnx.TensorProto.INT64 and np.prod(tensor.dims) <= 64
    }
    outside = frozenset(each.name for each in (*graph.input, *graph.output))
    return Network(graph, shapes, whole, consumers(graph), producers(graph), outside)


def find_groups(model: ModelProto) -> tuple[Group, ...]:
    """List the groups of a graph with at least two units, in the order of its nodes."""
    network = open_network(model)
    known = {each.name: each for each in weights(network.graph)}
    groups: list[Group] = []
    taken: set[str] = set()
    for node in network.graph.node:
        weight = known.get(node.input[1]) if node.op_type in _PRODUCTS else None
        if weight is None or weight.name in taken or weight.shape[weight.axis] < 2:
            continue
        group = _follow(network, weight)
        if group is not None:
            groups.append(group)
            taken |= _made(group, known)
    return tuple(groups)


def _made(group: Group, known: Mapping[str, Weight]) -> set[str]:
    """Name the weights whose output channels are the group's units."""
    return {
        name
        for name, label in group.labels.items()
        if name in known and known[name].axis == label.axis
    }


def _follow(network: Network, weight: Weight) -> Group | None:
    """Find all that holds the units of a weight's output channels; None where they must stay."""
    units: Units = np.arange(weight.shape[weight.axis])
    while True:
        try:
            labels = _walk(network, weight.name, Label(weight.axis, units))
        except Coarser as coarser:
            merged = coarser.merge(units)
            if merged.max() in (0, units.max()):
                return None
            units = merged
            continue
        except Blocked:
            return None
        break
    readers = _readers(network, labels)
    count = int(units.max()) + 1
    if not readers or not _whole(labels, count):
        return None
    node = network.readers[weight.name][0]
    kind: Kind = "channels" if node.op_type == "Conv" else "neurons"
    kind = "heads" if count < len(units) and kind == "neurons" else kind
    around = Surroundings(
        network.shapes,
        network.readers,
        network.makers,
        initializers(network.graph),
        network.outside,
    )
    branches = find_branches(list(readers.values()), around)
    return Group(weight.name, kind, count, labels, readers, branches)


def _walk(network: Network, name: str, label: Label) -> dict[str, Label]:
    labels = {name: label}
    waiting = deque([name])
    while waiting:
        current = waiting.popleft()
        if current in network.outside:
            raise Blocked(f"{current!r} is an input or an output")
        nodes = list(network.readers.get(current, ()))
        if current in network.makers:
            nodes.append(network.makers[current])
        for node in nodes:
            for other, found in spread(node, labels, network.shapes, network.axes):
                if other not in labels:
                    labels[other] = found
                    waiting.append(other)
                elif not labels[other].same(found):
                    raise _conflict(other, labels[other], found)
    return labels


def _conflict(name: str, one: Label, other: Label) -> Blocked | Coarser:
    """Say what follows where a tensor holds the units in two ways.

    Those that share places can only go together: heads of a query, a key and a value that one
    product makes.
    """
    shared = (one.units >= 0) & (other.units >= 0)
    if one.axis != other.axis or not np.array_equal(one.units >= 0, other.units >= 0):
        return Blocked(f"{name!r} holds the units in two ways")
    pairs = zip(one.units[shared], other.units[shared], strict=True)
    return Coarser([np.array(pair) for pair in pairs])


def _whole(labels: Mapping[str, Label], count: int) -> bool:
    """Tell whether every tensor has each unit equally often: a cut then leaves even pieces."""
    for label in labels.values():
        found = np.bincount(label.units[label.units >= 0], minlength=count)
        if len(found) != count or found.min() != found.max():
            return False
    return True


def _readers(network: Network, labels: Mapping[str, Label]) -> dict[str, NodeProto]:
    """Map the stored weights that sum over units to the nodes that do."""
    stored = initializers(network.graph)
    found = {}
    for node in network.graph.node:
        weight = node.input[1] if node.op_type in _PRODUCTS else ""
        if weight not in stored or weight not in labels:
            continue
        if labels[weight].axis == summed_axis(node) and not is_depthwise(node, network.shapes):
            found[weight] = node
    return found


def summed_axis(node: NodeProto) -> int:
    """Return the axis of a product's weight that it sums over."""
    if node.op_type == "Gemm":
        return attribute(node, "transB", 0)
    return 1 if node.op_type == "Conv" else 0
