"""Numbers of 8 bits and fewer that no CPU computes with: float8, float4, int4, int2.

A tensor of such a type travels as bytes, one element each: the bit pattern of a float, the value
of an integer. Conversions are exact, through tables: 256 values to read, thresholds to write.
"""

import numpy as np
from tvm import relax, te, tirx

from edgeopt.compile.operators.node import Node, Unsupported, dtype_of

_FLOATS = (
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float4_e2m1fn",
)
_INTEGERS = {"int4": "int8", "uint4": "uint8", "int2": "int8", "uint2": "uint8"}
#: Powers of two only, which the standard rounds in ways of their own.
_EXPONENTS = "float8_e8m0fnu"
#: Names of the types that travel as bytes, and the type of those.
CARRIERS = {**dict.fromkeys((*_FLOATS, _EXPONENTS), "uint8"), **_INTEGERS}


def carrier_of(name: str) -> str:
    """Name the type that numbers of a type travel as, which is itself for most."""
    return CARRIERS.get(name, name)


def carry(value: np.ndarray) -> np.ndarray:
    """Turn an array of a narrow type into the bytes that it travels as."""
    name = value.dtype.name
    if name in _INTEGERS:
        return value.astype(_INTEGERS[name])
    return value.view(np.uint8)


def limits(name: str) -> tuple[int, int]:
    """Return the least and the greatest number of an integer type."""
    bits = int(name.lstrip("uint"))
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def widen(node: Node, source: relax.Expr, name: str) -> relax.Expr:
    """Convert carried numbers to float32."""
    if name in _INTEGERS:
        return node.emit(relax.op.astype(source, "float32"))
    codes = np.arange(256, dtype=np.uint8)
    if name == "float4_e2m1fn":
        codes &= 15
    values = codes.view(name).astype(np.float32)

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        return tensors[1](tirx.Cast("int32", tensors[0](*at)))

    return node.compute(node_shape(source), element, source, relax.const(values))


def narrow(node: Node, source: relax.Expr, name: str, *, saturate: bool = True) -> relax.Expr:
    """Round numbers to a narrow type, ties to even, beyond its range to its limits."""
    if name == _EXPONENTS:
        raise Unsupported(f"it converts to {name}")
    if dtype_of(source) != "float32":
        source = node.emit(relax.op.astype(source, "float32"))
    if name in _INTEGERS:
        return _narrow_integer(node, source, name)
    return _narrow_float(node, source, name, saturate=saturate)


def _narrow_integer(node: Node, source: relax.Expr, name: str) -> relax.Expr:
    """Cast to a narrow integer as the standard's reference does: round, keep the low bits."""
    low, high = limits(name)
    bits = (high - low + 1).bit_length() - 1

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        whole = tirx.Cast("int32", tirx.nearbyint(tensors[0](*at)))
        kept = whole & (2**bits - 1)
        signed = tirx.Select(kept > high, kept - 2**bits, kept)
        return tirx.Cast(_INTEGERS[name], signed)

    return node.compute(node_shape(source), element, source)


def _narrow_float(node: Node, source: relax.Expr, name: str, *, saturate: bool) -> relax.Expr:
    """Find the code by bisection: how many thresholds between neighbours lie below |x|."""
    thresholds, overflow, unknown, minus = _thresholds(name, saturate=saturate)
    steps = [2**power for power in reversed(range((len(thresholds)).bit_length() - 1))]

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        x = tensors[0](*at)
        size = tirx.abs(x)
        code = tirx.const(0, "int32")
        for step in steps:
            above = size > tensors[1](code + (step - 1))
            code = code + tirx.Select(above, tirx.const(step, "int32"), tirx.const(0, "int32"))
        code = tirx.Select(code >= overflow[0], tirx.const(overflow[1], "int32"), code)
        bits = tirx.reinterpret("int32", x)
        signed = tirx.Select(bits < 0, code + minus, code)
        # A format without a negative zero takes that code for what is no number.
        kept = code.equal(0) if name.endswith("fnuz") else tirx.const(False, "bool")
        result = tirx.Select(kept, code, signed)
        return tirx.Cast("uint8", tirx.Select(tirx.isnan(x), tirx.const(unknown, "int32"), result))

    return node.compute(node_shape(source), element, source, relax.const(thresholds))


def _thresholds(name: str, *, saturate: bool) -> tuple[np.ndarray, tuple[int, int], int, int]:
    """List for each code the float32 beyond which the next one is nearer.

    Also: from which count on the result is another code, and that code; the code of what is no
    number; and what the sign adds to a code.
    """
    width = 4 if name == "float4_e2m1fn" else 8
    minus = 2 ** (width - 1)
    values = np.arange(minus, dtype=np.uint8).view(name).astype(np.float64)
    finite = int(np.isfinite(values).sum())
    top = finite - 1
    step = values[top] - values[top - 1]
    ladder = np.append(values[:finite], values[top] + step)
    middle = ((ladder[:-1] + ladder[1:]) / 2).astype(np.float32)
    # A tie goes to the even code: up from an odd one.
    odd = np.arange(finite) % 2 == 1
    middle = np.where(odd, np.nextafter(middle, np.float32(0)), middle)
    count = 2 ** int(np.ceil(np.log2(finite + 1)))
    table = np.full(count - 1 + 1, np.float32(np.inf))
    table[:finite] = middle
    unknown = int(np.array(np.nan, name).view(np.uint8)) if width == 8 else 0
    if width == 8 and not saturate:
        beyond = int(np.array(np.inf, np.float32).astype(name).view(np.uint8))
    else:
        beyond = top
    return table.astype(np.float32), (finite, beyond), unknown, minus


def node_shape(source: relax.Expr) -> tuple[int, ...]:
    """Read the fixed shape of a tensor."""
    return tuple(int(size) for size in source.ty.shape)
