"""Exact sums of codes, and codes in blocks: MatMulInteger, ConvInteger, MatMulNBits, rows."""

import numpy as np
from tvm import relax

from edgeopt.compile.blocked import call_decode
from edgeopt.compile.operators.node import Node, Result, Unsupported, dtype_of
from edgeopt.compile.operators.quantized import Convert, QuantizedConverter, apply
from edgeopt.compile.views import constant_of, shape_of

#: float32 holds every whole number up to this one.
_EXACT = 1 << 24
#: The largest distance of a code from a zero point.
_FURTHEST = 255


def _moved(node: Node, place: int, zero: relax.Expr | None) -> relax.Expr:
    """Subtract a zero point from codes; constants now."""
    codes = node.input(place)
    values = constant_of(codes), None if zero is None else constant_of(zero)
    if values[0] is not None and (zero is None or values[1] is not None):
        shift = 0 if values[1] is None else values[1].astype(np.float32)
        return relax.const(values[0].astype(np.float32) - shift)
    real = node.emit(relax.op.astype(codes, "float32"))
    if zero is None:
        return real
    return node.emit(relax.op.subtract(real, node.emit(relax.op.astype(zero, "float32"))))


def _aligned(node: Node, place: int, shape: tuple[int, ...]) -> relax.Expr | None:
    """Give a zero point the axes that broadcast with its codes; None where there is none."""
    if not node.has(place):
        return None
    zero = node.input(place)
    if int(np.prod(shape_of(zero))) == 1:
        shape = ()
    elif len(shape_of(zero)) > 1:
        return zero
    value = constant_of(zero)
    if value is not None:
        return relax.const(value.reshape(shape), value.dtype.name)
    return node.emit(relax.op.reshape(zero, shape))


def matmul_integer(node: Node, further: Convert) -> Result:
    """Multiply codes exactly: by the integer kernel where a matrix is stored, or in floats."""
    value = constant_of(node.input(1))
    zero = constant_of(node.input(3)) if node.has(3) else np.zeros((), np.uint8)
    if value is None or zero is None or value.ndim != 2 or max(zero.shape, default=1) != zero.size:
        return _multiply_pieces(node, further)
    return _multiply_stored(node, further, value, zero.reshape(-1).astype(np.int32))


def _multiply_stored(
    node: Node, further: Convert, value: np.ndarray, weight_zero: np.ndarray
) -> relax.Expr:
    """Multiply by int8 codes without zero points, and subtract what these would have.

    Codes of uint8 are moved by 128; kernels take none of -128, which a second product adds.
    """
    shift = 128 if value.dtype == np.uint8 else 0
    moved = value.astype(np.int32) - shift
    limited = np.maximum(moved, -127) if shift else moved
    left, zero = node.input(0), _aligned(node, 2, (-1, 1))
    none = relax.const(np.zeros((), dtype_of(left)))
    by_row = zero is not None and len(shape_of(zero)) > 0
    given = none if zero is None or by_row else zero
    totals = [
        apply(node, further, "MatMulInteger", [left, relax.const(part.astype(np.int8)), given])
        for part in (limited, moved - limited)
        if part is limited or part.any()
    ]
    if by_row:
        assert zero is not None
        sums = relax.const(moved.sum(axis=0, dtype=np.int32))
        middle = node.emit(relax.op.astype(zero, "int32"))
        offset = node.emit(relax.op.multiply(middle, sums))
        totals = [node.emit(relax.op.subtract(_sum(node, totals), offset))]
    total = _sum(node, totals)
    weight_zero = weight_zero - shift
    if not weight_zero.any():
        return total
    real = _moved(node, 0, zero)
    rows = node.emit(relax.op.sum(real, axis=[-1], keepdims=len(node.shape(0)) > 1))
    rows = node.emit(relax.op.astype(rows, "int32"))
    return node.emit(
        relax.op.subtract(total, node.emit(relax.op.multiply(rows, relax.const(weight_zero))))
    )


def _multiply_pieces(node: Node, further: Convert) -> Result:
    """Multiply codes in pieces of K whose sums float32 holds."""
    left_shape, right_shape = node.shape(0), node.shape(1)
    left = _moved(node, 0, _aligned(node, 2, (*left_shape[-2:-1], 1)))
    right = _moved(node, 1, _aligned(node, 3, (1, right_shape[-1])))
    depth = left_shape[-1]
    piece = _EXACT // (_FURTHEST * _FURTHEST)
    row, column = len(left_shape) - 1, max(len(right_shape) - 2, 0)
    totals = []
    for start in range(0, depth, piece):
        end = min(start + piece, depth)
        parts = [
            _slice(node, left, row, start, end, depth),
            _slice(node, right, column, start, end, depth),
        ]
        product = apply(node, further, "MatMul", parts)
        totals.append(node.emit(relax.op.astype(product, "int32")))
    return _sum(node, totals)


def _slice(
    node: Node, source: relax.Expr, axis: int, start: int, end: int, size: int
) -> relax.Expr:
    if (start, end) == (0, size):
        return source
    value = constant_of(source)
    if value is not None:
        taken = np.take(value, np.arange(start, end), axis)
        return relax.const(np.ascontiguousarray(taken))
    return node.emit(relax.op.strided_slice(source, [axis], [start], [end]))


def _sum(node: Node, totals: list[relax.Expr]) -> relax.Expr:
    total = totals[0]
    for each in totals[1:]:
        total = node.emit(relax.op.add(total, each))
    return total


def conv_integer(node: Node, further: Convert) -> Result:
    """Convolve codes exactly: in pieces of the channels whose sums float32 holds."""
    rank = len(node.shape(0))
    image = _moved(node, 0, _aligned(node, 2, ()))
    filters = _moved(node, 1, _aligned(node, 3, (-1, *[1] * (rank - 1))))
    channels, window = node.shape(1)[1], int(np.prod(node.shape(1)[2:]))
    piece = max(1, _EXACT // (_FURTHEST * _FURTHEST * window))
    if piece < channels and node.integer("group", 1) != 1:
        raise Unsupported("its sums over the channels of a group are too long to be exact")
    totals = []
    for start in range(0, channels, piece):
        end = min(start + piece, channels)
        whole = piece >= channels
        parts = [
            image if whole else _slice(node, image, 1, start, end, channels),
            filters if whole else _slice(node, filters, 1, start, end, channels),
        ]
        result = apply(node, further, "Conv", [*parts, None], dict(node.attributes))
        totals.append(node.emit(relax.op.astype(result, "int32")))
    return _sum(node, totals)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Read so many codes of the last axis out of bytes, the first in the lowest bits."""
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    unpacked: np.ndarray = codes.reshape(*packed.shape[:-1], -1)[..., :count]
    return unpacked


def _zeros_of(node: Node, place: int, shape: tuple[int, ...], bits: int) -> relax.Expr:
    """Read zero points of blocks: packed codes, numbers, or the middle code where left out."""
    value = node.value(place)
    if value is None:
        middle = np.full([1] * len(shape), 1 << (bits - 1), np.uint8)
        return relax.const(middle, "uint8")
    if value.dtype == np.uint8:
        value = unpack(value.reshape(*shape[:-1], -1), bits, shape[-1])
    return relax.const(np.ascontiguousarray(value.reshape(shape)), value.dtype.name)


def matmul_bits(node: Node, further: Convert) -> Result:
    """Multiply with a matrix whose columns are packed in blocks of K."""
    depth, columns = node.integer("K", 0), node.integer("N", 0)
    bits, block = node.integer("bits", 4), node.integer("block_size", 0)
    packed, scales = node.value(1), node.value(2)
    if packed is None or scales is None or bits not in (2, 4, 8):
        raise Unsupported("its matrix is not of 2, 4 or 8 bits")
    if node.has(4) and not _is_in_order(node, block, depth):
        raise Unsupported("its groups are not consecutive")
    blocks = -(-depth // block)
    codes = unpack(packed.reshape(columns, -1), bits, blocks * block)[:, :depth]
    zeros = _zeros_of(node, 3, (columns, blocks), bits)
    factors = np.ascontiguousarray(scales.reshape(columns, blocks))
    decoded = node.emit(
        call_decode(
            relax.const(np.ascontiguousarray(codes), "uint8"),
            relax.const(factors, factors.dtype.name),
            zeros,
            axis=1,
            block=block,
        )
    )
    matrix = node.emit(relax.op.permute_dims(decoded, [1, 0]))
    left, dtype = node.input(0), node.dtype(0)
    if dtype != "float32":
        left = node.emit(relax.op.astype(left, "float32"))
    result = apply(node, further, "MatMul", [left, matrix])
    if dtype != "float32":
        result = node.emit(relax.op.astype(result, dtype))
    return node.emit(relax.op.add(result, node.input(5))) if node.has(5) else result


def _is_in_order(node: Node, block: int, depth: int) -> bool:
    groups = node.value(4)
    return groups is not None and np.array_equal(groups[:depth], np.arange(depth) // block)


def gather_blocks(node: Node, further: Convert) -> Result:
    """Take rows of a table that is stored in blocks."""
    block, bits = node.integer("block_size", 128), node.integer("bits", 4)
    table, scales = node.value(0), node.value(2)
    if table is None or scales is None:
        raise Unsupported("its table is not stored")
    packed = not node.narrow_type(0)
    if packed:
        table = unpack(table, bits, table.shape[-1] * 8 // bits)
    axis = node.integer("quantize_axis", 1) % table.ndim
    if node.has(3):
        zeros = node.value(3)
        assert zeros is not None
        if packed:
            zeros = unpack(zeros, bits, scales.shape[-1])
    else:
        middle = 1 << (bits - 1) if packed else 0
        zeros = np.full([1] * table.ndim, middle, table.dtype)
    decoded = node.emit(
        call_decode(
            relax.const(np.ascontiguousarray(table), table.dtype.name),
            relax.const(scales, scales.dtype.name),
            relax.const(np.ascontiguousarray(zeros), zeros.dtype.name),
            axis=axis,
            block=block,
        )
    )
    gathered = {"axis": node.integer("gather_axis", 0)}
    result = apply(node, further, "Gather", [decoded, node.input(1)], gathered)
    wanted = dtype_of(node.input(2))
    return result if wanted == "float32" else relax.op.astype(result, wanted)


#: Converters by operator.
CONVERTERS: dict[str, QuantizedConverter] = {
    "ConvInteger": conv_integer,
    "GatherBlockQuantized": gather_blocks,
    "MatMulInteger": matmul_integer,
    "MatMulNBits": matmul_bits,
}
