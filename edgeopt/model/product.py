"""The products of a model with stored weights, each as a model of its own."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import onnx
from onnx import GraphProto, NodeProto, helper

from edgeopt.artifact import Model
from edgeopt.model.describe import facts
from edgeopt.model.graph import infer_types
from edgeopt.model.load import read_model
from edgeopt.model.skim import skim_model
from edgeopt.model.sums import CONVOLUTIONS, RECURRENT, Shapes, count_sums, weight_of

_MATRIX = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")
#: What multiplies by stored weights; only the first two kinds have tiles to choose.
_EVERY = (*_MATRIX, *CONVOLUTIONS, "ConvTranspose", *RECURRENT)

#: Element type and fixed shape of each tensor whose shape is known.
Types: TypeAlias = dict[str, tuple[int, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Product:
    """One node that multiplies by a stored weight, and what it is made of."""

    #: Of the tensor that it computes.
    output: str
    #: Places in the graph of the node and of those that prepare its operands.
    nodes: tuple[int, ...]
    #: Multiplications and additions of all nodes of this model that are alike.
    flops: int
    #: sha256 of operators, attributes, types and shapes: alike nodes have the same one.
    key: str


def find_products(model: Model) -> list[Product]:
    """List the distinct products of matrices and convolutions, the most work first.

    Alike ones are added up.
    """
    return distinct(list_products(inferred(model), _MATRIX + CONVOLUTIONS))


def distinct(products: Iterator[Product]) -> list[Product]:
    """Add up alike products, the most work first."""
    alike: dict[str, Product] = {}
    for each in products:
        first = alike.setdefault(each.key, replace(each, flops=0))
        alike[each.key] = replace(first, flops=first.flops + each.flops)
    return sorted(alike.values(), key=lambda each: -each.flops)


def list_products(model: onnx.ModelProto, operators: tuple[str, ...] = _EVERY) -> Iterator[Product]:
    """Yield every product of a model whose types are inferred, in the order in which they run.

    Of each its own operations alone; those of a tensor whose shape is not known are left out.
    """
    graph = model.graph
    types, constant = types_of(graph), constants_of(graph)
    shapes, places = shapes_of(types), _places(graph)
    for place, node in enumerate(graph.node):
        if node.op_type not in operators or not _is_stored(node, constant):
            continue
        nodes = _operands(graph, place, places, constant)
        made = {name for at in nodes for name in graph.node[at].output}
        read = [name for at in nodes for name in graph.node[at].input if name]
        output = next(name for name in node.output if name)
        if all(name in types or name in made for name in (*read, output)) and output in types:
            key = _signature(graph, nodes, types)
            yield Product(output, nodes, 2 * count_sums(node, shapes), key)


def extract_product(
    model: Model, product: Product, *, directory: Path, whole: onnx.ModelProto | None = None
) -> Model:
    """Write directory/product.onnx: the node with its weights, and its activations as inputs.

    whole: the model with its types, where it was loaded already.
    """
    whole = inferred(model) if whole is None else whole
    graph = whole.graph
    types = types_of(graph)
    nodes = [graph.node[at] for at in product.nodes]
    made = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    stored = [each for each in graph.initializer if each.name in read]
    outside = [name for name in read if name not in made | {each.name for each in stored}]
    part = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info(name, *types[name]) for name in outside],
        [helper.make_tensor_value_info(product.output, *types[product.output])],
        stored,
    )
    cut = helper.make_model(part, opset_imports=whole.opset_import, ir_version=whole.ir_version)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "product.onnx"
    onnx.save_model(cut, path)
    return read_model(path, facts(cut), provenance=(*model.provenance, product.output))


def inferred(model: Model, *, values: bool = True) -> onnx.ModelProto:
    """Load a model with the types of its tensors; without the values of external weights.

    Nor with those of any large ones where they are not asked for.
    """
    if not values:
        return infer_types(skim_model(model.path), values=False)
    return infer_types(onnx.load(model.path, load_external_data=False))


def types_of(graph: GraphProto) -> Types:
    """Return the element type and shape of each tensor whose shape is known and not empty."""
    types: Types = {each.name: (each.data_type, tuple(each.dims)) for each in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        if tensor.elem_type and tensor.HasField("shape") and min(sizes, default=1) > 0:
            types[value.name] = (tensor.elem_type, tuple(sizes))
    return types


def shapes_of(types: Types) -> Shapes:
    """Return the shapes alone."""
    return {name: shape for name, (_, shape) in types.items()}


def constants_of(graph: GraphProto) -> set[str]:
    """Return the tensors that depend on stored ones alone."""
    constant = {"", *(each.name for each in graph.initializer)}
    for node in graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
    return constant


def _is_stored(node: NodeProto, constant: set[str]) -> bool:
    weight = weight_of(node)
    return weight in constant and node.input[0] not in constant


def _places(graph: GraphProto) -> dict[str, int]:
    """Map each tensor to the place of the node that computes it."""
    return {name: at for at, node in enumerate(graph.node) for name in node.output if name}


def _operands(
    graph: GraphProto, place: int, places: Mapping[str, int], constant: set[str]
) -> tuple[int, ...]:
    """Find the nodes that make the weights, and what decodes the activations from codes."""
    found, waiting = {place}, [graph.node[place]]
    while waiting:
        for name in waiting.pop().input:
            at = places.get(name)
            if at is None or at in found:
                continue
            source = graph.node[at]
            decodes = source.op_type == "DequantizeLinear" and source.input[1] in constant
            if name in constant or decodes:
                found.add(at)
                waiting.append(source)
    return tuple(sorted(found))


def _signature(graph: GraphProto, nodes: tuple[int, ...], types: Types) -> str:
    """Digest nodes by operators, attributes and shapes, whatever their names and values."""
    parts: list[object] = []
    for at in nodes:
        node = graph.node[at]
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        read = tuple(types.get(name) if name else None for name in node.input)
        parts.append((node.op_type, tuple(attributes), read))
    return hashlib.sha256(repr(parts).encode()).hexdigest()
