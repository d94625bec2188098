"""Weights that simplifying leaves as they are, kept out of its way.

Folding would expand 8-bit codes and halves to float32. Weights that products and lookups read
directly are copied by every step, and changed by none.
"""

import math
from collections.abc import Mapping
from hashlib import sha256

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from edgeopt.model.graph import attribute, consumers, initializers

_DECODERS = frozenset({"Cast", "DequantizeLinear"})
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
#: Codes whose levels are looked up.
_CODES = frozenset(
    {TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2}
)
#: Smaller tensors of halves and of codes are folded with the rest.
_SMALLEST = 256
#: Bytes of a weight that is worth keeping apart.
_LARGE = 1 << 16
#: What they give is known once all shapes are.
_OF_SHAPES = frozenset({"Shape", "Size"})


def hide_stored(model: ModelProto) -> list[TensorProto]:
    """Turn weights into inputs, so that nothing folds or copies them.

    Those are what DequantizeLinear reads, halves and places of levels that are widened by Cast, and
    large weights that nothing but products and lookups of what is not known read.
    """
    graph = model.graph
    stored = initializers(graph)
    readers = consumers(graph)
    names = {
        node.input[0]
        for node in graph.node
        if node.op_type in _DECODERS and node.input[0] in stored
        if _is_compressed(node, stored[node.input[0]], readers)
    }
    names |= _plain_weights(model, readers)
    hidden = []
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name in names:
            own = TensorProto()
            own.CopyFrom(graph.initializer[place])
            hidden.append(own)
            del graph.initializer[place]
    hidden.sort(key=lambda each: each.name)
    for each in hidden:
        graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    return hidden


def show_stored(model: ModelProto, hidden: list[TensorProto]) -> ModelProto:
    """Make weights of hidden inputs again; those that nothing reads any more are dropped.

    Stored tensors are in the order in which nodes read them.
    """
    if not hidden:
        return model
    graph = model.graph
    names = {each.name for each in hidden}
    read = dict.fromkeys(name for node in graph.node for name in node.input)
    order = {name: place for place, name in enumerate(read)}
    kept = [each for each in graph.input if each.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(each for each in hidden if each.name in order)
    graph.initializer.sort(key=lambda each: order.get(each.name, len(order)))
    return model


def _plain_weights(model: ModelProto, readers: Mapping[str, list[NodeProto]]) -> set[str]:
    """Name the large weights that no simplification looks into.

    Of equal ones, which are merged, and of those that a normalization may be folded into, there
    are none.
    """
    graph = model.graph
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    if any(
        node.op_type == "BatchNormalization" or any(each.type in kinds for each in node.attribute)
        for node in graph.node
    ):
        return set()
    varying = _varying(model)
    outputs = {each.name for each in graph.output}
    alike: dict[bytes, list[str]] = {}
    for tensor in graph.initializer:
        if len(tensor.raw_data) >= _LARGE:
            alike.setdefault(sha256(tensor.raw_data).digest(), []).append(tensor.name)
    alone = {group[0] for group in alike.values() if len(group) == 1} - outputs
    return {
        name
        for name in alone & set(readers)
        if all(_reads_plainly(node, name, varying) for node in readers[name])
    }


def _reads_plainly(node: NodeProto, name: str, varying: set[str]) -> bool:
    """Tell whether a node multiplies what varies by a tensor, or looks up rows of it by that."""
    if len(node.input) != 2 or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "MatMul":
        return node.input[1] == name and node.input[0] in varying
    by_rows = node.op_type == "Gather" and attribute(node, "axis", 0) == 0
    return by_rows and node.input[0] == name and node.input[1] in varying


def _varying(model: ModelProto) -> set[str]:
    """Name the tensors that depend on more than the shapes of the graph's inputs."""
    graph = model.graph
    stored = initializers(graph)
    found = {each.name for each in graph.input if each.name not in stored}
    for node in graph.node:
        if node.op_type not in _OF_SHAPES and found.intersection(node.input):
            found.update(name for name in node.output if name)
    return found


def _is_compressed(
    node: NodeProto, tensor: TensorProto, readers: Mapping[str, list[NodeProto]]
) -> bool:
    if node.op_type == "DequantizeLinear":
        return True
    if math.prod(tensor.dims) < _SMALLEST:
        return False
    if tensor.data_type in _CODES:
        widened = node.output[0]
        return all(
            each.op_type == "Gather" and each.input[0] != widened
            for each in readers.get(widened, ())
        )
    return tensor.data_type in _HALVES
