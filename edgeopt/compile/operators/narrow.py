"""Numbers of 8 bits and fewer that no CPU computes with: float8, float4, int4, int2.

A tensor of such a type travels as bytes, one element each: the bit pattern of a float, the value
of an integer. Floats are read through a table of their 256 values; none is written.
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


def narrow(node: Node, source: relax.Expr, name: str) -> relax.Expr:
    """Round numbers to a narrow integer type; narrow floats can be read, not written."""
    if name not in _INTEGERS:
        raise Unsupported(f"it converts to {name}")
    if dtype_of(source) != "float32":
        source = node.emit(relax.op.astype(source, "float32"))
    return _narrow_integer(node, source, name)


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
