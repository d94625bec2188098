"""int8-rows, int8-weights, int8-blocks with other numbers: one scale, zero points, powers of two.

With codes c, a scale s and a zero point z a value is s (c - z) (Jacob et al. 2018, arXiv
1712.05877, eq. 1). Without zero points c is in -127..127 and s = max |w| / 127; with them c is in
0..255, s = (max w - min w) / 255 over a range that holds zero, and z = round(-min w / s). They pay
where the values of a channel lie on one side: of MiniLM-L6's matrices, around zero, they lower the
squared error by 16 %, as much as an eighth of a bit does. A power of two is the next one above s,
or the one below where cutting off costs less than coarse steps do: the error doubles, which pays on
cores that shift faster than they multiply, and nowhere in memory. One scale for a tensor saves four
bytes a channel and pays where channels are alike: there the error is nine times as large.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgeopt.choice import Numbers
from edgeopt.compress.blocks import block_axis
from edgeopt.compress.codes import Floats
from edgeopt.compress.edit import Edit
from edgeopt.model.graph import Weight

Bytes = npt.NDArray[np.int8] | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Affine:
    """Codes [R, K] with scales [R, parts of K], or one for all as [1, 1]; zeros as scales."""

    codes: Bytes
    scales: Floats
    #: None: codes count from zero.
    zeros: npt.NDArray[np.uint8] | None


def channels_first(weight: Weight, values: Floats) -> Floats:
    """Arrange a weight's values by output channel, or a table's by row: [R, K]."""
    rows: Floats = np.moveaxis(values, weight.axis, 0).reshape(weight.shape[weight.axis], -1)
    return rows


def encode_affine(rows: Floats, numbers: Numbers, *, block: int | None = None) -> Affine:
    """Return codes of a matrix [R, K] whose scales are for rows, or for blocks along them.

    Scales of blocks are float32 numbers that float16 holds, where the values allow it.
    """
    whole = numbers.granularity == "tensor"
    parts = rows.reshape(1, -1) if whole else rows.reshape(-1, block or rows.shape[1])
    low = np.minimum(parts.min(axis=1), 0).astype(np.float64)
    high = np.maximum(parts.max(axis=1), 0).astype(np.float64)
    step = (high - low) / 255 if numbers.zero_points else np.maximum(-low, high) / 127
    # Of nothing but zeros any scale will do; below the least normal number scales lose bits.
    step = np.maximum(np.where(step > 0, step, 1), np.finfo(np.float32).tiny)
    if numbers.power_of_two:
        above = np.exp2(np.ceil(np.log2(step)))
        either = [_encode(parts, each, low, numbers) for each in (above, above / 2)]
        lost = [np.square(parts - decode_affine(each)).sum(axis=1) for each in either]
        step = np.where(lost[0] <= lost[1], above, above / 2)
    if block is not None:
        step = _halved(step)
    found = _encode(parts, step, low, numbers)
    shape = (1, 1) if whole else (len(rows), -1)
    zeros = None if found.zeros is None else found.zeros.reshape(shape)
    return Affine(found.codes.reshape(rows.shape), found.scales.reshape(shape), zeros)


def _encode(parts: Floats, step: npt.NDArray[np.double], low: Floats, numbers: Numbers) -> Affine:
    scales = step.astype(np.float32)[:, None]
    steps = np.rint(parts / scales)
    if not numbers.zero_points:
        return Affine(np.clip(steps, -127, 127).astype(np.int8), scales, None)
    zeros = np.clip(np.rint(-low[:, None] / scales), 0, 255).astype(np.uint8)
    return Affine(np.clip(steps + zeros, 0, 255).astype(np.uint8), scales, zeros)


def decode_affine(encoded: Affine) -> Floats:
    """Return the values [R, K] that codes stand for."""
    rows, parts = encoded.scales.shape
    zeros = 0 if encoded.zeros is None else encoded.zeros.astype(np.float32)[:, :, None]
    codes = encoded.codes.reshape(rows, parts, -1).astype(np.float32)
    values: Floats = (codes - zeros) * encoded.scales[:, :, None]
    return values.reshape(encoded.codes.shape)


def _halved(step: npt.NDArray[np.double]) -> npt.NDArray[np.double]:
    """Round steps to float16 where it holds the smallest and the largest of them."""
    limits = np.finfo(np.float16)
    held = step.min() >= float(limits.tiny) and step.max() <= float(limits.max)
    return step.astype(np.float16).astype(np.float64) if held else step


def store_affine(edit: Edit, weight: Weight, encoded: Affine) -> None:
    """Store codes of rows along which scales lie, as encoded by channel, and what decodes them."""
    first = edit.readers(weight.name)[0]
    axis = weight.axis
    others = [size for place, size in enumerate(weight.shape) if place != axis]
    codes = np.moveaxis(encoded.codes.reshape(-1, *others), 0, axis)
    stored = edit.store(f"{weight.name}.{codes.dtype.name}", codes)
    shape: tuple[int, ...] = () if encoded.scales.size == 1 else (-1,)
    scale = edit.store(f"{weight.name}.scale", encoded.scales.reshape(shape))
    zeros = encoded.zeros
    # Zeros may be left out by the standard, but onnxruntime 1.31 then adds a wrong shape.
    kept = np.zeros(encoded.scales.shape, np.int8) if zeros is None else zeros
    zero = edit.store(f"{weight.name}.zero", kept.reshape(shape))
    inputs = (stored, scale, zero)
    edit.insert(first, "DequantizeLinear", inputs, weight.name, axis=axis)
    edit.forget(weight)


def store_affine_blocks(edit: Edit, weight: Weight, encoded: Affine, *, block: int) -> None:
    """Store codes in blocks along the rows with their scales, in half where exact, and zeros."""
    first, axis = edit.readers(weight.name)[0], block_axis(weight)
    parts = [encoded.codes, encoded.scales, encoded.zeros]
    turned = [each.T if each is not None and axis == 0 else each for each in parts]
    codes, scales, zeros = turned
    assert codes is not None
    assert scales is not None
    stored = edit.store(f"{weight.name}.{codes.dtype.name}", codes)
    scale = f"{weight.name}.scale"
    half = scales.astype(np.float16)
    if np.array_equal(half, scales):
        edit.store(f"{scale}.half", half)
        edit.insert(first, "Cast", (f"{scale}.half",), scale, to=TensorProto.FLOAT)
    else:
        edit.store(scale, scales)
    inputs = [stored, scale]
    if zeros is not None:
        inputs.append(edit.store(f"{weight.name}.zero", zeros))
    edit.insert(first, "DequantizeLinear", inputs, weight.name, axis=axis, block_size=block)
    edit.forget(weight)


def store_affine_rows(edit: Edit, weight: Weight, encoded: Affine) -> None:
    """Store a table [V, D]; only the rows that are looked up are decoded."""
    codes = edit.store(f"{weight.name}.{encoded.codes.dtype.name}", encoded.codes)
    scales = edit.store(f"{weight.name}.scale", encoded.scales)
    by_row = len(encoded.scales) > 1
    for node in edit.readers(weight.name):
        output, ids = edit.replace(node), node.input[1]
        rows = edit.insert(node, "Gather", (codes, ids), f"{output}.codes", axis=0)
        steps = edit.insert(node, "Cast", (rows,), f"{output}.cast", to=TensorProto.FLOAT)
        if encoded.zeros is not None:
            zero = edit.store(f"{weight.name}.zero", encoded.zeros)
            if by_row:
                zero = edit.insert(node, "Gather", (zero, ids), f"{output}.zero", axis=0)
            wide = edit.insert(node, "Cast", (zero,), f"{output}.middle", to=TensorProto.FLOAT)
            steps = edit.insert(node, "Sub", (steps, wide), f"{output}.steps")
        factor = scales
        if by_row:
            factor = edit.insert(node, "Gather", (scales, ids), f"{output}.scale", axis=0)
        edit.insert(node, "Mul", (steps, factor), output)
    edit.forget(weight)
