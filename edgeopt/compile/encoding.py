"""How numbers are stored as 8-bit codes, and what was decoded from such.

Codes are kept in the type that the CPU multiplies: 5 with the zero point 0 in int8 is 133 with the
zero point 128 in uint8, and what quantizes can store the one as well as the other.
"""

from dataclasses import dataclass

import numpy as np
from tvm import relax

from edgeopt.compile.kernels import integer
from edgeopt.compile.site import Site
from edgeopt.compile.views import (
    constant_of,
    inside_permute,
    inside_reshape,
    operator_of,
    permutation_of,
    shape_of,
)

CODES = ("int8", "uint8")
_MIDDLE = 128


@dataclass(frozen=True, slots=True)
class Encoding:
    """How numbers are stored as codes: number = scale * (code - zero)."""

    dtype: str
    scale: np.float32
    zero: int

    def preferred(self, site: Site) -> "Encoding":
        """Give the codes the type that the CPU multiplies."""
        wanted = integer.choose_dot(site.cpu).code
        if wanted == self.dtype or wanted not in CODES:
            return self
        return Encoding(
            wanted, self.scale, self.zero + (_MIDDLE if wanted == "uint8" else -_MIDDLE)
        )

    def constants(self) -> tuple[relax.Expr, relax.Expr]:
        """Write scale and zero point as operands."""
        zero = np.asarray(self.zero, self.dtype)
        return relax.const(np.asarray(self.scale, np.float32)), relax.const(zero, self.dtype)

    def decode(self, site: Site, codes: relax.Expr) -> relax.Expr:
        """Emit DequantizeLinear."""
        return site.emit(relax.op.dequantize(codes, *self.constants(), axis=0))

    def encode(self, value: float) -> int:
        """Quantize one number."""
        return int(self.encode_all(np.asarray(value, np.float32)))

    def encode_all(self, values: np.ndarray) -> np.ndarray:
        """Quantize numbers."""
        limits = np.iinfo(self.dtype)
        codes = np.rint(values / self.scale) + np.float32(self.zero)
        encoded: np.ndarray = np.clip(codes, limits.min, limits.max).astype(self.dtype)
        return encoded


def read_encoding(call: relax.Call, dtype: str) -> Encoding | None:
    """Read one constant scale and zero point for all 8-bit codes; None for anything else."""
    scale, zero = constant_of(call.args[1]), constant_of(call.args[2])
    if dtype not in CODES or scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    if scale.dtype != np.float32 or not scale.reshape(()) > 0:
        return None
    return Encoding(dtype, np.float32(scale.reshape(())), int(zero.reshape(())))


@dataclass(frozen=True, slots=True)
class Decoded:
    """Codes under views, and how they encode numbers."""

    codes: relax.Expr
    encoding: Encoding


def decoded_of(site: Site, expr: relax.Expr) -> Decoded | None:
    """Find what was decoded, under reshapes and transposes, which are applied to the codes."""
    bound = site.bound(expr)
    while is_view(bound):
        bound = site.bound(bound.args[0])
    if operator_of(bound) != "relax.dequantize" or constant_of(bound.args[0]) is not None:
        return None
    encoding = read_encoding(bound, bound.args[0].ty.dtype.dtype)
    if encoding is None or bound.ty.dtype.dtype != "float32":
        return None
    return Decoded(_view_again(site, expr, bound.args[0]), encoding)


def _view_again(site: Site, expr: relax.Expr, codes: relax.Expr) -> relax.Expr:
    """Apply to codes the reshapes and transposes of what was decoded from them."""
    bound = site.bound(expr)
    if not is_view(bound):
        return codes
    inner = _view_again(site, bound.args[0], codes)
    if inside_reshape(bound) is not None:
        return site.reshape(inner, shape_of(bound))
    return site.permute(inner, permutation_of(bound))


def is_view(bound: relax.Expr) -> bool:
    """Tell whether an expression is a reshape or a transpose."""
    return inside_reshape(bound) is not None or inside_permute(bound) is not None
