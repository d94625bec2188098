"""float32-sparse, float16-sparse, int8-sparse: matrices without their blocks of zeros.

A block is so many consecutive columns of one row of W [K, N]. In standard operators: a Gather of
rows of stored blocks, the first of zeros, by a table of places. On the board the places of blocks
of zeros are not stored either: each block has the number of its row, and each panel of columns
where it begins, as compressed sparse rows (CSR) have, turned.
"""

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from edgeopt.artifact import Choice, Method
from edgeopt.compress.codes import Floats, encode_weight
from edgeopt.compress.edit import Array, Edit
from edgeopt.compress.zeros import Kept, input_rows
from edgeopt.model.graph import Weight
from edgeopt.model.sparse import place_bytes

#: Bytes of a value of each method, and the method that stores zeros too.
SPARSE: dict[Method, tuple[int, Method]] = {
    "float32-sparse": (4, "float32"),
    "float16-sparse": (2, "float16"),
    "int8-sparse": (1, "int8-weights"),
}
#: What the name of stored blocks adds to the weight's.
BLOCKS = ".blocks"
#: Columns of a block: what fills vectors is fastest, fewer find more zeros.
WIDTHS = (16, 8, 4)
#: Share of blocks that may be stored for no core to be slower than with zeros, by width. Half of
#: them take 0.3 to 0.7 of the time on x86-64-v3, of 4 columns 0.5 to 1.2 (tests.bench.sparse); by
#: llvm-mca a stored value takes what it does in the dense loop on Cortex-A72 and A76, and 2.1 times
#: that on Cortex-A53.
FASTER: Mapping[int, float] = {16: 0.5, 8: 0.5, 4: 0.3}
#: Less is not worth another form: share of the bytes that zeros would take.
LEAST_SAVED = 0.05


def kept_blocks(kept: Kept, width: int) -> Kept:
    """Tell which blocks of so many columns have anything that stays, of values [K, N]."""
    depth, columns = kept.shape
    return np.asarray(kept.reshape(depth, columns // width, width).any(axis=2))


def choose_width(values: Floats, item: int, *, faster: bool = False) -> int | None:
    """Return the columns of the blocks by which a matrix [K, N] takes the fewest bytes.

    item: bytes of a value. faster: only blocks that are no slower than zeros are on any core. None
    where no blocks save enough of what it takes with its zeros.
    """
    kept, sizes = values != 0, {}
    if kept.mean() > 1 - LEAST_SAVED:
        return None
    for width in WIDTHS:
        if values.shape[1] % width == 0:
            blocks = kept_blocks(kept, width)
            stored = int(blocks.sum())
            if stored <= blocks.size * (FASTER[width] if faster else 1):
                sizes[width] = stored * width * item + place_bytes(stored, *blocks.shape)
    best = min(sizes, key=lambda width: sizes[width], default=None)
    if best is None or sizes[best] > (1 - LEAST_SAVED) * values.size * item:
        return None
    return best


def store_sparse(edit: Edit, weight: Weight, choice: Choice, kept: Kept | None) -> None:
    """Store the blocks that have anything, and nodes that make the whole matrix of them.

    kept [K, N]: what stays; None: what is not zero.
    """
    method, width = choice.method, choice.width
    assert width is not None
    values = input_rows(weight, edit.value(weight))
    blocks = kept_blocks(values != 0 if kept is None else kept, width)
    depth, panels = blocks.shape
    places = np.zeros(blocks.shape, np.int32)
    places[blocks] = np.arange(1, int(blocks.sum()) + 1)
    scales: Floats | None = None
    stored: Array = values
    if method == "int8-sparse":
        stored, scales = encode_weight(values, axis=1)
    elif method == "float16-sparse":
        stored = values.astype(np.float16)
    split = stored.reshape(depth, panels, width)
    rows = np.concatenate([np.zeros((1, width), stored.dtype), split[blocks]])
    name = weight.name
    edit.store(f"{name}{BLOCKS}", rows)
    small = len(rows) <= 1 << 16
    edit.store(f"{name}.places", places.astype(np.uint16) if small else places)
    half = method == "float16-sparse"
    _decode(edit, weight, scales, small=small, half=half)


def _decode(edit: Edit, weight: Weight, scales: Floats | None, *, small: bool, half: bool) -> None:
    """Look blocks up, join them to a matrix, and decode and turn it where it needs that."""
    name, first = weight.name, edit.readers(weight.name)[0]
    places = f"{name}.places"
    if small:
        # onnxruntime's Gather takes places of 32 bits at least.
        places = edit.insert(first, "Cast", (places,), f"{name}.wide", to=TensorProto.INT32)
    blocks = edit.insert(first, "Gather", (f"{name}{BLOCKS}", places), f"{name}.split", axis=0)
    turned = weight.axis == 0
    outputs = weight.shape[weight.axis]
    shape = edit.store(f"{name}.shape", np.array([weight.size // outputs, outputs], np.int64))
    last = f"{name}.rows" if turned else name
    whole = f"{name}.codes" if half or scales is not None else last
    whole = edit.insert(first, "Reshape", (blocks, shape), whole)
    if scales is not None:
        factors = edit.store(f"{name}.scale", scales)
        edit.insert(first, "DequantizeLinear", (whole, factors), last, axis=1)
    elif half:
        edit.insert(first, "Cast", (whole,), last, to=TensorProto.FLOAT)
    if turned:
        edit.insert(first, "Transpose", (last,), name, perm=[1, 0])
    edit.forget(weight)
