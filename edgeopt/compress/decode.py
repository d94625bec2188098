"""What forms make of weights: their bytes, and the values that they decode to."""

from collections.abc import Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, helper, numpy_helper

from edgeopt.artifact import Choice
from edgeopt.compress.cost import filed_bytes
from edgeopt.compress.lowrank import factor_names, join_factors
from edgeopt.model.graph import Weight, initializers, producers
from edgeopt.model.oracle import Array, open_session


def weigh_parts(graph: GraphProto, names: Sequence[str]) -> dict[str, int]:
    """Add up what the file holds for each weight: under its name, and its name with a suffix."""
    known, sizes = set(names), dict.fromkeys(names, 0)
    for name, size in filed_bytes(graph).items():
        owner = name
        while owner not in known and "." in owner:
            owner = owner.rpartition(".")[0]
        if owner in known:
            sizes[owner] += size
    return sizes


def weigh_rows(part: ModelProto, table: Weight) -> int:
    """Add up what the file holds for a table of which a part has few rows, stored one by one."""
    whole = GraphProto()
    for tensor in part.graph.initializer:
        dims = (table.shape[0], *tensor.dims[1:])
        whole.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=dims)
    return weigh_parts(whole, [table.name])[table.name]


def decode_choice(weight: Weight, made: ModelProto, choice: Choice) -> Array | None:
    """Compute what a weight became, of low rank the product of its factors.

    None where nodes make it of more than stored tensors.
    """
    if choice.like is not None:
        return numpy_helper.to_array(initializers(made.graph)[weight.name])
    if choice.rank is None:
        return _decode(made, [weight.name]).get(weight.name)
    names = factor_names(weight.name)
    decoded = _decode(made, names)
    if len(decoded) < len(names):
        return None
    return join_factors(weight, *(decoded[name] for name in names))


def _decode(made: ModelProto, names: Sequence[str]) -> dict[str, Array]:
    """Compute the weights that nodes make of stored codes alone."""
    makers, stored = producers(made.graph), initializers(made.graph)
    nodes: dict[str, onnx.NodeProto] = {}
    outputs = [name for name in names if _collect(name, makers, stored, nodes)]
    if not outputs:
        return {}
    ordered = [node for node in made.graph.node if node.output[0] in nodes]
    used = {name for node in ordered for name in node.input}
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        ordered,
        "decode",
        [],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [stored[name] for name in sorted(used & set(stored))],
    )
    part = helper.make_model(graph, opset_imports=made.opset_import, ir_version=made.ir_version)
    values = open_session(part.SerializeToString(), optimize=False).run(outputs, {})
    return dict(zip(outputs, values, strict=True))


def _collect(
    name: str,
    makers: Mapping[str, onnx.NodeProto],
    stored: Mapping[str, onnx.TensorProto],
    nodes: dict[str, onnx.NodeProto],
) -> bool:
    """Gather the nodes that make a tensor; False where they need more than stored tensors."""
    if name in stored or not name:
        return True
    node = makers.get(name)
    if node is None or not all(_collect(each, makers, stored, nodes) for each in node.input):
        return False
    nodes[node.output[0]] = node
    return True
