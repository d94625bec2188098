"""How many bytes of activations a graph holds at a time, as the compiler will plan them."""

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from onnx import GraphProto, NodeProto, helper

#: Other views of the same bytes.
_VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
#: Computed element by element, so fused into what makes their largest input.
_FUSED = {
    "Abs", "Add", "Cast", "Clip", "DequantizeLinear", "Div", "Erf", "Exp", "Gelu", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg", "Not", "Pow", "QuantizeLinear",
    "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip


def peak_activations(graph: GraphProto) -> int:
    """Return the most bytes of activations that live at a time, inputs and outputs included.

    Tensors are made in the graph's order and end with their last reader. What is made of stored
    tensors alone (decoded weights) takes none: the kernels decode as they go. An operator by
    elements takes over the bytes of an input that ends with it, as fusion does. Shapes are
    those in the graph's value_info.
    """
    sizes = _sizes(graph)
    blocks = _share_blocks(graph, _last_uses(graph))
    changes = [0] * (len(graph.node) + 2)
    for block in blocks:
        size = max(sizes.get(name, 0) for name in block.tensors)
        changes[block.first] += size
        changes[block.last + 1] -= size
    return max(accumulate(changes))


@dataclass(slots=True)
class _Block:
    """Bytes that several tensors hold one after the other; places are indices of nodes, from 1."""

    tensors: list[str]
    first: int
    last: int


def _share_blocks(graph: GraphProto, last: dict[str, int]) -> list[_Block]:
    """Put every tensor that is computed into a block."""
    owner = {each.name: _Block([each.name], 0, last[each.name]) for each in graph.input}
    blocks = list(owner.values())
    for place, node in enumerate(graph.node, start=1):
        inputs = [owner[name] for name in node.input if name in owner]
        if not inputs:
            continue
        shared = _shared(node, inputs, place)
        for name in node.output:
            block = shared or _Block([], place, place)
            if shared is None:
                blocks.append(block)
            block.tensors.append(name)
            block.last = max(block.last, last[name])
            owner[name] = block
            shared = None
    return blocks


def _shared(node: NodeProto, inputs: list[_Block], place: int) -> _Block | None:
    """Return the block that the node's first output takes over, if any."""
    if node.op_type in _VIEWS:
        return inputs[0]
    if node.op_type in _FUSED:
        return next((each for each in inputs if each.last <= place), None)
    return None


def _last_uses(graph: GraphProto) -> dict[str, int]:
    """Map every tensor to the place of its last reader; outputs of the graph live to the end."""
    last: dict[str, int] = {each.name: 0 for each in graph.input}
    for place, node in enumerate(graph.node, start=1):
        last.update(dict.fromkeys(node.output, place))
        last.update(dict.fromkeys(node.input, place))
    last.update({each.name: len(graph.node) for each in graph.output})
    return last


def _sizes(graph: GraphProto) -> dict[str, int]:
    """Map every tensor whose shape is known to its size in bytes."""
    sizes = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize
            sizes[value.name] = math.prod(dim.dim_value for dim in tensor.shape.dim) * itemsize
    return sizes
