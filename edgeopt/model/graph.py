"""Questions about an ONNX graph: which weights it has, who makes and who uses a tensor."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgeopt.artifact import Arithmetic
from edgeopt.model.skim import SMALL, skim_model

#: How a weight is used. table: rows looked up by Gather. The others multiply activations.
Role = Literal["table", "matmul", "gemm", "conv", "recurrent"]

#: Operators that hand on the values of their first input, in another form.
_SAME_VALUES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
#: Operators that take a stored weight to what it stands for, exactly.
_UNSTORING = {"Cast", "DequantizeLinear", "Gather"}
#: Operators whose weights a device may multiply as they are stored.
_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
#: Carriers of what depends on the exporter's machine and not on the model.
_REMARKS = ("doc_string", "metadata_props")


@dataclass(frozen=True, slots=True)
class Weight:
    """A trained float32 tensor that one kind of node uses in one way."""

    name: str
    role: Role
    shape: tuple[int, ...]
    #: The axis of its output channels; of a table, its rows.
    axis: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Map the name of each stored tensor to it."""
    return {each.name: each for each in graph.initializer}


def infer_types(model: onnx.ModelProto, *, values: bool = True) -> onnx.ModelProto:
    """Return a model with the types and shapes of its inner tensors.

    Values of large tensors, which decide on no shape, are not handed over, for that takes long;
    where values are not needed they are left out for good, of the given model too.
    """
    stored = {
        each.name: each.raw_data for each in model.graph.initializer if len(each.raw_data) > SMALL
    }
    for tensor in model.graph.initializer:
        if tensor.name in stored:
            tensor.ClearField("raw_data")
    found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    if values:
        for graph in (model.graph, found.graph):
            for tensor in graph.initializer:
                if tensor.name in stored:
                    tensor.raw_data = stored[tensor.name]
    return found


def copy_without(model: onnx.ModelProto, fields: Collection[str]) -> onnx.ModelProto:
    """Copy a model, but for some fields of its graph, whose values may be most of it."""
    made = onnx.ModelProto()
    _copy_fields(model, made, {"graph"})
    _copy_fields(model.graph, made.graph, fields)
    return made


def _copy_fields(source: Any, made: Any, left_out: Collection[str]) -> None:
    """Copy the fields of a protobuf message that are set, but for some."""
    for field, value in source.ListFields():
        if field.name in left_out:
            continue
        if hasattr(value, "append"):
            getattr(made, field.name).extend(value)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(value)
        else:
            setattr(made, field.name, value)


def is_hollow(tensor: TensorProto) -> bool:
    """Tell whether a tensor of floats has a shape and no values."""
    return not (tensor.raw_data or tensor.float_data) and math.prod(tensor.dims) > 0


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Map each tensor to the nodes that read it, in the graph's order."""
    readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    return dict(readers)


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Map each tensor to the node that makes it."""
    return {name: node for node in graph.node for name in node.output}


def drop_unread(graph: GraphProto) -> None:
    """Remove nodes and stored tensors that no output needs; the graph's inputs stay."""
    needed = {each.name for each in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_read_inside(node))
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    tensors = [each for name, each in initializers(graph).items() if name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _read_inside(node: NodeProto) -> set[str]:
    """Return what the graphs in a node read, of their own tensors too."""
    inner = [each.g for each in node.attribute if each.HasField("g")]
    inner += [each for own in node.attribute for each in own.graphs]
    read: set[str] = set()
    for graph in inner:
        read |= {each.name for each in graph.output}
        for own in graph.node:
            read |= set(own.input) | _read_inside(own)
    return read


def attribute(node: NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    for each in node.attribute:
        if each.name == name and each.type == AttributeProto.INT:
            return int(each.i)
    return default


def weights(graph: GraphProto) -> tuple[Weight, ...]:
    """List the weights that can be compressed, in the order of the graph's initializers.

    Left out: tensors that no such node reads, and those that are read in two different ways.
    """
    readers = consumers(graph)
    outputs = {each.name for each in graph.output}
    found = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in outputs:
            continue
        shape = tuple(tensor.dims)
        uses = {_use(node, tensor.name, shape) for node in readers.get(tensor.name, ())}
        use = uses.pop() if len(uses) == 1 else None
        if use is not None:
            found.append(Weight(tensor.name, use[0], shape, use[1]))
    return tuple(found)


def _use(node: NodeProto, name: str, shape: tuple[int, ...]) -> tuple[Role, int] | None:
    """Return the role of a tensor in a node and the axis of its output channels."""
    place = list(node.input).index(name)
    if list(node.input).count(name) > 1:
        return None
    match node.op_type, place, len(shape):
        case "Gather", 0, 2 if attribute(node, "axis", 0) == 0:
            return "table", 0
        case "MatMul", 1, 2:
            return "matmul", 1
        case "Gemm", 1, 2:
            return "gemm", 0 if attribute(node, "transB", 0) else 1
        case "Conv", 1, rank if rank >= 3:
            return "conv", 0
        case "LSTM" | "GRU" | "RNN", 1 | 2, 3:
            return "recurrent", 1
    return None


def lookup_limit(graph: GraphProto, name: str) -> int | None:
    """Return the number of rows of the smallest table that a graph input indexes, if any."""
    stored = initializers(graph)
    readers = consumers(graph)
    waiting, seen, limits = [name], {name}, []
    while waiting:
        current = waiting.pop()
        for node in readers.get(current, ()):
            table = stored.get(node.input[0])
            if node.op_type == "Gather" and node.input[1] == current and table is not None:
                limits.append(table.dims[attribute(node, "axis", 0)])
            if node.op_type in _SAME_VALUES and node.output[0] not in seen:
                seen.add(node.output[0])
                waiting.append(node.output[0])
    return min(limits, default=None)


def used_domains(model: onnx.ModelProto) -> set[str]:
    """Return the operator domains that nodes of the graph and its subgraphs belong to."""
    domains: set[str] = set()
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            domains.add("" if node.domain == "ai.onnx" else node.domain)
            waiting.extend(each.g for each in node.attribute if each.HasField("g"))
            waiting.extend(sub for each in node.attribute for sub in each.graphs)
    return domains


def arithmetic_of(graph: GraphProto, *, multiplies_halves: bool = False) -> Arithmetic:
    """Say what a graph computes with: codes where activations are quantized, else its floats.

    Weights that are only stored in half or in codes do not count, except those of products where
    the device multiplies them as they are stored.
    """
    stored = initializers(graph)
    halves = {name for name, each in stored.items() if each.data_type == TensorProto.FLOAT16}
    halves |= {each.name for each in graph.input if _is_half(each.type.tensor_type.elem_type)}
    for node in graph.node:
        if _makes_codes(node):
            return "integer"
    for node in graph.node:
        to_half = node.op_type == "Cast" and _is_half(attribute(node, "to", 0))
        if to_half or (node.op_type not in _UNSTORING and halves.intersection(node.input)):
            return "float16"
    return "float16" if multiplies_halves and _multiplies(graph, halves) else "float32"


def _multiplies(graph: GraphProto, halves: set[str]) -> bool:
    """Say whether a product reads a weight that is stored in half, through a cast."""
    widened = {
        each.output[0]
        for each in graph.node
        if each.op_type == "Cast" and halves.intersection(each.input)
    }
    return any(
        each.op_type in _PRODUCTS and widened.intersection(each.input) for each in graph.node
    )


def read_arithmetic(path: Path, *, multiplies_halves: bool = False) -> Arithmetic:
    """Say what a model file computes with, on a device that multiplies halves or not."""
    graph = skim_model(path).graph
    return arithmetic_of(graph, multiplies_halves=multiplies_halves)


def _makes_codes(node: NodeProto) -> bool:
    return "Quantize" in node.op_type.replace("Dequantize", "") or node.op_type.startswith(
        ("QLinear", "QGemm", "ConvInteger", "MatMulInteger")
    )


def _is_half(kind: int) -> bool:
    return kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def strip_remarks(message: Any) -> None:
    """Clear the remarks in a protobuf message and in all messages inside it."""
    if isinstance(message, TensorProto):
        # Listing its fields would copy its values.
        for name in _REMARKS:
            message.ClearField(name)
        return
    for field, value in message.ListFields():
        if field.name in _REMARKS:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for each in value if hasattr(value, "append") else [value]:
                strip_remarks(each)


def describer(graph: GraphProto) -> Callable[[str], ValueInfoProto]:
    """Return what describes a tensor of a graph by its name: by that alone, where no more is known.

    >>> graph = GraphProto()
    >>> graph.input.add(name="x").type.tensor_type.elem_type = 1
    >>> describe = describer(graph)
    >>> describe("x").type.tensor_type.elem_type, describe("y").HasField("type")
    (1, False)
    """
    known = {each.name: each for each in (*graph.input, *graph.value_info, *graph.output)}
    return lambda name: known.get(name) or helper.make_empty_tensor_value_info(name)
