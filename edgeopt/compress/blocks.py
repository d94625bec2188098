"""int8-, int4-, int2-blocks, codebooks, signs: few bits, and a scale for so many values in a row.

Codes are symmetric about zero, -8..7 or -2..1, and a scale may be negative, so that the longer side
of the range serves the block's largest value. Zero points would take another byte per block on the
board: on MiniLM-L6 in blocks of 32 they lower the squared error of 4 bits by 13 %, as much as 0.1
bits per weight do, and that of 2 bits not at all.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgeopt.artifact import Choice, Method
from edgeopt.compress.codes import Codes, Floats, is_blank
from edgeopt.compress.edit import Edit
from edgeopt.compress.levels import LARGEST, Levels, codes_of, round_to_levels
from edgeopt.compress.signs import BINARY, TERNARY, find_magnitudes, is_signs, store_signs
from edgeopt.model.graph import Weight

#: Bits per value of the methods with blocks.
BITS: Mapping[Method, int] = {
    "int8-blocks": 8,
    "int4-blocks": 4,
    "int2-blocks": 2,
    "codebook16-blocks": 4,
    "codebook4-blocks": 2,
    "ternary-blocks": 2,
    "binary-blocks": 1,
}
#: Those whose codes stand for levels of the weight's own.
CODEBOOKS: tuple[Method, ...] = ("codebook16-blocks", "codebook4-blocks")
#: Those whose codes are these levels, and their scales magnitudes.
SIGNS: Mapping[Method, Levels] = {"ternary-blocks": TERNARY, "binary-blocks": BINARY}
#: The operator set in which DequantizeLinear reads such codes: by channels, then in blocks.
OPSETS: Mapping[Method, int] = {
    "int8-rows": 13,
    "int8-weights": 13,
    "int8-sparse": 13,
    "int8-dynamic": 13,
    "int8-static": 13,
    "int8-blocks": 21,
    "codebook-weights": 21,
    "int4-blocks": 21,
    "int2-blocks": 25,
    "codebook16-blocks": 21,
    "codebook4-blocks": 25,
    "ternary-blocks": 25,
    "binary-blocks": 21,
}
#: Numbers of a codebook that codes of 2 bits tell apart, for which there is a later operator set.
_FEW_ENTRIES, _FEW_OPSET = 4, 25
#: What a block's scale may be of the one that holds its largest value exactly: 1 clips nothing.
_RATIOS = tuple(np.linspace(0.4, 1.05, 14, dtype=np.float32))
#: float16 holds scales to 11 bits when the largest is in this range; smaller ones hardly matter.
_HALF_RANGE = (2.0**-12, 2.0**14)
#: The least number above zero that float16 holds.
_LEAST_HALF = 2.0**-24
#: Values searched at a time: what that needs stays in a core's own cache.
_PIECE = 1 << 16

_NARROW = {8: np.int8, 4: ml_dtypes.int4, 2: ml_dtypes.int2}
UNSIGNED = {8: np.uint8, 4: ml_dtypes.uint4, 2: ml_dtypes.uint2}


def opset_of(choice: Choice) -> int:
    """Return the operator set that a form needs; 0: any."""
    if choice.entries is not None and choice.entries <= _FEW_ENTRIES:
        return _FEW_OPSET
    return OPSETS.get(choice.method, 0)


def encode_blocks(
    values: Floats,
    *,
    block: int,
    bits: int,
    levels: Levels | None = None,
    power_of_two: bool = False,
) -> tuple[Codes, npt.NDArray[np.single]]:
    """Return codes [R, K] and scales [R, K / block] of a matrix whose blocks lie along its rows.

    Of each block's scales the one with the least sum of squared errors is taken. The scales are
    float32 numbers that float16 holds, unless the matrix is far from 1 in magnitude. With levels,
    the codes are the levels themselves.
    """
    rows, depth = values.shape
    if (levels is None or not levels.all()) and is_blank(values):
        # As where only sizes count: every scale is as good.
        return np.zeros(values.shape, np.int8), np.ones((rows, depth // block), np.float32)
    rounded = scale_rounding(values, bits, levels)
    if power_of_two:
        rounded = to_powers(rounded)
    blocks = values.reshape(-1, block)
    codes = np.empty(blocks.shape, np.int8)
    scales = np.empty(len(blocks), np.float32)
    step = max(1, _PIECE // block)

    def encode(first: int) -> None:
        part = slice(first, first + step)
        scales[part] = search_scales(blocks[part], bits, rounded, levels=levels)
        codes[part] = round_codes(blocks[part], scales[part, None], bits, levels)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # As a list, so that what failed in a thread is raised here.
        list(pool.map(encode, range(0, len(blocks), step)))
    return codes.reshape(rows, depth), scales.reshape(rows, depth // block)


def search_scales(
    blocks: Floats,
    bits: int,
    rounded: Callable[[Floats], Floats],
    importance: Floats | None = None,
    levels: Levels | None = None,
) -> Floats:
    """Return each row's scale with the least squared error, weighted by column or not."""
    if levels is not None and is_signs(levels):
        return rounded(find_magnitudes(blocks, levels, importance))
    if is_blank(blocks):
        # As where only sizes count.
        return rounded(np.zeros(len(blocks), np.float32))
    lowest, highest = _ends(bits, levels)
    largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    best = np.full(len(blocks), np.inf, np.float32)
    scales = np.ones(len(blocks), np.float32)
    # Long rows are gone over several times faster than short ones.
    columns = np.ascontiguousarray(blocks.T)
    error = np.empty_like(columns)
    if importance is not None:
        importance = np.broadcast_to(importance, blocks.shape).T
    for ratio in _RATIOS:
        for side in (lowest, highest):
            scale = rounded(largest * (ratio / side))
            error = round_codes(columns, scale, bits, levels, out=error)
            error *= scale
            np.subtract(columns, error, out=error)
            error *= error
            total = (error if importance is None else error * importance).sum(axis=0)
            better = total < best
            best[better] = total[better]
            scales[better] = scale[better]
    return scales


def _ends(bits: int, levels: Levels | None) -> tuple[int, int]:
    """Return what a block's largest value may become at either side of the range."""
    if levels is None:
        # A scale that makes it 2^(bits-1) clips it to one less: that may still be best.
        return -(1 << (bits - 1)), 1 << (bits - 1)
    return int(levels[0]), int(levels[-1])


def round_codes(
    values: Floats,
    scales: Floats,
    bits: int,
    levels: Levels | None = None,
    out: Floats | None = None,
) -> Floats:
    """Return the nearest codes, or the nearest levels themselves, as floats; codes in out."""
    if levels is not None:
        return round_to_levels(values, scales, levels)
    lowest = -(1 << (bits - 1))
    nearest: Floats = np.divide(values, scales, out=out)
    np.rint(nearest, out=nearest)
    np.clip(nearest, lowest, -lowest - 1, out=nearest)
    return nearest


def scale_rounding(
    values: Floats, bits: int, levels: Levels | None = None
) -> Callable[[Floats], Floats]:
    """Return what makes a scale one that is stored, in float16 where a matrix's scales fit it."""
    steps = 1 << (bits - 1)
    if levels is not None:
        steps = 1 if is_signs(levels) else LARGEST
    largest = float(np.abs(values).max(initial=0)) / steps
    half = _HALF_RANGE[0] <= largest <= _HALF_RANGE[1]
    tiny = np.finfo(np.float32).tiny
    # A block of zeros, or of what is nothing beside the others, has codes of zero, and any scale.
    # Levels may have no zero: there the least scale brings all of them next to it.
    least = np.float32(1 if levels is None else _LEAST_HALF if half else tiny)

    def rounded(scales: Floats) -> Floats:
        stored = scales.astype(np.float16).astype(np.float32) if half else scales
        return np.where(np.abs(stored) < tiny, least, stored).astype(np.float32)

    return rounded


def to_powers(rounded: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """Return what makes a scale the nearest power of two, with its sign, that is stored.

    Nearest by ratio: 2^round(log2 |s|). Of those that float16 rounds to it holds all.
    """

    def nearest(scales: Floats) -> Floats:
        stored = rounded(scales)
        exponents = np.rint(np.log2(np.abs(stored)))
        powers: Floats = np.copysign(np.exp2(exponents), stored).astype(np.float32)
        return powers

    return nearest


def blocks_last(weight: Weight, values: npt.NDArray[np.single]) -> Floats:
    """Turn a weight so that its blocks lie along its last axis: K of a matrix, a table's row."""
    return values if block_axis(weight) == 1 else np.ascontiguousarray(values.T)


def block_axis(weight: Weight) -> int:
    """Return the axis that blocks lie along."""
    return 1 if weight.role == "table" else 1 - weight.axis


def store_blocks(
    edit: Edit,
    weight: Weight,
    codes: Codes,
    scales: Floats,
    *,
    bits: int,
    levels: Levels | None = None,
) -> None:
    """Store packed codes and put a DequantizeLinear in blocks between them and their readers.

    codes and scales have their blocks along the last axis. Scales that float16 holds are stored so
    and cast, since DequantizeLinear gives numbers of its scales' type. Levels are looked up first.
    """
    first = edit.readers(weight.name)[0]
    block = codes.shape[1] // scales.shape[1]
    axis = block_axis(weight)
    if levels is not None and len(levels) == len(BINARY):
        store_signs(edit, weight, codes, _store_scales(edit, weight, scales), block=block)
        return
    codes, scales = (codes, scales) if axis == 1 else (codes.T, scales.T)
    stored = _store_codes(edit, weight, codes, bits, levels)
    inputs = (stored, _store_scales(edit, weight, scales))
    edit.insert(first, "DequantizeLinear", inputs, weight.name, axis=axis, block_size=block)
    edit.forget(weight)


def _store_scales(edit: Edit, weight: Weight, scales: Floats) -> str:
    """Store scales, in half precision where that holds them all, and name them in float32."""
    scale = f"{weight.name}.scale"
    half = scales.astype(np.float16)
    if not np.array_equal(half, scales):
        return edit.store(scale, scales)
    first = edit.readers(weight.name)[0]
    edit.store(f"{scale}.half", half)
    return edit.insert(first, "Cast", (f"{scale}.half",), scale, to=TensorProto.FLOAT)


def _store_codes(edit: Edit, weight: Weight, codes: Codes, bits: int, levels: Levels | None) -> str:
    """Store codes in few bits; of levels, their places and what looks them up."""
    if levels is None or is_signs(levels):
        return edit.store(f"{weight.name}.int{bits}", codes.astype(_NARROW[bits]))
    first = edit.readers(weight.name)[0]
    packed = codes_of(codes, levels).astype(UNSIGNED[bits])
    places = edit.store(f"{weight.name}.uint{bits}", packed)
    book = edit.store(f"{weight.name}.levels", levels)
    # onnxruntime's Gather takes places of 32 bits at least.
    wide = edit.insert(first, "Cast", (places,), f"{weight.name}.places", to=TensorProto.INT32)
    return edit.insert(first, "Gather", (book, wide), f"{weight.name}.level", axis=0)
