"""QuantizeLinear and DequantizeLinear: codes pass by each other without becoming floats.

Codes are kept in the type that the CPU multiplies: 5 with the zero point 0 in int8 is 133 with the
zero point 128 in uint8, and what quantizes can store the one as well as the other.
"""

from dataclasses import dataclass

import numpy as np
from tvm import relax

from edgeopt.compile.kernels import elementwise, integer
from edgeopt.compile.site import IntegerSum, Relabelled, Site
from edgeopt.compile.views import (
    constant_of,
    inside_permute,
    inside_reshape,
    operator_of,
    permutation_of,
    scalar_of,
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
        limits = np.iinfo(self.dtype)
        code = np.rint(np.float32(value) / self.scale) + self.zero
        return int(np.clip(code, limits.min, limits.max))


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
    while _is_view(bound):
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
    if not _is_view(bound):
        return codes
    inner = _view_again(site, bound.args[0], codes)
    if inside_reshape(bound) is not None:
        return site.reshape(inner, shape_of(bound))
    return site.permute(inner, permutation_of(bound))


def _is_view(bound: relax.Expr) -> bool:
    return inside_reshape(bound) is not None or inside_permute(bound) is not None


def lower_dequantize(site: Site, call: relax.Call) -> relax.Expr | None:
    """Decode what a quantizer stored in the type that the CPU multiplies, as it is stored."""
    source = site.bound(call.args[0])
    found = next((each for each in site.relabelled if each.call.same_as(source)), None)
    encoding = read_encoding(call, call.args[0].ty.dtype.dtype)
    if found is None or encoding is None:
        return None
    return encoding.preferred(site).decode(site, found.codes)


def lower_quantize(site: Site, call: relax.Call) -> relax.Expr | None:
    """Encode, best without a float in between, in the type that the CPU multiplies."""
    given = read_encoding(call, call.ty.dtype.dtype)
    if given is None:
        return None
    wanted = given.preferred(site)
    codes = _without_floats(site, call.args[0], wanted)
    if codes is None and wanted == given:
        return None
    if codes is None:
        codes = site.emit(
            relax.op.quantize(call.args[0], *wanted.constants(), axis=0, out_dtype=wanted.dtype)
        )
    if wanted == given:
        return codes
    labelled = site.call(elementwise.define_flip(given.dtype), codes, name="flip")
    site.relabelled.append(Relabelled(site.bound(labelled), codes))
    return labelled


def _without_floats(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    for way in (_passed, _requantized, _joined):
        codes = way(site, expr, wanted)
        if codes is not None:
            return codes
    return None


def _passed(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Take codes as they are where they were only decoded to be encoded in the same way."""
    decoded = decoded_of(site, expr)
    return decoded.codes if decoded is not None and decoded.encoding == wanted else None


def _joined(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Encode the parts of a concatenation, each where it is made, instead of the whole."""
    bound = site.bound(expr)
    if operator_of(bound) != "relax.concat":
        return None
    parts = bound.args[0]
    parts = site.bound(parts) if isinstance(parts, relax.Var) else parts
    if not isinstance(parts, relax.Tuple) or bound.attrs.axis is None:
        return None
    if any(decoded_of(site, part) is None for part in parts.fields):
        return None
    codes = [_encoded(site, part, wanted) for part in parts.fields]
    return site.emit(relax.op.concat(codes, axis=int(bound.attrs.axis)))


def _encoded(site: Site, part: relax.Expr, wanted: Encoding) -> relax.Expr:
    passed = _passed(site, part, wanted)
    if passed is not None:
        return passed
    call = relax.op.quantize(part, *wanted.constants(), axis=0, out_dtype=wanted.dtype)
    return site.emit(call)


def note_sum(site: Site, each: IntegerSum) -> relax.Expr:
    """Emit an integer sum as float32; a quantizer that follows finds it and needs no float."""
    wide = site.emit(relax.op.astype(each.emit(each.start), "float32"))
    real = site.emit(relax.op.multiply(wide, relax.const(each.factor)))
    site.sums.append((site.bound(real), each))
    return real


@dataclass(slots=True)
class _Walk:
    """What lies between an integer sum and its quantizer."""

    low: int
    high: int
    bias: relax.Expr | None = None


def _requantized(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Encode an integer sum: the bias joins its start, limits become limits of codes."""
    limits = np.iinfo(wanted.dtype)
    walk = _Walk(int(limits.min), int(limits.max))
    bound = site.bound(expr)
    while True:
        found = next((each for real, each in site.sums if real.same_as(bound)), None)
        if found is not None:
            break
        inner = _step(site, bound, walk, wanted)
        if inner is None:
            return None
        bound = site.bound(inner)
    start, bias = found.start, None
    if walk.bias is not None:
        whole = _whole_bias(site, walk.bias, found.factor)
        start = start if whole is None else start + whole
        bias = None if whole is not None else _float_bias(site, walk.bias, len(found.factor))
        if whole is None and bias is None:
            return None
    limited = (walk.low, walk.high, wanted.zero)
    define = elementwise.define_requantize(wanted.dtype, limited)
    extra = () if bias is None else ((bias / wanted.scale).astype(np.float32),)
    factor = (found.factor / wanted.scale).astype(np.float32)
    codes = site.call(define, found.emit(start), factor, *extra, name="requantize")
    return site.reshape(codes, shape_of(expr))


def _step(site: Site, bound: relax.Expr, walk: _Walk, wanted: Encoding) -> relax.Expr | None:
    """Look through one operator towards the sum; None where it is not understood."""
    name = operator_of(bound)
    if inside_reshape(bound) is not None:
        inner = bound.args[0]
        return inner if shape_of(inner)[-1] == shape_of(bound)[-1] else None
    if name == "relax.add" and walk.bias is None:
        return _step_add(site, bound, walk)
    if walk.bias is not None:
        return None
    if name == "relax.nn.relu":
        walk.low = max(walk.low, wanted.encode(0.0))
        return bound.args[0]
    number = scalar_of(bound.args[1]) if name in ("relax.maximum", "relax.minimum") else None
    if number is None:
        return None
    code = wanted.encode(number)
    if name == "relax.maximum":
        walk.low, walk.high = max(walk.low, code), max(walk.high, code)
    else:
        walk.low, walk.high = min(walk.low, code), min(walk.high, code)
    return bound.args[0]


def _step_add(site: Site, bound: relax.Call, walk: _Walk) -> relax.Expr | None:
    """Take the operand of an addition that lies along the last axis alone as the bias."""
    for value, other in (bound.args, reversed(bound.args)):
        shape = shape_of(other)
        columns = shape_of(bound)[-1]
        constant = stored_bias(site, other) is not None
        along = constant and int(np.prod(shape)) == columns == shape[-1]
        if along and shape_of(value) == shape_of(bound):
            walk.bias = other
            return value
    return None


def stored_bias(site: Site, expr: relax.Expr) -> relax.Expr | None:
    """Find under views what a constant bias is stored as: a constant, or one that is decoded."""
    bound = site.bound(expr)
    while _is_view(bound):
        bound = site.bound(bound.args[0])
    source = bound.args[0] if operator_of(bound) == "relax.dequantize" else bound
    return bound if constant_of(source) is not None else None


def _whole_bias(site: Site, expr: relax.Expr, factor: np.ndarray) -> np.ndarray | None:
    """Read a bias as int32 in steps of the sum's factor; None where it is stored otherwise."""
    bound = stored_bias(site, expr)
    if bound is None or operator_of(bound) != "relax.dequantize":
        return None
    codes, scale, zero = (constant_of(each) for each in bound.args)
    if codes is None or scale is None or zero is None or codes.dtype != np.int32 or zero.any():
        return None
    if not np.allclose(np.broadcast_to(scale.reshape(-1), factor.shape), factor, rtol=1e-6, atol=0):
        return None
    return codes.reshape(-1)


def _float_bias(site: Site, expr: relax.Expr, columns: int) -> np.ndarray | None:
    bound = stored_bias(site, expr)
    assert bound is not None
    if operator_of(bound) != "relax.dequantize":
        value = constant_of(bound)
        assert value is not None
        return value.reshape(-1) if value.dtype == np.float32 else None
    codes, scale, zero = (constant_of(each) for each in bound.args)
    if codes is None or scale is None or zero is None:
        return None
    steps = codes.astype(np.int64).reshape(-1) - zero.astype(np.int64).reshape(-1)
    return np.broadcast_to(steps * scale.reshape(-1), (columns,)).astype(np.float32)
