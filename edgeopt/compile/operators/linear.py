"""QuantizeLinear and DequantizeLinear in blocks, and of codes of fewer than 8 bits or floats."""

from collections.abc import Callable

import numpy as np
from onnx import helper
from tvm import relax, te, tirx

from edgeopt.compile.blocked import call_decode
from edgeopt.compile.operators.narrow import CARRIERS, carrier_of, limits, narrow, widen
from edgeopt.compile.operators.node import Node, Unsupported, dtype_of
from edgeopt.compile.views import constant_of, shape_of


def encoded_type(node: Node) -> str:
    """Name the type of the codes that a QuantizeLinear makes."""
    if node.has(2):
        return node.narrow_type(2) or node.dtype(2)
    wanted = node.integer("output_dtype", 0)
    return str(helper.tensor_dtype_to_np_dtype(wanted).name) if wanted else "uint8"


def quantize(node: Node) -> relax.Expr | None:
    """Encode numbers; None where the codes are usual and have no blocks."""
    name = encoded_type(node)
    if not node.integer("block_size", 0) and name not in CARRIERS:
        return None
    if node.integer("precision", 0) not in (0, 1):
        raise Unsupported("it divides in another precision than float32")
    axis, block = _blocks(node)
    scale = _single(node, _spread(node, 1, axis))
    source = _single(node, node.input(0))
    if name.startswith("float"):
        real: relax.Expr = node.compute(node.shape(0), _divided(axis, block), source, scale)
        if node.has(2):
            # Also of zero, which turns a negative zero into the positive one.
            real = node.emit(relax.op.add(real, widen(node, _spread(node, 2, axis), name)))
        return narrow(node, real, name, saturate=bool(node.integer("saturate", 1)))
    zero = _spread(node, 2, axis) if node.has(2) else _none(node, carrier_of(name))
    low, high = limits(name) if name in CARRIERS else _limits_of(name)
    divide = _divided(axis, block)

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        middle = tirx.Cast("float32", tensors[2](*_place(tensors[2], at, axis, block)))
        code = tirx.nearbyint(divide(tensors, *at)) + middle
        limited = tirx.max(tirx.min(code, tirx.const(high, "float32")), tirx.const(low, "float32"))
        return tirx.Cast(carrier_of(name), tirx.Cast("int32", limited))

    return node.compute(node.shape(0), element, source, scale, zero)


def dequantize(node: Node) -> relax.Expr | None:
    """Decode codes; None where they are usual and have no blocks."""
    name = node.narrow_type(0)
    if not node.integer("block_size", 0) and not name:
        return None
    axis, block = _blocks(node)
    scale = _spread(node, 1, axis)
    if name and name.startswith("float"):
        result = _decoded_floats(node, name, scale, axis, block)
    else:
        zero = _spread(node, 2, axis) if node.has(2) else _none(node, node.dtype(0))
        along, length = _along(node, axis, block)
        result = call_decode(
            node.input(0), _single(node, scale, halves=True), zero, axis=along, block=length
        )
    kind = node.integer("output_dtype", 0)
    wanted = str(helper.tensor_dtype_to_np_dtype(kind).name) if kind else dtype_of(scale)
    result = node.emit(result)
    return result if wanted == "float32" else relax.op.astype(result, wanted)


def _limits_of(name: str) -> tuple[int, int]:
    return int(np.iinfo(name).min), int(np.iinfo(name).max)


def _blocks(node: Node) -> tuple[int, int]:
    """Read the axis that scales lie along, and how many elements share one; 0 for one each."""
    rank = len(node.shape(0))
    axis = node.integer("axis", 1)
    axis = axis % rank if -rank <= axis < rank else max(rank - 1, 0)
    return axis, node.integer("block_size", 0)


def _along(node: Node, axis: int, block: int) -> tuple[int, int]:
    """Say which axis is in blocks; without any, one that has a single scale."""
    shape = node.shape(0)
    if block or not shape:
        return axis, block or 1
    if int(np.prod(node.shape(1))) == 1:
        return axis, max(shape[axis], 1)
    others = [place for place in range(len(shape)) if place != axis]
    return (others[0], max(shape[others[0]], 1)) if others else (axis, 1)


def _spread(node: Node, place: int, axis: int) -> relax.Expr:
    """Give a scale or zero point the rank of what it is for."""
    value, rank = node.input(place), len(node.shape(0))
    shape = shape_of(value)
    if len(shape) == rank:
        return value
    wanted = [1] * rank
    if int(np.prod(shape)) > 1:
        wanted[axis] = shape[0]
    stored = constant_of(value)
    if stored is not None:
        return relax.const(stored.reshape(wanted), stored.dtype.name)
    return node.emit(relax.op.reshape(value, wanted))


def _none(node: Node, dtype: str) -> relax.Expr:
    return relax.const(np.zeros([1] * len(node.shape(0)), dtype), dtype)


def _single(node: Node, value: relax.Expr, *, halves: bool = False) -> relax.Expr:
    """Convert to float32; half floats may stay as they are stored."""
    if dtype_of(value) == "float32" or (halves and dtype_of(value) == "float16"):
        return value
    return node.emit(relax.op.astype(value, "float32"))


def _place(values: te.Tensor, at: tuple[tirx.Expr, ...], axis: int, block: int) -> list[tirx.Expr]:
    """Find the scale of an element."""
    moved = list(at)
    if block:
        moved[axis] = tirx.floordiv(at[axis], block)
    return [0 if int(size) == 1 else i for size, i in zip(values.shape, moved, strict=True)]


def _divided(axis: int, block: int) -> Callable[..., tirx.Expr]:
    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        return tensors[0](*at) / tensors[1](*_place(tensors[1], at, axis, block))

    return element


def _decoded_floats(node: Node, name: str, scale: relax.Expr, axis: int, block: int) -> relax.Expr:
    wide = widen(node, node.input(0), name)

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        return tensors[0](*at) * tensors[1](*_place(tensors[1], at, axis, block))

    if node.has(2):
        zero = widen(node, _spread(node, 2, axis), name)
        wide = node.emit(relax.op.subtract(wide, zero))
    return node.compute(node.shape(0), element, wide, _single(node, scale))
