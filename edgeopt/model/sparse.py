"""Matrices in a graph that are stored without their blocks of zeros: where, and how many bytes.

Such a matrix is a Gather of rows of blocks, of which the first one is zeros, by stored places.
"""

import math
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from edgeopt.model.graph import attribute, initializers, producers

#: How blocks and their places may be stored.
_VALUES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
_PLACES = (TensorProto.UINT16, TensorProto.INT32)


@dataclass(frozen=True, slots=True)
class SparseMatrix:
    """A matrix [K, N] of blocks, so many of which are stored, each of so many columns."""

    #: Names of the stored blocks and of their places.
    blocks: str
    places: str
    stored: int
    width: int
    depth: int
    panels: int
    #: Bytes of a value.
    item: int

    @property
    def share(self) -> float:
        """Share of the blocks that are stored."""
        return self.stored / (self.depth * self.panels)

    @property
    def sizes(self) -> dict[str, int]:
        """What is pushed of both tensors, in bytes: no zeros, and no places of zeros."""
        where = place_bytes(self.stored, self.depth, self.panels)
        return {self.blocks: self.stored * self.width * self.item, self.places: where}


def place_bytes(stored: int, depth: int, panels: int) -> int:
    """Count the bytes that say where blocks are: the row of each, and where each panel begins."""
    return stored * (2 if depth <= 1 << 16 else 4) + 4 * (panels + 1)


def find_sparse(graph: GraphProto) -> dict[str, SparseMatrix]:
    """Map the output of each Gather of blocks to what it is."""
    stored, makers = initializers(graph), producers(graph)
    found = {}
    for node in graph.node:
        matrix = _read(node, stored, makers) if node.op_type == "Gather" else None
        if matrix is not None:
            found[node.output[0]] = matrix
    return found


def _read(
    node: NodeProto, stored: dict[str, TensorProto], makers: dict[str, NodeProto]
) -> SparseMatrix | None:
    blocks, name = stored.get(node.input[0]), node.input[1]
    while name in makers and makers[name].op_type == "Cast":
        name = makers[name].input[0]
    places = stored.get(name)
    if blocks is None or places is None or attribute(node, "axis", 0) != 0:
        return None
    if blocks.data_type not in _VALUES or places.data_type not in _PLACES:
        return None
    count = blocks.dims[0] - 1 if len(blocks.dims) == 2 else 0
    if len(places.dims) != 2 or count > math.prod(places.dims) or not count:
        return None
    depth, panels = (int(each) for each in places.dims)
    return SparseMatrix(
        blocks=blocks.name,
        places=places.name,
        stored=int(count),
        width=int(blocks.dims[1]),
        depth=depth,
        panels=panels,
        item=int(np.dtype(helper.tensor_dtype_to_np_dtype(blocks.data_type)).itemsize),
    )
