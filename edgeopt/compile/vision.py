"""Convolutions and pools to kernels that store channels last; the views around them sink."""

from collections.abc import Sequence

import numpy as np
from tvm import relax

from edgeopt.compile.kernels import conv, gemm
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.site import Site
from edgeopt.compile.stored import Stored, stored_of
from edgeopt.compile.views import shape_of

_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)


def lower_conv2d(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a convolution of [N, C, H, W], dense or depthwise, with constant filters."""
    filters = stored_of(site, call.args[1])
    if filters is None or str(call.attrs.data_layout) != "NCHW":
        return None
    shape = shape_of(call.args[0])
    window = Window(
        shape=(shape[0], shape[2], shape[3], shape[1]),
        kernel=_pair(filters.values.shape[2:]),
        strides=_pair(call.attrs.strides),
        pads=_four(call.attrs.padding),
        dilation=_pair(call.attrs.dilation),
    )
    return _convolve(site, call.args[0], filters, window, int(call.attrs.groups))


def lower_conv1d(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a convolution of [N, C, W] as one of images with a single row."""
    filters = stored_of(site, call.args[1])
    if filters is None or str(call.attrs.data_layout) != "NCW":
        return None
    outputs, inputs, taps = filters.values.shape
    flat = Stored(filters.values.reshape(outputs, inputs, 1, taps), filters.scales, filters.axis)
    batch, channels, width = shape_of(call.args[0])
    left, right = (int(each) for each in call.attrs.padding)
    window = Window(
        shape=(batch, 1, width, channels),
        kernel=(1, taps),
        strides=(1, int(call.attrs.strides[0])),
        pads=(0, left, 0, right),
        dilation=(1, int(call.attrs.dilation[0])),
    )
    image = site.reshape(call.args[0], (batch, channels, 1, width))
    result = _convolve(site, image, flat, window, int(call.attrs.groups))
    return None if result is None else site.reshape(result, shape_of(call))


def lower_max_pool2d(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a maximum over windows of [N, C, H, W]."""
    window = _pool_window(call)
    if window is None:
        return None
    define = conv.define_channelwise(site.cpu, window, pool=True)
    image = site.permute(call.args[0], _TO_LAST)
    return site.permute(site.call(define, image, name="max_pool"), _TO_FIRST)


def lower_avg_pool2d(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a mean over windows of [N, C, H, W] as a depthwise convolution with equal weights."""
    window = _pool_window(call)
    if window is None or (any(window.pads) and not call.attrs.count_include_pad):
        return None
    taps = window.kernel[0] * window.kernel[1]
    weight = np.full((*window.kernel, window.shape[3]), 1 / taps, np.float32)
    define = conv.define_channelwise(site.cpu, window)
    image = site.permute(call.args[0], _TO_LAST)
    return site.permute(site.call(define, image, weight, name="avg_pool"), _TO_FIRST)


def _pool_window(call: relax.Call) -> Window | None:
    """Read the geometry of a pool; None for a layout or rounding that no kernel has."""
    attributes = call.attrs
    if str(attributes.layout) != "NCHW" or attributes.ceil_mode:
        return None
    shape = shape_of(call.args[0])
    return Window(
        shape=(shape[0], shape[2], shape[3], shape[1]),
        kernel=_pair(attributes.pool_size),
        strides=_pair(attributes.strides),
        pads=_four(attributes.padding),
        dilation=_pair(attributes.dilation),
    )


def _convolve(
    site: Site, source: relax.Expr, filters: Stored, window: Window, groups: int
) -> relax.Expr | None:
    """Emit a convolution between transposes; None when no kernel has such groups."""
    outputs, inputs = filters.values.shape[:2]
    channels = window.shape[3]
    if filters.scales is not None and filters.scales.size > 1 and filters.axis != 0:
        return None
    image = site.permute(source, _TO_LAST)
    if groups == 1:
        result = _dense(site, image, filters.permuted((2, 3, 1, 0)), window)
    elif groups == channels == outputs and inputs == 1:
        weight = np.ascontiguousarray(filters.values[:, 0].transpose(1, 2, 0))
        scales = _output_scales(filters, outputs)
        define = conv.define_channelwise(site.cpu, window)
        result = site.call(define, image, weight, *scales, name="depthwise")
    else:
        return None
    return site.permute(result, _TO_FIRST)


def _dense(site: Site, image: relax.Expr, filters: Stored, window: Window) -> relax.Expr:
    outputs = filters.values.shape[3]
    scales = _output_scales(filters, outputs)
    if window.pointwise:
        plan = gemm.plan_gemm(site.cpu, window.shape, outputs)
        packed = gemm.pack_columns(filters.values[0, 0], plan.width)
        define = gemm.define_gemm(site.cpu, plan)
        return site.call(define, image, packed, *scales, name="pointwise")
    tile = conv.dense_tile(site.cpu, window, outputs)
    packed = conv.pack_filters(filters.values, tile[1])
    define = conv.define_dense(window, outputs, tile)
    return site.call(define, image, packed, *scales, name="conv")


def _output_scales(filters: Stored, outputs: int) -> tuple[np.ndarray, ...]:
    if filters.scales is None:
        return ()
    flat = np.broadcast_to(filters.scales.reshape(-1), (outputs,))
    return (np.ascontiguousarray(flat, "float32"),)


def _pair(values: Sequence[object]) -> tuple[int, int]:
    numbers = [int(str(value)) for value in values]
    return (numbers[0], numbers[-1])


def _four(values: Sequence[object]) -> tuple[int, int, int, int]:
    """Read pads as top, left, bottom, right."""
    numbers = [int(str(value)) for value in values]
    top, left, bottom, right = numbers if len(numbers) == 4 else numbers * (4 // len(numbers))
    return top, left, bottom, right
