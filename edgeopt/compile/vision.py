"""Convolutions to kernels that store channels last; the transposes around them sink."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from tvm import relax

from edgeopt.compile.import_vision import Axis, read_axes
from edgeopt.compile.integer_vision import convolve_codes
from edgeopt.compile.kernels import conv, conv_tiles, gemm, winograd
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.site import Site
from edgeopt.compile.stored import Stored, stored_of
from edgeopt.compile.views import constant_of, shape_of

_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)

#: Outputs from which unfolding an image for the kernel of products is worth its time.
_FEWEST_UNFOLDED = 24

#: Channels of an input that are read from where they are at most.
_MOST_PLANAR = 4

#: Filters [KH, KW, I, O]: constant with their scales, or computed by the model.
Filters: TypeAlias = Stored | relax.Expr


def lower_conv2d(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a convolution of [N, C, H, W]."""
    image, weight = call.args
    if image.ty.dtype.dtype != "float32" or str(call.attrs.data_layout) != "NCHW":
        return None
    filters = _filters_of(site, weight)
    if filters is None:
        return None
    shape = shape_of(image)
    kernel = shape_of(weight)[2:]
    window = Window(
        shape=(shape[0], shape[2], shape[3], shape[1]),
        kernel=(kernel[0], kernel[1]),
        strides=_pair(call.attrs.strides),
        pads=_four(call.attrs.padding),
        dilation=_pair(call.attrs.dilation),
        groups=int(call.attrs.groups),
    )
    planar = _convolve_planar(site, image, filters, window)
    if planar is not None:
        return site.permute(planar, _TO_FIRST)
    result = _convolve(site, site.permute(image, _TO_LAST), filters, window)
    return site.permute(result, _TO_FIRST)


def lower_conv1d(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a convolution of [N, C, W] as one of images with a single row."""
    image, weight = call.args
    if image.ty.dtype.dtype != "float32" or str(call.attrs.data_layout) != "NCW":
        return None
    outputs, inputs, taps = shape_of(weight)
    filters = _filters_of(site, weight, (outputs, inputs, 1, taps))
    if filters is None:
        return None
    batch, channels, width = shape_of(image)
    left, right = (int(each) for each in call.attrs.padding)
    window = Window(
        shape=(batch, 1, width, channels),
        kernel=(1, taps),
        strides=(1, int(call.attrs.strides[0])),
        pads=(0, left, 0, right),
        dilation=(1, int(call.attrs.dilation[0])),
        groups=int(call.attrs.groups),
    )
    last = site.reshape(site.permute(image, (0, 2, 1)), window.shape)
    result = _convolve(site, last, filters, window)
    flat = site.reshape(result, (batch, window.output[1], outputs))
    return site.permute(flat, (0, 2, 1))


def lower_conv3d(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a convolution of [N, C, D, H, W]: the taps along D become channels of flat images."""
    image, weight = call.args
    stored = stored_of(site, weight)
    if stored is None or stored.scales is not None or int(call.attrs.groups) != 1:
        return None
    batch, channels, depth, rows, columns = shape_of(image)
    outputs, _, taps, *kernel = stored.values.shape
    front, top, left, back, bottom, right = (int(each) for each in call.attrs.padding)
    stride, *strides = (int(each) for each in call.attrs.strides)
    dilation, *dilations = (int(each) for each in call.attrs.dilation)
    axis = Axis(taps, stride, front, back, dilation)
    steps = axis.positions(depth)
    slices = _depth_taps(site, site.permute(image, (0, 2, 3, 4, 1)), axis, steps)
    window = Window(
        shape=(batch * steps, rows, columns, taps * channels),
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        pads=(top, left, bottom, right),
        dilation=(dilations[0], dilations[1]),
    )
    values = stored.values.transpose(3, 4, 2, 1, 0).reshape(*kernel, taps * channels, outputs)
    result = _convolve(site, site.reshape(slices, window.shape), Stored(values), window)
    whole = site.reshape(result, (batch, steps, *window.output, outputs))
    return site.permute(whole, (0, 4, 1, 2, 3))


def _depth_taps(site: Site, last: relax.Expr, axis: Axis, steps: int) -> relax.Expr:
    """Put side by side, as channels, what each tap along the second axis reads."""
    if axis.before or axis.after:
        width = [0, 0, axis.before, axis.after, *[0] * 6]
        last = site.emit(relax.op.nn.pad(last, width))
    slices = []
    for tap in range(axis.kernel):
        start = tap * axis.dilation
        end = start + (steps - 1) * axis.stride + 1
        cut = relax.op.strided_slice(last, [1], [start], [end], [axis.stride])
        slices.append(site.emit(cut))
    return site.emit(relax.op.concat(slices, axis=4)) if len(slices) > 1 else slices[0]


def lower_conv_transpose(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a transposed convolution of [N, C, W] or [N, C, H, W] with constant filters.

    Each of stride x stride phases of the result is a plain convolution of the image with some of
    the taps; one convolution computes all phases as channels, which are then put in their places.
    """
    _, image, weight, geometry, groups = call.args
    stored = stored_of(site, weight)
    if stored is None or stored.scales is not None or image.ty.dtype.dtype != "float32":
        return None
    shape, axes, lengths = shape_of(image), read_axes(geometry), shape_of(call)[2:]
    values = stored.values
    if len(axes) == 1:
        axes, lengths = (Axis(1, 1, 0, 0, 1), axes[0]), (1, lengths[0])
        values, shape = values[:, :, None], (*shape[:2], 1, shape[2])
    image = site.reshape(image, shape)
    number = int(str(constant_of(groups)))
    steps = tuple(-(-length // axis.stride) for axis, length in zip(axes, lengths, strict=True))
    window, filters = _phases(values, shape, axes, steps, number)
    result = _convolve(site, site.permute(image, _TO_LAST), Stored(filters), window)
    strides = [axis.stride for axis in axes]
    each = values.shape[1]
    spread = site.reshape(result, (shape[0], *window.output, number, *strides, each))
    spread = site.permute(spread, (0, 1, 4, 2, 5, 3, 6))
    sizes = [size * stride for size, stride in zip(window.output, strides, strict=True)]
    whole = site.reshape(spread, (shape[0], *sizes, number * each))
    if tuple(sizes) != tuple(lengths):
        whole = site.emit(relax.op.strided_slice(whole, [1, 2], [0, 0], list(lengths)))
    return site.reshape(site.permute(whole, _TO_FIRST), shape_of(call))


def _phases(
    values: np.ndarray,
    shape: tuple[int, ...],
    axes: tuple[Axis, ...],
    steps: tuple[int, ...],
    groups: int,
) -> tuple[Window, np.ndarray]:
    """Rearrange filters [I, O, KH, KW] of a transposed convolution: one plain one of all phases.

    A result at q * stride + phase reads the image at q + offset through a tap where
    stride * offset = phase + padding - tap * dilation.
    """
    places = [_tap_places(axis) for axis in axes]
    lowest = [min(0, *(offset for _, _, offset in each)) for each in places]
    kernel = [
        max(offset for _, _, offset in each) - low + 1
        for each, low in zip(places, lowest, strict=True)
    ]
    inputs, each = values.shape[0] // groups, values.shape[1]
    grouped = values.reshape(groups, inputs, each, *values.shape[2:])
    strides = [axis.stride for axis in axes]
    filters = np.zeros((*kernel, inputs, groups, *strides, each), values.dtype)
    for tap_y, phase_y, y in places[0]:
        for tap_x, phase_x, x in places[1]:
            taken = grouped[:, :, :, tap_y, tap_x].transpose(1, 0, 2)
            filters[y - lowest[0], x - lowest[1], :, :, phase_y, phase_x] = taken
    after = [
        max(0, count + size - 1 - length + low)
        for count, size, length, low in zip(steps, kernel, shape[2:], lowest, strict=True)
    ]
    window = Window(
        shape=(shape[0], shape[2], shape[3], shape[1]),
        kernel=(kernel[0], kernel[1]),
        strides=(1, 1),
        pads=(-lowest[0], -lowest[1], after[0], after[1]),
        groups=groups,
        size=(steps[0], steps[1]),
    )
    return window, filters.reshape(*kernel, inputs, -1)


def _tap_places(axis: Axis) -> list[tuple[int, int, int]]:
    """List for every phase its taps: tap, phase, offset in the image."""
    return [
        (tap, phase, (phase + axis.before - tap * axis.dilation) // axis.stride)
        for phase in range(axis.stride)
        for tap in range(axis.kernel)
        if (phase + axis.before - tap * axis.dilation) % axis.stride == 0
    ]


def _filters_of(
    site: Site, weight: relax.Expr, shape: tuple[int, ...] | None = None
) -> Filters | None:
    """Read filters [O, I, KH, KW], of this shape if given, as [KH, KW, I, O].

    None where their scales do not lie along outputs.
    """
    stored = stored_of(site, weight)
    if stored is None:
        flat = weight if shape is None else site.reshape(weight, shape)
        return site.permute(flat, (2, 3, 1, 0))
    if stored.scales is not None and stored.scales.size > 1 and stored.axis != 0:
        return None
    if shape is not None:
        stored = Stored(stored.values.reshape(shape), stored.scales, stored.axis)
    return stored.permuted((2, 3, 1, 0))


def _convolve(site: Site, image: relax.Expr, filters: Filters, window: Window) -> relax.Expr:
    """Emit a convolution of [N, H, W, C]."""
    if isinstance(filters, Stored):
        coded = convolve_codes(site, image, filters, window)
        if coded is not None:
            return coded
    outputs = _shape_of_filters(filters)[3]
    scales, dtype = _output_scales(filters, outputs), _dtype_of_filters(filters)
    if window.pointwise:
        plan = gemm.plan_gemm(site.cpu, window.shape, outputs, dtype)
        packed = _packed(site, filters, plan.width)
        panels = _reshaped(site, packed, (-1, plan.depth, plan.width))
        define = gemm.define_gemm(site.cpu, plan)
        return site.call(define, image, panels, *scales, name="pointwise")
    tiles = winograd.plan_winograd(site.cpu, window, outputs)
    if tiles is not None and isinstance(filters, Stored) and filters.values.dtype == np.float32:
        spread = winograd.transform_filters(filters.values, tiles.width)
        return site.call(winograd.define_winograd(tiles), image, spread, name="winograd")
    if _is_unfolded(site, window, outputs):
        shape = (window.shape[0], *window.output, window.depth)
        unfolded = gemm.plan_gemm(site.cpu, shape, outputs, dtype)
        packed = _packed(site, filters, unfolded.width)
        panels = _reshaped(site, packed, (-1, unfolded.depth, unfolded.width))
        define = conv.define_unfolded(site.cpu, window, unfolded)
        return site.call(define, image, panels, *scales, name="conv")
    dense = window.groups != window.shape[3]
    tile = conv_tiles.dense_tile(site.cpu, window, outputs, dtype) if dense else None
    if tile is None:
        define = conv.define_channelwise(site.cpu, window, outputs)
        values = filters.values if isinstance(filters, Stored) else filters
        return site.call(define, image, values, *scales, name="depthwise")
    define = conv.define_dense(window, outputs, tile)
    return site.call(define, image, _packed(site, filters, tile[1]), *scales, name="conv")


def _convolve_planar(
    site: Site, image: relax.Expr, filters: Filters, window: Window
) -> relax.Expr | None:
    """Emit a convolution of an input [N, C, H, W] of few channels from where it is.

    No vector holds so few, and where a CPU broadcasts values from memory any order is as good.
    """
    if site.cpu.vector_a or window.groups != 1 or window.inputs > _MOST_PLANAR or window.pointwise:
        return None
    # What the model computes has channels last, or is about to.
    if not isinstance(site.bound(image), relax.Var) or not isinstance(filters, Stored):
        return None
    outputs = filters.values.shape[3]
    if winograd.plan_winograd(site.cpu, window, outputs) is not None:
        return None
    tile = conv_tiles.dense_tile(site.cpu, window, outputs, filters.values.dtype)
    assert tile is not None
    define = conv.define_dense(window, outputs, tile, planar=True)
    packed = conv.pack_filters(filters.values, tile[1])
    return site.call(define, image, packed, *_output_scales(filters, outputs), name="conv")


def _is_unfolded(site: Site, window: Window, outputs: int) -> bool:
    """Tell whether an image is unfolded for the kernel of products whose rows are packed."""
    shape = (window.shape[0], *window.output, window.depth)
    packed = gemm.is_packed(site.cpu, gemm.Gemm(shape, outputs, 1, 1))
    return window.groups == 1 and outputs >= _FEWEST_UNFOLDED and packed


def _dtype_of_filters(filters: Filters) -> object:
    return filters.values.dtype if isinstance(filters, Stored) else filters.ty.dtype.dtype


def _shape_of_filters(filters: Filters) -> tuple[int, ...]:
    return filters.values.shape if isinstance(filters, Stored) else shape_of(filters)


def _packed(site: Site, filters: Filters, width: int) -> np.ndarray | relax.Expr:
    """Lay out filters as panels, now or, where the model computes them, when it runs."""
    if isinstance(filters, Stored):
        return conv.pack_filters(filters.values, width)
    *taps, outputs = shape_of(filters)
    panels = -(-outputs // width)
    missing = panels * width - outputs
    if missing:
        filters = site.emit(relax.op.nn.pad(filters, [*[0] * 7, missing]))
    split = site.emit(relax.op.reshape(filters, (*taps, panels, width)))
    return site.emit(relax.op.permute_dims(split, (3, 0, 1, 2, 4)))


def _reshaped(
    site: Site, values: np.ndarray | relax.Expr, shape: tuple[int, int, int]
) -> np.ndarray | relax.Expr:
    if isinstance(values, np.ndarray):
        return values.reshape(shape)
    return site.reshape(values, (shape_of(values)[0], *shape[1:]))


def _output_scales(filters: Filters, outputs: int) -> tuple[np.ndarray, ...]:
    if not isinstance(filters, Stored) or filters.scales is None:
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
