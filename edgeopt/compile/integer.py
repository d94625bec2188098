"""Quantized products to integer kernels: MatMulInteger, and QDQ around MatMul."""

import numpy as np
from tvm import relax

from edgeopt.compile.kernels import elementwise, integer, rows
from edgeopt.compile.site import Site
from edgeopt.compile.stored import Stored
from edgeopt.compile.views import (
    constant_of,
    inside_permute,
    inside_reshape,
    operator_of,
    permutation_of,
    shape_of,
)

_CODES = ("int8", "uint8")


def lower_dynamic_quantize(site: Site, call: relax.Call) -> relax.Expr:
    """Lower DynamicQuantizeLinear to the extremes, then scale and zero point, then the codes."""
    source = call.args[1]
    shape = shape_of(source)
    inner = inside_reshape(site.bound(source))
    source = source if inner is None else inner
    flat = site.reshape(source, (1, int(np.prod(shape))))
    low, high = (
        site.call(rows.define_fold(site.cpu, shape_of(flat), fold), flat, name="reduce")
        for fold in (rows.MINIMUM, rows.MAXIMUM)
    )
    scale = site.call(elementwise.define_scale(), low, high, name="scale")
    zero = site.call(elementwise.define_zero_point(), low, scale, name="zero_point")
    codes = site.call(elementwise.define_quantize("uint8"), source, scale, zero, name="quantize")
    return relax.Tuple([site.reshape(codes, shape), scale, zero])


def lower_matmul_integer(site: Site, call: relax.Call) -> relax.Expr:
    """Lower a product of codes with a constant int8 matrix."""
    _, codes, weight, zero = call.args
    values = constant_of(weight)
    assert values is not None
    inner = inside_reshape(site.bound(codes))
    if inner is not None and shape_of(inner)[-1] == values.shape[0]:
        codes = inner
    return site.reshape(_multiply(site, codes, values, zero), shape_of(call))


def lower_quantize(site: Site, call: relax.Call) -> relax.Expr | None:
    """Take codes as they are where they were only decoded to be encoded in the same way.

    Quantizers put such a pair after every reshape and transpose.
    """
    decoded = _decoded(site, call.args[0])
    if decoded is None or decoded.args[0].ty.dtype != call.ty.dtype:
        return None
    for before, after in zip(decoded.args[1:], call.args[1:], strict=True):
        first, second = constant_of(before), constant_of(after)
        if first is None or second is None or second.size != 1 or not np.array_equal(first, second):
            return None
    return _view_again(site, call.args[0], decoded.args[0])


def inverse_of(scale: relax.Expr) -> relax.Expr | None:
    """Invert a constant scale: dividing costs a dozen times more than multiplying."""
    value = constant_of(scale)
    if value is None or value.dtype != np.float32 or value.size != 1 or not value.all():
        return None
    with np.errstate(over="ignore"):
        inverse = np.float32(1.0) / value.reshape(())
    return relax.const(np.asarray(inverse, np.float32)) if np.isfinite(inverse) else None


def lower_static(site: Site, left: relax.Expr, weight: Stored) -> relax.Expr | None:
    """Lower dequantize(codes) @ int8 weight with one scale and zero point for all codes.

    Returns None when the activation is not quantized or its parameters are not constant.
    """
    decoded = _decoded(site, left)
    if decoded is None or weight.values.dtype != np.int8:
        return None
    scale, zero = constant_of(decoded.args[1]), constant_of(decoded.args[2])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    columns = weight.column_scales
    if decoded.args[0].ty.dtype.dtype not in _CODES or columns is None:
        return None
    codes = _view_again(site, left, decoded.args[0])
    total = _multiply(site, codes, weight.values, relax.const(zero.reshape(())))
    factor = (columns * np.float32(scale.reshape(()))).astype("float32")
    real = site.emit(relax.op.astype(total, "float32"))
    return site.emit(relax.op.multiply(real, relax.const(factor)))


def _decoded(site: Site, expr: relax.Expr) -> relax.Call | None:
    """Find the DequantizeLinear under reshapes and transposes."""
    bound = site.bound(expr)
    while _is_view(bound):
        bound = site.bound(bound.args[0])
    return bound if operator_of(bound) == "relax.dequantize" else None


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


def _multiply(site: Site, codes: relax.Expr, values: np.ndarray, zero: relax.Expr) -> relax.Expr:
    plan = integer.plan_integer(site.cpu, shape_of(codes), values, codes.ty.dtype.dtype)
    packed = integer.pack_codes(values, plan)
    sums = integer.column_sums(values)
    return site.call(integer.define_integer(plan), codes, packed, sums, zero, name="integer_gemm")
