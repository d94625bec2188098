"""Numbers of 8 bits and fewer that no CPU computes with: float8, float4, int4, int2.

A tensor of such a type travels as bytes, one element each: the bit pattern of a float, the value
of an integer. Floats are read through a table of their 256 values, and written by comparing with
what rounds to each of them.
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
    """Round numbers to a narrow type; powers of two can be read, not written.

    saturate: beyond the greatest number, give that number instead of infinity or none.
    """
    if name == _EXPONENTS:
        raise Unsupported(f"it converts to {name}")
    if dtype_of(source) != "float32":
        source = node.emit(relax.op.astype(source, "float32"))
    if name in _INTEGERS:
        return _narrow_integer(node, source, name)
    return _narrow_float(node, source, name, saturate=saturate)


def _narrow_float(node: Node, source: relax.Expr, name: str, *, saturate: bool) -> relax.Expr:
    """Count how many magnitudes of the type a number reaches, rounded to even codes."""
    sign = 8 if name == "float4_e2m1fn" else 128
    steps, last = _steps(name, saturate=saturate)
    shape = node_shape(source)
    none = int(np.array(np.nan, np.float32).astype(name).view(np.uint8))
    unsigned_zero = name.endswith("uz")

    def reached(x: te.Tensor, limits: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, len(steps)), name="k")
        return te.compute(
            shape,
            lambda *at: te.sum(tirx.Cast("int32", tirx.abs(x(*at)) >= limits(k)), axis=k),
            name="reached",
        )

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        x, count = tensors[0](*at), tensors[1](*at)
        code = tirx.Select(count > last, tirx.const(none, "int32"), count)
        bits = tirx.reinterpret("int32", x)
        signed = bits < 0
        if unsigned_zero:
            signed = tirx.all(signed, count > 0, count <= last)
        code = tirx.Select(signed, code + sign, code)
        return tirx.Cast("uint8", tirx.Select(tirx.isnan(x), tirx.const(none, "int32"), code))

    counts = node.builder.emit_te(reached, source, relax.const(steps))
    return node.compute(shape, element, source, counts)


def _steps(name: str, *, saturate: bool) -> tuple[np.ndarray, int]:
    """List the least float32 that rounds to each positive code, from 1; and the last code.

    Those beyond the last code are what does not saturate: infinity, or no number.
    """
    sign = 8 if name == "float4_e2m1fn" else 128
    values = np.arange(sign, dtype=np.uint8).view(name).astype(np.float32)
    finite = values[np.isfinite(values)].astype(np.float64)
    middles = (finite[:-1] + finite[1:]) / 2
    steps = middles.astype(np.float32)
    # Halfway, the even code wins: it is the upper one of every second pair.
    odd = np.arange(1, len(finite)) % 2 == 1
    steps[odd] = np.nextafter(steps[odd], np.float32(np.inf))
    last = len(finite) - 1
    if saturate or name == "float4_e2m1fn":
        return steps, last
    beyond = np.float32(finite[-1] + (finite[-1] - finite[-2]) / 2)
    if last % 2 == 0:
        beyond = np.nextafter(beyond, np.float32(np.inf))
    infinite = name == "float8_e5m2"
    return np.append(steps, beyond), last + 1 if infinite else last


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


def node_shape(source: relax.Expr) -> tuple[int, ...]:
    """Read the fixed shape of a tensor."""
    return tuple(int(size) for size in source.ty.shape)
