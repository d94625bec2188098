"""Arithmetic that TVM's importer gets wrong or does not have, one element at a time."""

from collections.abc import Callable

import numpy as np
from onnx import helper
from tvm import relax, te, tirx

from edgeopt.compile.operators.node import HALVES, Converter, Node, Unsupported, dtype_of, is_float

#: Below this the difference of two exponentials loses digits; a series of five terms does not.
_SMALL = 1.0
#: Terms x^(2k+1)/(2k+1)! of the hyperbolic sine.
_SINH = (1.0, 1 / 6, 1 / 120, 1 / 5040, 1 / 362880)


def broadcast(node: Node, element: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]) -> relax.Expr:
    """Apply a function of two numbers to the first two inputs, repeated to a common shape."""
    shapes = node.shape(0), node.shape(1)
    shape = np.broadcast_shapes(*shapes)

    def pick(tensor: te.Tensor, own: tuple[int, ...], at: tuple[tirx.Expr, ...]) -> tirx.Expr:
        tail = at[len(at) - len(own) :]
        return tensor(*(0 if size == 1 else i for size, i in zip(own, tail, strict=True)))

    def value(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        return element(pick(tensors[0], shapes[0], at), pick(tensors[1], shapes[1], at))

    return node.compute(shape, value, node.input(0), node.input(1))


def _is_infinite(node: Node) -> relax.Expr:
    """Tell infinities apart by their sign."""
    source, dtype = node.input(0), node.dtype(0)
    infinity = relax.const(np.array(np.inf, np.float32))
    if dtype != "float32":
        infinity = node.emit(relax.op.astype(infinity, dtype))
    parts = []
    if node.integer("detect_positive", 1):
        parts.append(node.emit(relax.op.equal(source, infinity)))
    if node.integer("detect_negative", 1):
        parts.append(node.emit(relax.op.equal(node.emit(relax.op.negative(source)), infinity)))
    if not parts:
        return relax.const(np.zeros(node.shape(0), np.bool_))
    return parts[0] if len(parts) == 1 else relax.op.logical_or(*parts)


def _shift(node: Node) -> relax.Expr:
    """Shift bits; by the width and more, or by less than none, nothing is left."""
    dtype = node.dtype(0)
    bits = int(dtype.lstrip("uint"))
    left = node.text("direction", "LEFT") == "LEFT"

    def element(value: tirx.Expr, count: tirx.Expr) -> tirx.Expr:
        wide, zero = tirx.Cast("int64", count), tirx.const(0, "int64")
        inside = tirx.all(wide >= zero, wide < tirx.const(bits, "int64"))
        kept = tirx.Cast(dtype, tirx.Select(inside, wide, zero))
        shifted = tirx.shift_left(value, kept) if left else tirx.shift_right(value, kept)
        gone = tirx.const(0, dtype)
        if not left and dtype.startswith("int"):
            gone = tirx.Select(value < gone, tirx.const(-1, dtype), gone)
        return tirx.Select(inside, shifted, gone)

    return broadcast(node, element)


def _modulo(node: Node) -> relax.Expr:
    """Divide with remainder: of the divisor's sign, or of the dividend's as C does."""
    dtype = node.dtype(0)
    like_c = bool(node.integer("fmod", 0))

    def real(value: tirx.Expr, divisor: tirx.Expr) -> tirx.Expr:
        # In float64 the quotient of two float32 is told from the next whole number.
        value, divisor = tirx.Cast("float64", value), tirx.Cast("float64", divisor)
        zero = tirx.const(0, "float64")
        rest = value - tirx.trunc(value / divisor) * divisor
        endless = tirx.const(np.inf, "float64")
        kept = tirx.all(tirx.abs(divisor) == endless, tirx.abs(value) < endless)
        rest = tirx.Select(kept, value, rest)
        if not like_c:
            other = tirx.any(
                tirx.all(rest < zero, divisor > zero), tirx.all(rest > zero, divisor < zero)
            )
            rest = tirx.Select(other, rest + divisor, rest)
        return tirx.Cast(dtype, rest)

    def whole(value: tirx.Expr, divisor: tirx.Expr) -> tirx.Expr:
        return tirx.truncmod(value, divisor) if like_c else tirx.floormod(value, divisor)

    return broadcast(node, real if is_float(dtype) else whole)


def _power(node: Node) -> relax.Expr:
    """Raise to a power of any type; the result has the base's."""
    dtype, exponent = node.dtype(0), node.dtype(1)
    if not is_float(dtype) and not is_float(exponent):
        return _whole_power(node)
    wide = dtype if is_float(dtype) and dtype not in HALVES else "float32"
    if not is_float(dtype):
        wide = "float64"

    def element(base: tirx.Expr, power: tirx.Expr) -> tirx.Expr:
        result = tirx.pow(tirx.Cast(wide, base), tirx.Cast(wide, power))
        return tirx.Cast(dtype, result)

    if dtype == exponent == wide:
        return relax.op.power(node.input(0), node.input(1))
    return broadcast(node, element)


def _whole_power(node: Node) -> relax.Expr:
    """Multiply an integer by itself, in integers, as often as a constant says."""
    count = node.numbers(1) if node.shape(1) in ((), (1,)) else None
    if not count or not 1 <= count[0] <= 8:
        raise Unsupported("it raises integers to a power other than one constant from 1 to 8")
    result = source = node.input(0)
    for _ in range(count[0] - 1):
        result = node.emit(relax.op.multiply(result, source))
    return result


def _hyperbolic(sign: float) -> Converter:
    """Make sinh (sign -1) or cosh (sign 1) of exponentials."""

    def convert(node: Node) -> relax.Expr:
        dtype = node.dtype(0)
        wide = "float64" if dtype == "float64" else "float32"

        def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
            x = tirx.Cast(wide, tensors[0](*at))
            half = tirx.const(0.5, wide)
            # Halved before it is multiplied: e^x alone leaves the type's range earlier.
            up, down = tirx.exp(x * half), tirx.exp(-x * half)
            result = half * up * up + tirx.const(sign, wide) * half * down * down
            if sign < 0:
                result = tirx.Select(tirx.abs(x) < tirx.const(_SMALL, wide), _series(x), result)
            return tirx.Cast(dtype, result)

        def _series(x: tirx.Expr) -> tirx.Expr:
            total = tirx.const(_SINH[-1], wide)
            for factor in reversed(_SINH[:-1]):
                total = total * x * x + tirx.const(factor, wide)
            return total * x

        return node.compute(node.shape(0), element, node.input(0))

    return convert


def _bit_cast(node: Node) -> relax.Expr:
    """Read the same bits as another type of the same width."""
    wanted = helper.tensor_dtype_to_np_dtype(node.integer("to", 1)).name
    source = node.dtype(0)
    if "bool" in (source, wanted):
        other = "uint8"
        value = node.emit(relax.op.astype(node.input(0), other)) if source == "bool" else None
        if value is None or wanted not in ("uint8", "int8", "bool"):
            raise Unsupported(f"it reads {source} as {wanted}")
        return relax.op.astype(value, wanted)

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        return tirx.reinterpret(wanted, tensors[0](*at))

    return node.compute(node.shape(0), element, node.input(0))


def _is_nan(node: Node) -> relax.Expr:
    """Find what is no number; softmax has it in rows that are minus infinity throughout.

    Our softmax weighs such a row evenly, so that it is asked for its source.
    """
    source = node.input(0)
    bound = node.builder.lookup_binding(source) if isinstance(source, relax.Var) else None
    if not isinstance(bound, relax.Call) or bound.op.name != "relax.nn.softmax":
        return relax.op.isnan(source)
    scores = bound.args[0]
    least = relax.const(np.array(-np.inf, np.float32))
    if dtype_of(scores) != "float32":
        scores = node.emit(relax.op.astype(scores, "float32"))
    some = node.emit(relax.op.astype(node.emit(relax.op.not_equal(scores, least)), "float32"))
    axis = int(bound.attrs.axis)
    most = node.emit(relax.op.max(some, axis=[axis], keepdims=True))
    empty = node.emit(relax.op.less(most, relax.const(np.array(0.5, np.float32))))
    return relax.op.broadcast_to(empty, relax.ShapeExpr(node.shape(0)))


#: Operators that are computed here.
CONVERTERS: dict[str, Converter] = {
    "BitCast": _bit_cast,
    "BitShift": _shift,
    "Cosh": _hyperbolic(1.0),
    "IsInf": _is_infinite,
    "IsNaN": _is_nan,
    "Mod": _modulo,
    "Pow": _power,
    "Sinh": _hyperbolic(-1.0),
}
