"""Predict from the graph alone what a model will need on a board, before anything is compiled."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper
from onnx.helper import get_attribute_value

from edgeopt.artifact import Footprint, Model
from edgeopt.compress.arena import peak_activations
from edgeopt.compress.code import predict_code
from edgeopt.filters import TAPS, TILE, is_transformed
from edgeopt.model.graph import attribute, consumers, infer_types, initializers, producers
from edgeopt.model.oracle import Array
from edgeopt.model.product import shapes_of, types_of
from edgeopt.model.skim import skim_model
from edgeopt.model.sparse import find_sparse
from edgeopt.target import Target

#: Layout of weights.bin: its header, one record per tensor, and the alignment of each kind.
_HEADER, _RECORD, _ALIGNMENT, _TABLE_ALIGNMENT = 16, 112, 64, 16384
#: Smaller tables are read like any other weight.
_LARGE_TABLE = 64 * 1024
#: Bits of the types that are stored packed.
_NARROW: Mapping[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


def predict_footprint(
    model: Model,
    target: Target,
    *,
    runtime: int,
    program: int,
    samples: Mapping[str, Array] | None = None,
) -> Footprint:
    """Predict the bytes of a model's bundle on a target.

    runtime is the peak memory of the device program before any model, program its file, both
    in bytes. samples are the inputs that will run, as [S, *shape]: with them, exactly the
    touched pages of embedding tables count as resident; without, every row read is another.
    """
    whole = infer_types(skim_model(model.path), values=False)
    graph, code = whole.graph, predict_code(whole)
    tables = _tables(graph)
    page = target.memory.page
    file = resident = _HEADER + _RECORD * len(graph.initializer)
    sizes = pushed_bytes(graph) | _transformed_bytes(graph, target.lanes)
    for tensor in graph.initializer:
        size = sizes[tensor.name]
        if tensor.name in tables and size > _LARGE_TABLE:
            file = _align(file, _TABLE_ALIGNMENT) + _align(size, _TABLE_ALIGNMENT)
            resident += _touched(graph, tensor, tables[tensor.name], samples, page)
        else:
            file = _align(file, _ALIGNMENT) + size
            resident = _align(resident, _ALIGNMENT) + size
    return Footprint(
        flash=file + program + code,
        weights=file,
        weights_resident=_align(resident, page),
        arena=peak_activations(graph),
        runtime=runtime + code,
    )


def stored_bytes(tensor: TensorProto) -> int:
    """Return the size of a tensor's values as the weights file holds them, packed."""
    count = int(math.prod(tensor.dims))
    bits = _NARROW.get(tensor.data_type)
    if bits is not None:
        return -(-count * bits // 8)
    return count * int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def pushed_bytes(graph: GraphProto) -> dict[str, int]:
    """Map each stored tensor to its size in the weights file, where sparse matrices are packed."""
    sizes = {each.name: stored_bytes(each) for each in graph.initializer}
    for matrix in find_sparse(graph).values():
        sizes |= matrix.sizes
    return sizes


def _transformed_bytes(graph: GraphProto, lanes: int) -> dict[str, int]:
    """Map filters that the compiler stores transformed to their size in the weights file."""
    shapes, stored = shapes_of(types_of(graph)), initializers(graph)
    sizes: dict[str, int] = {}
    plain: dict[str, int] = {}
    for node in graph.node:
        filters = stored.get(node.input[1]) if node.op_type == "Conv" else None
        if filters is None or filters.data_type != TensorProto.FLOAT:
            continue
        size = stored_bytes(filters)
        if _is_transformed(node, shapes, lanes):
            sizes[filters.name] = size // TAPS**2 * TILE**2
        else:
            plain[filters.name] = size
    # Where another node reads them as they are, both are stored.
    return {name: size + plain.get(name, 0) for name, size in sizes.items()}


def _is_transformed(node: NodeProto, shapes: Mapping[str, Sequence[int]], lanes: int) -> bool:
    """Tell whether the filters of a convolution are stored transformed."""
    filters, image = shapes[node.input[1]], shapes.get(node.output[0], ())
    given = {each.name: get_attribute_value(each) for each in node.attribute}
    steps = {*given.get("strides", ()), *given.get("dilations", ()), given.get("group", 1)}
    if tuple(filters[2:]) != (TAPS, TAPS) or len(image) != len(filters) or steps != {1}:
        return False
    return is_transformed(lanes, filters[1], filters[0], (image[2], image[3]))


def filed_bytes(graph: GraphProto) -> dict[str, int]:
    """Map each stored tensor to what the weights file grows by: record, and values aligned."""
    return {name: _RECORD + _align(size, _ALIGNMENT) for name, size in pushed_bytes(graph).items()}


def _tables(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Map each stored tensor of which only rows are read to the nodes that look them up.

    Codes in blocks and their scales are decoded by DequantizeLinear before the lookup: kernels
    decode the rows that are read.
    """
    readers = consumers(graph)
    sparse = {each.blocks for each in find_sparse(graph).values()}
    found = {}
    for name in initializers(graph):
        nodes = [] if name in sparse else _lookups(readers, name)
        if nodes:
            found[name] = nodes
    return found


def _lookups(readers: Mapping[str, list[NodeProto]], name: str) -> list[NodeProto]:
    """Return the nodes that look up rows of a tensor; none where one reads it otherwise."""
    found: list[NodeProto] = []
    for node in readers.get(name, []):
        if _by_rows(node, name):
            found.append(node)
            continue
        decodes = node.op_type == "DequantizeLinear" and attribute(node, "block_size", 0)
        # Codes that choose from levels: of the levels themselves no row is looked up.
        chooses = node.op_type == "Gather" and node.input[1] == name
        follows = decodes or chooses or node.op_type == "Cast"
        further = _lookups(readers, node.output[0]) if follows else []
        if not further:
            return []
        found.extend(further)
    return found


def _by_rows(node: NodeProto, name: str) -> bool:
    axis = next((each.i for each in node.attribute if each.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == name and axis == 0


def _touched(
    graph: GraphProto,
    tensor: TensorProto,
    nodes: list[NodeProto],
    samples: Mapping[str, Array] | None,
    page: int,
) -> int:
    """Return the bytes of a table's pages that are read: no more than the whole table."""
    size = stored_bytes(tensor)
    row = size // tensor.dims[0]
    pages: set[int] = set()
    unknown = 0
    for node in nodes:
        source = _source(graph, node.input[1])
        if samples is not None and source in samples:
            for index in np.unique(samples[source]).tolist():
                pages.update(range(index * row // page, (index * row + row - 1) // page + 1))
        else:
            # A row may lie across the border of two pages.
            unknown += _reads(graph, node.input[1]) * (-(-row // page) + 1)
    return min(_align(size, page), (len(pages) + unknown) * page)


def _source(graph: GraphProto, name: str) -> str:
    """Follow casts and reshapes from an index tensor back to where it comes from."""
    makers = producers(graph)
    while name in makers and makers[name].op_type in ("Cast", "Reshape", "Identity", "Unsqueeze"):
        name = makers[name].input[0]
    return name


def _reads(graph: GraphProto, name: str) -> int:
    """Return how many rows one inference reads through an index tensor."""
    source = _source(graph, name)
    for value in (*graph.input, *graph.value_info):
        if value.name == source:
            return math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    stored = initializers(graph).get(source)
    return math.prod(stored.dims) if stored is not None else 1


def _align(size: int, unit: int) -> int:
    return -(-size // unit) * unit
