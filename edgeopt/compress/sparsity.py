"""Zeros that save nothing: what a model that was pruned elsewhere takes, and would take sparse.

Kernels skip blocks of zeros, and none skips single ones: in few bits the place of a value takes
more than the value does. How many bytes it would be is counted, for compressed sparse rows
(CSR), a bit for each place, blocks of four, and two of every four.
"""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgeopt.artifact import Choice, Fact, Method, Model, Plan
from edgeopt.compress.choices import SMALLEST
from edgeopt.compress.sparse import SPARSE, choose_width, kept_blocks
from edgeopt.compress.sparse_choices import SPARSE_OF
from edgeopt.compress.zeros import input_rows
from edgeopt.model.graph import Weight, initializers, weights
from edgeopt.model.sparse import place_bytes

#: Fewer zeros than this share are nobody's compression.
_LEAST = 0.2
#: Values of a block that is stored or left out as a whole.
_BLOCK = 4
#: Bits of a value, without scales: those do not get fewer by zeros.
_BITS: dict[Method, int] = {
    "float32": 32,
    "float16": 16,
    "int8-rows": 8,
    "int8-weights": 8,
    "int8-dynamic": 8,
    "int8-static": 8,
    "int8-blocks": 8,
    "codebook16-blocks": 4,
    "int4-blocks": 4,
    "codebook4-blocks": 2,
    "int2-blocks": 2,
    "ternary-blocks": 2,
}


class Sparse(Fact):
    """Bytes of a matrix's values and of where they are, by how they would be stored."""

    dense: int
    #: Each value with its column, and where rows begin (compressed sparse rows).
    csr: int
    #: Values, and one bit for each place.
    bitmap: int
    #: Blocks of four consecutive values with any, and one bit for each block.
    blocks: int
    #: Two of every four values, and two bits for each; None where more than two are not zero.
    two_of_four: int | None

    @property
    def least(self) -> int:
        """The fewest bytes of all."""
        found = (self.dense, self.csr, self.bitmap, self.blocks, self.two_of_four)
        return min(each for each in found if each is not None)


class Dead(Fact):
    """A weight with many zeros, none of which is saved."""

    weight: str
    #: Share of its values.
    zeros: float
    sizes: Sparse
    #: The method that would store it without its blocks of zeros, and the bytes that this takes.
    method: Method | None = None
    blocks: int = 0


def find_dead(model: Model, plan: Plan) -> tuple[Dead, ...]:
    """List the weights of a model with many zeros, and what they would take at a plan's bits."""
    graph = onnx.load(model.path).graph
    stored = initializers(graph)
    choices = {each.weight: each for each in plan.choices}
    found = []
    for weight in weights(graph):
        values = numpy_helper.to_array(stored[weight.name])
        share = float((values == 0).mean())
        bits = _bits_of(choices.get(weight.name))
        if weight.size < SMALLEST or share < _LEAST or bits is None:
            continue
        sizes = measure_sparse(values.reshape(len(values), -1) != 0, bits)
        dead = Dead(weight=weight.name, zeros=share, sizes=sizes)
        found.append(_with_blocks(dead, weight, values, choices.get(weight.name)))
    return tuple(found)


def _with_blocks(
    dead: Dead, weight: Weight, values: npt.NDArray[np.float32], choice: Choice | None
) -> Dead:
    """Say what would store a matrix without its blocks of zeros, if anything does."""
    method = SPARSE_OF.get("float32" if choice is None else choice.method)
    if method is None or weight.role not in ("matmul", "gemm"):
        return dead
    matrix, item = input_rows(weight, values), SPARSE[method][0]
    width = choose_width(matrix, item)
    if width is None:
        return dead
    blocks = kept_blocks(matrix != 0, width)
    stored = int(blocks.sum())
    size = stored * width * item + place_bytes(stored, *blocks.shape)
    return dead.model_copy(update={"method": method, "blocks": size})


def _bits_of(choice: Choice | None) -> int | None:
    """Return the bits of a value in a form; None where values are not stored one by one."""
    if choice is None:
        return _BITS["float32"]
    return None if choice.rank or choice.rows else _BITS.get(choice.method)


def measure_sparse(kept: npt.NDArray[np.bool_], bits: int) -> Sparse:
    """Count the bytes of a matrix [R, C] of which so many bits a value are kept."""
    rows, columns = kept.shape
    count, size = int(kept.sum()), kept.size
    column = 8 if columns <= 1 << 8 else 16 if columns <= 1 << 16 else 32
    padded = np.pad(kept.reshape(-1), (0, -size % _BLOCK)).reshape(-1, _BLOCK)
    used = int(padded.any(axis=1).sum())
    pairs = padded.sum(axis=1).max(initial=0) <= _BLOCK // 2
    halves = len(padded) * _BLOCK // 2
    return Sparse(
        dense=_bytes(size * bits),
        csr=_bytes(count * (bits + column) + 32 * (rows + 1)),
        bitmap=_bytes(count * bits + size),
        blocks=_bytes(used * _BLOCK * bits + len(padded)),
        two_of_four=_bytes(halves * (bits + 2)) if pairs else None,
    )


def _bytes(bits: int) -> int:
    return -(-bits // 8)
