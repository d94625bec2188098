"""Convolutions and pools of codes, channels last."""

import numpy as np
from tvm import relax

from edgeopt.compile.encoding import Decoded, decoded_of
from edgeopt.compile.integer import multiply_codes
from edgeopt.compile.kernels import code_depthwise, integer, integer_conv
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.requantize import note_sum
from edgeopt.compile.site import IntegerSum, Site
from edgeopt.compile.stored import Stored


def convolve_codes(
    site: Site, image: relax.Expr, filters: Stored, window: Window
) -> relax.Expr | None:
    """Convolve what was decoded from codes [N, H, W, C] by int8 filters [KH, KW, I, O].

    None where one of them is no code.
    """
    decoded = decoded_of(site, image)
    scales = filters.scales
    if decoded is None or scales is None or filters.values.dtype != np.int8:
        return None
    outputs = filters.values.shape[3]
    scales = np.broadcast_to(scales.reshape(-1), (outputs,))
    factor = (decoded.encoding.scale * scales).astype(np.float32)
    if window.pointwise:
        return multiply_codes(site, decoded, filters.values[0, 0], scales)
    shape = (window.shape[0], *window.output, outputs)
    return note_sum(site, _convolve(site, decoded, filters.values, window, factor), shape)


def _convolve(
    site: Site, decoded: Decoded, values: np.ndarray, window: Window, factor: np.ndarray
) -> IntegerSum:
    codes, zero, outputs = decoded.codes, decoded.encoding.zero, values.shape[3]
    totals = integer.column_sums(values.reshape(-1, outputs))
    dtype = decoded.encoding.dtype
    if code_depthwise.is_depthwise(site.cpu, window, outputs):
        fours = code_depthwise.pack_filters(values)
        by_fours = code_depthwise.define_depthwise(site.cpu, window, zero)

        def emit_fours(start: np.ndarray) -> relax.Var:
            return site.call(by_fours, codes, fours, start, name="integer_depthwise")

        return IntegerSum(-(zero + code_depthwise.moved(dtype)) * totals, factor, emit_fours)
    plan = None
    if window.groups != window.shape[3]:
        plan = integer_conv.plan_conv(site.cpu, window, values, dtype)
    if plan is None:
        depthwise = integer_conv.define_depthwise(site.cpu, window, outputs, zero)

        def emit(start: np.ndarray) -> relax.Var:
            return site.call(
                depthwise, codes, values.astype(np.int16), start, name="integer_depthwise"
            )

        return IntegerSum(-zero * totals, factor, emit)
    batch, height, width, channels = window.shape
    lines = site.reshape(codes, (batch, height, width * channels))
    packed = integer_conv.pack_filters(values, plan)
    dense = integer_conv.define_conv(plan, zero)

    def emit_dense(start: np.ndarray) -> relax.Var:
        return site.call(dense, lines, packed, start, name="integer_conv")

    return IntegerSum(-(zero + plan.moved) * totals, factor, emit_dense)
