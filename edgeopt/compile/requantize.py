"""Integer sums of codes, and their quantizers: what lies between becomes part of one step."""

import numpy as np
from tvm import relax

from edgeopt.compile.encoding import Encoding, is_view
from edgeopt.compile.kernels import elementwise
from edgeopt.compile.site import IntegerSum, Site
from edgeopt.compile.views import (
    constant_of,
    inside_reshape,
    operator_of,
    scalar_of,
    shape_of,
)


def note_sum(site: Site, each: IntegerSum, shape: tuple[int, ...]) -> relax.Expr:
    """Emit an integer sum of a shape as float32; a quantizer that follows finds it as integers."""
    wide = site.emit(relax.op.astype(each.emit(each.start), "float32"))
    real = site.emit(relax.op.multiply(wide, relax.const(each.factor)))
    site.sums.append((site.bound(real), each))
    return site.reshape(real, shape)


def encode_sum(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Encode an integer sum: the bias joins its start, limits become limits of codes."""
    limits, bound = limits_under(site, expr, wanted)
    bias_term = None
    found = _sum_of(site, _under_reshapes(site, bound))
    if found is None and operator_of(bound) == "relax.add":
        bound, bias_term = _split_bias(site, bound)
        found = _sum_of(site, _under_reshapes(site, bound))
    if found is None:
        return None
    start, bias = found.start, None
    if bias_term is not None:
        whole = _whole_bias(site, bias_term, found.factor)
        start = start if whole is None else start + whole
        bias = None if whole is not None else _float_bias(site, bias_term, len(found.factor))
        if whole is None and bias is None:
            return None
    define = elementwise.define_requantize(site.cpu, wanted.dtype, (*limits, wanted.zero))
    extra = () if bias is None else ((bias / wanted.scale).astype(np.float32),)
    factor = (found.factor / wanted.scale).astype(np.float32)
    codes = site.call(define, found.emit(start), factor, *extra, name="requantize")
    return site.reshape(codes, shape_of(expr))


def _sum_of(site: Site, bound: relax.Expr) -> IntegerSum | None:
    return next((each for real, each in site.sums if real.same_as(bound)), None)


def _under_reshapes(site: Site, expr: relax.Expr) -> relax.Expr:
    """Look through reshapes that leave the last axis alone."""
    bound = site.bound(expr)
    while inside_reshape(bound) is not None and shape_of(bound.args[0])[-1] == shape_of(bound)[-1]:
        bound = site.bound(bound.args[0])
    return bound


def limits_under(
    site: Site, expr: relax.Expr, wanted: Encoding
) -> tuple[tuple[int, int], relax.Expr]:
    """Look through limits of numbers, which become limits of codes, and what is under them."""
    info = np.iinfo(wanted.dtype)
    low, high = int(info.min), int(info.max)
    bound = _under_reshapes(site, expr)
    while True:
        name = operator_of(bound)
        number = 0.0 if name == "relax.nn.relu" else None
        if name in ("relax.maximum", "relax.minimum"):
            number = scalar_of(bound.args[1])
        if number is None or shape_of(bound.args[0]) != shape_of(bound):
            return (low, high), bound
        code = wanted.encode(number)
        # Outer limits are met first: they limit the inner ones too.
        if name == "relax.minimum":
            high = max(min(high, code), low)
        else:
            low = min(max(low, code), high)
        bound = _under_reshapes(site, bound.args[0])


def _split_bias(site: Site, bound: relax.Call) -> tuple[relax.Expr, relax.Expr | None]:
    """Take the operand of an addition that lies along the last axis alone as the bias."""
    columns = shape_of(bound)[-1]
    for value, other in (bound.args, reversed(bound.args)):
        shape = shape_of(other)
        along = len(shape) > 0 and int(np.prod(shape)) == columns == shape[-1]
        constant = stored_bias(site, other) is not None
        if along and constant and shape_of(value) == shape_of(bound):
            return value, other
    return bound, None


def stored_bias(site: Site, expr: relax.Expr) -> relax.Expr | None:
    """Find under views what a constant bias is stored as: a constant, or one that is decoded."""
    bound = site.bound(expr)
    while is_view(bound):
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
