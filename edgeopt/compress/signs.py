"""ternary-blocks, binary-blocks: codes -1, 0, 1 or -1, 1, and one magnitude for every block.

The magnitude that leaves the least squared error of a block w is known in closed form. Binary: the
mean of |w| (Rastegari et al. 2016, XNOR-Net, arXiv 1603.05279). Ternary: that of the k largest |w|,
with the k that makes (sum of those |w|)^2 / k largest (Li et al. 2016, Ternary Weight Networks,
arXiv 1605.04711, eq. 6, which approximates k; here it is found). Values may count differently.
"""

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgeopt.compress.codes import Codes, Floats
from edgeopt.compress.edit import Edit
from edgeopt.compress.levels import Levels
from edgeopt.model.graph import Weight

TERNARY: Levels = np.array([-1, 0, 1], np.int8)
BINARY: Levels = np.array([-1, 1], np.int8)
#: Signs that a byte stands for, and the stored table that says which.
_PER_BYTE = 8
_TABLE = "edgeopt.signs"


def is_signs(levels: Levels) -> bool:
    """Tell whether levels are those of this module, of which magnitudes are known."""
    return len(levels) <= len(TERNARY)


def find_magnitudes(blocks: Floats, levels: Levels, importance: Floats | None = None) -> Floats:
    """Return the magnitude [n] of each row of blocks [n, b] with the least squared error.

    importance [b], above 0: how much the squared error of each column counts; None: all as much.
    """
    sizes = np.abs(blocks).astype(np.float64)
    weights = np.ones(blocks.shape[1]) if importance is None else importance.astype(np.float64)
    if len(levels) == len(BINARY):
        means: Floats = ((sizes * weights).sum(axis=1) / weights.sum()).astype(np.float32)
        return means
    # Those that are not zero are the largest, whatever the magnitude is.
    order = np.argsort(-sizes, axis=1, kind="stable")
    counts = np.cumsum(weights[order], axis=1)
    sums = np.cumsum(np.take_along_axis(sizes, order, 1) * weights[order], axis=1)
    best = (sums * sums / counts).argmax(axis=1)[:, None]
    found = np.take_along_axis(sums, best, 1) / np.take_along_axis(counts, best, 1)
    magnitudes: Floats = found[:, 0].astype(np.float32)
    return magnitudes


def pack_signs(codes: Codes) -> npt.NDArray[np.uint8]:
    """Put 8 consecutive signs of a row [R, K] into a byte, the first in its lowest bit."""
    return np.packbits(codes > 0, axis=1, bitorder="little")


def signs_of_bytes() -> Codes:
    """Return what each byte stands for, [256, 8]."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def store_signs(edit: Edit, weight: Weight, codes: Codes, scales: str, *, block: int) -> None:
    """Store a matrix [K, N] or [N, K] as bits, and nodes that make it of them and its scales.

    codes: [N, K], with blocks along K; scales: the name of the tensor [N, K / block] in float32.
    """
    first = edit.readers(weight.name)[0]
    name = weight.name
    bits = edit.store(f"{name}.bits", pack_signs(codes))
    table = edit.store(_TABLE, signs_of_bytes())
    shape = edit.store(f"{name}.shape", np.array(codes.shape, np.int64))
    # onnxruntime's Gather takes places of 32 bits at least.
    places = edit.insert(first, "Cast", (bits,), f"{name}.bytes", to=TensorProto.INT32)
    parts = edit.insert(first, "Gather", (table, places), f"{name}.parts", axis=0)
    signs = edit.insert(first, "Reshape", (parts, shape), f"{name}.signs")
    turned = weight.axis == 1
    decoded = f"{name}.rows" if turned else name
    edit.insert(first, "DequantizeLinear", (signs, scales), decoded, axis=1, block_size=block)
    if turned:
        edit.insert(first, "Transpose", (decoded,), name, perm=[1, 0])
    edit.forget(weight)
