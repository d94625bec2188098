"""Quantized products to integer kernels: MatMulInteger, and QDQ around MatMul."""

import numpy as np
from tvm import relax

from edgeopt.compile.encoding import Decoded, decoded_of
from edgeopt.compile.kernels import elementwise, integer, rows
from edgeopt.compile.requantize import note_sum
from edgeopt.compile.site import IntegerSum, Site
from edgeopt.compile.stored import Stored
from edgeopt.compile.views import (
    constant_of,
    inside_reshape,
    shape_of,
)


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
    columns = weight.column_scales
    if weight.values.dtype != np.int8 or columns is None:
        return None
    decoded = decoded_of(site, left)
    return None if decoded is None else multiply_codes(site, decoded, weight.values, columns)


def multiply_codes(
    site: Site, decoded: Decoded, values: np.ndarray, scales: np.ndarray
) -> relax.Expr:
    """Emit codes [..., K] times an int8 matrix, with the zero point's share taken out."""
    codes, encoding = decoded.codes, decoded.encoding
    shape = (*shape_of(codes)[:-1], values.shape[1])
    codes = site.reshape(codes, integer.rows_of(site.cpu, shape_of(codes)))
    plan = integer.plan_integer(site.cpu, shape_of(codes), values, encoding.dtype)
    packed = integer.pack_codes(values, plan)

    def emit(start: np.ndarray) -> relax.Var:
        define = integer.define_integer(plan)
        return site.call(define, codes, packed, start, name="integer_gemm")

    start = -(encoding.zero + plan.moved) * integer.column_sums(values)
    # In onnxruntime's order, since products of float32 are rounded.
    factor = (encoding.scale * scales).astype(np.float32)
    return note_sum(site, IntegerSum(start, factor, emit), shape)


def _multiply(site: Site, codes: relax.Expr, values: np.ndarray, zero: relax.Expr) -> relax.Expr:
    plan = integer.plan_integer(site.cpu, shape_of(codes), values, codes.ty.dtype.dtype)
    packed = integer.pack_codes(values, plan)
    sums = integer.column_sums(values)
    return site.call(integer.define_integer(plan), codes, packed, sums, zero, name="integer_gemm")
