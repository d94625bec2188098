"""Weights in their stored form: folding would expand 8-bit codes and halves to float32."""

import math

from onnx import ModelProto, NodeProto, TensorProto, helper

from edgeopt.model.graph import initializers

_DECODERS = frozenset({"Cast", "DequantizeLinear"})
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
#: Smaller tensors of halves are folded with the rest.
_SMALLEST = 256


def hide_stored(model: ModelProto) -> list[TensorProto]:
    """Turn weights that nodes decode into inputs, so that nothing folds the decoding.

    Those are what DequantizeLinear reads, and halves that are widened by Cast.
    """
    graph = model.graph
    stored = initializers(graph)
    names = {
        node.input[0]
        for node in graph.node
        if node.op_type in _DECODERS and node.input[0] in stored
        if _is_compressed(node, stored[node.input[0]])
    }
    hidden = [TensorProto.FromString(stored[name].SerializeToString()) for name in sorted(names)]
    kept = [each for each in graph.initializer if each.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for each in hidden:
        graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    return hidden


def show_stored(model: ModelProto, hidden: list[TensorProto]) -> ModelProto:
    """Make weights of hidden inputs again; those that nothing reads any more are dropped."""
    names = {each.name for each in hidden}
    read = {name for node in model.graph.node for name in node.input}
    kept = [each for each in model.graph.input if each.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(each for each in hidden if each.name in read)
    return model


def _is_compressed(node: NodeProto, tensor: TensorProto) -> bool:
    if node.op_type == "DequantizeLinear":
        return True
    return tensor.data_type in _HALVES and math.prod(tensor.dims) >= _SMALLEST
