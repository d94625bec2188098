"""Convolutions and pooling on [batch, height, width, channels].

A dense convolution is the GEMM of gemm.py with more axes to sum over; one of few channels per
group, or a pool, walks a few columns of one block of channels. Weights are packed with numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import gemm, tile
from edgeopt.compile.kernels.conv_tiles import DENSE, channel_tile
from edgeopt.compile.kernels.scheduling import mark

CHANNELWISE = "channelwise"
#: The role of a block that sees an image as the rows of a product.
UNFOLDED = "unfolded"

#: Makes the stored value of a sum from it and its channel.
Finish = Callable[[tirx.Expr, tirx.Expr], tirx.Expr]

#: How a pool joins the values of a window.
MAXIMUM, SUM = "max", "sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The geometry of a convolution or pool over [batch, height, width, channels]."""

    shape: tuple[int, ...]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    #: Top, left, bottom, right.
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    #: Height and width of the result, where they are not what the padded image has room for.
    size: tuple[int, int] | None = None

    @property
    def spans(self) -> tuple[int, int]:
        """Rows and columns from a window's first tap to its last."""
        first, second = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        return first, second

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        if self.size is not None:
            return self.size
        top, left, bottom, right = self.pads
        height = (self.shape[1] + top + bottom - self.spans[0]) // self.strides[0] + 1
        width = (self.shape[2] + left + right - self.spans[1]) // self.strides[1] + 1
        return height, width

    @property
    def pointwise(self) -> bool:
        """Whether it is a product of each pixel with a matrix."""
        plain = self.kernel == (1, 1) and self.strides == (1, 1)
        return plain and not any(self.pads) and self.groups == 1

    @property
    def inputs(self) -> int:
        """Channels that each output sums over."""
        return self.shape[3] // self.groups

    @property
    def depth(self) -> int:
        """Values that each output sums."""
        return self.kernel[0] * self.kernel[1] * self.inputs

    def at(
        self, row: tirx.Expr, column: tirx.Expr, tap: tuple[tirx.Expr, tirx.Expr]
    ) -> tuple[tirx.Expr, tirx.Expr]:
        """Find the padded input's row and column under one tap of the kernel."""
        return (
            row * self.strides[0] + tap[0] * self.dilation[0],
            column * self.strides[1] + tap[1] * self.dilation[1],
        )


def pad(window: Window, x: te.Tensor, value: tirx.Expr) -> te.Tensor:
    """Surround the image by a value; the image itself where there is nothing to add."""
    if not any(window.pads):
        return x
    batch, height, width, channels = window.shape
    top, left, bottom, right = window.pads

    def element(b: tirx.Expr, y: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        inside = tirx.all(y >= top, y < height + top, z >= left, z < width + left)
        return tirx.if_then_else(inside, x(b, y - top, z - left, c), value)

    shape = (batch, height + top + bottom, width + left + right, channels)
    return te.compute(shape, element, name="padded", attrs=mark(role="padded"))


def pad_planar(window: Window, x: te.Tensor) -> te.Tensor:
    """Surround an image [batch, channels, height, width] by zeros, as it lies in memory.

    Rows stay loops, which LLVM makes masked vectors of.
    """
    if not any(window.pads):
        return x
    batch, height, width, channels = window.shape
    top, left, bottom, right = window.pads

    def element(b: tirx.Expr, c: tirx.Expr, y: tirx.Expr, z: tirx.Expr) -> tirx.Expr:
        inside = tirx.all(y >= top, y < height + top, z >= left, z < width + left)
        return tirx.if_then_else(inside, x(b, c, y - top, z - left), tirx.const(0, x.dtype))

    shape = (batch, channels, height + top + bottom, width + left + right)
    return te.compute(shape, element, name="padded", attrs=mark(role="padded", lanes=1))


def pack_filters(filters: np.ndarray, width: int) -> np.ndarray:
    """Lay out [KH, KW, I, O] as panels [O / width, KH, KW, I, width], zeros beyond O."""
    kernel_height, kernel_width, inputs, outputs = filters.shape
    panels = -(-outputs // width)
    padded = np.zeros((kernel_height, kernel_width, inputs, panels * width), filters.dtype)
    padded[..., :outputs] = filters
    split = padded.reshape(kernel_height, kernel_width, inputs, panels, width)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 2, 4))


def define_dense(
    window: Window, outputs: int, shape: tuple[int, int], *, planar: bool = False
) -> Callable[..., te.Tensor]:
    """Make the TE definition: image, packed filters and, if any, scales of outputs.

    A planar image is [batch, channels, height, width].
    """
    rows, columns = window.output
    height, width = shape
    panels_per_group = max(1, outputs // window.groups // width)
    tiled = (window.shape[0], rows, -(-columns // height), -(-outputs // width), height, width)

    def define(x: te.Tensor, filters: te.Tensor, *scales: te.Tensor) -> te.Tensor:
        padded = pad_planar(window, x) if planar else pad(window, x, tirx.const(0, x.dtype))
        panels = tile.widen_panels(filters)
        ry = te.reduce_axis((0, window.kernel[0]), "ry")
        rx = te.reduce_axis((0, window.kernel[1]), "rx")
        rc = te.reduce_axis((0, window.inputs), "rc")

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            b, row, mo, no, mi, ni = at
            column = tile.clamped(mo, mi, height, columns)
            y, z = window.at(row, column, (ry, rx))
            channel = rc
            if window.groups > 1:
                channel = tirx.floordiv(no, panels_per_group) * window.inputs + rc
            place = (channel, y, z) if planar else (y, z, channel)
            return te.sum(padded(b, *place) * panels(no, ry, rx, rc, ni), axis=[ry, rx, rc])

        product = te.compute(
            tiled,
            multiply,
            name="product",
            attrs=mark(
                kind=DENSE,
                pattern="epilogue",
                rows=height,
                columns=width,
                unroll=tile.unroll_of(window.inputs),
                bytes=window.depth * outputs * np.dtype(str(filters.dtype)).itemsize,
                read=int(np.prod(window.shape)) * 4,
            ),
        )

        def result(b: tirx.Expr, row: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            value = tile.untile(product, (b, row), (z, c), shape)
            return value * scales[0](c) if scales else value

        return te.compute((window.shape[0], rows, columns, outputs), result, name="conv")

    return define


def unfold(window: Window, x: te.Tensor) -> te.Tensor:
    """Define what each output of a convolution sums: [batch, height, width, taps x channels].

    It is never stored: the kernel reads it once, packing the rows of a product.
    """
    padded = pad(window, x, tirx.const(0, x.dtype))
    rows, columns = window.output

    def element(b: tirx.Expr, row: tirx.Expr, column: tirx.Expr, k: tirx.Expr) -> tirx.Expr:
        place, channel = tirx.floordiv(k, window.inputs), tirx.floormod(k, window.inputs)
        across = window.kernel[1]
        tap = tirx.floordiv(place, across), tirx.floormod(place, across)
        return padded(b, *window.at(row, column, tap), channel)

    shape = (window.shape[0], rows, columns, window.depth)
    marks = mark(role=UNFOLDED, inputs=window.inputs, across=window.kernel[1])
    return te.compute(shape, element, name=UNFOLDED, attrs=marks)


def define_unfolded(cpu: Cpu, window: Window, plan: gemm.Gemm) -> Callable[..., te.Tensor]:
    """Make the TE definition: image, filters as panels of a product and, if any, scales."""
    multiply = gemm.define_gemm(cpu, plan)

    def define(x: te.Tensor, panels: te.Tensor, *scales: te.Tensor) -> te.Tensor:
        return multiply(unfold(window, x), panels, *scales)

    return define


def define_channelwise(cpu: Cpu, window: Window, outputs: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: image, filters [KH, KW, I, O] and, if any, scales of outputs."""
    each = outputs // window.groups
    rc = te.reduce_axis((0, window.inputs), "rc")

    def define(x: te.Tensor, filters: te.Tensor, *scales: te.Tensor) -> te.Tensor:
        def term(read: Callable[..., tirx.Expr], channel: tirx.Expr, *tap: tirx.Expr) -> tirx.Expr:
            weight = filters(*tap, rc, channel)
            weight = weight if filters.dtype == "float32" else tirx.Cast("float32", weight)
            group = channel if each == 1 else tirx.floordiv(channel, each)
            source = group if window.inputs == 1 else group * window.inputs + rc
            return te.sum(read(source) * weight, axis=[*tap, rc])

        padded = pad(window, x, tirx.const(0, x.dtype))
        return walk(cpu, window, outputs, padded, term, _scale(scales))

    return define


def define_pool(cpu: Cpu, window: Window, kind: str) -> Callable[[te.Tensor], te.Tensor]:
    """Make the TE definition of the maximum, or of the sum, over the window."""

    def define(x: te.Tensor) -> te.Tensor:
        neutral = tirx.min_value(x.dtype) if kind == MAXIMUM else tirx.const(0, x.dtype)
        fold = te.max if kind == MAXIMUM else te.sum

        def term(read: Callable[..., tirx.Expr], channel: tirx.Expr, *tap: tirx.Expr) -> tirx.Expr:
            return fold(read(channel), axis=list(tap))

        padded = pad(window, x, neutral)
        return walk(cpu, window, window.shape[3], padded, term, _scale(()))

    return define


def define_code_sum(cpu: Cpu, window: Window, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition of int32 sums over the window: codes, what each channel starts from.

    The image is surrounded by the zero point's code.
    """

    def define(x: te.Tensor, start: te.Tensor) -> te.Tensor:
        def term(read: Callable[..., tirx.Expr], channel: tirx.Expr, *tap: tirx.Expr) -> tirx.Expr:
            return te.sum(tirx.Cast("int32", read(channel)), axis=list(tap))

        def finish(value: tirx.Expr, channel: tirx.Expr) -> tirx.Expr:
            return value + start(channel)

        padded = pad(window, x, tirx.const(zero, x.dtype))
        return walk(cpu, window, window.shape[3], padded, term, finish)

    return define


def _scale(scales: tuple[te.Tensor, ...]) -> Finish:
    return lambda value, channel: value * scales[0](channel) if scales else value


def walk(
    cpu: Cpu,
    window: Window,
    outputs: int,
    padded: te.Tensor,
    term: Callable[..., tirx.Expr],
    finish: Finish,
) -> te.Tensor:
    """Join the terms of each window by tiles of a few columns and channels.

    The CPU's lanes are those that are computed at a time, be they several vectors.
    """
    shape = channel_tile(cpu, window, outputs)
    height, width = shape
    rows, columns = window.output
    tiled = (window.shape[0], rows, -(-columns // height), outputs // width, height, width)
    ry = te.reduce_axis((0, window.kernel[0]), "ry")
    rx = te.reduce_axis((0, window.kernel[1]), "rx")

    def reduce(*at: tirx.Expr) -> tirx.Expr:
        b, row, mo, co, mi, ci = at
        y, z = window.at(row, tile.clamped(mo, mi, height, columns), (ry, rx))
        return term(lambda channel: padded(b, y, z, channel), co * width + ci, ry, rx)

    product = te.compute(
        tiled,
        reduce,
        name="product",
        attrs=mark(
            kind=CHANNELWISE, pattern="epilogue", rows=height, columns=width, lanes=cpu.lanes
        ),
    )

    def result(b: tirx.Expr, row: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        return finish(tile.untile(product, (b, row), (z, c), shape), c)

    return te.compute((window.shape[0], rows, columns, outputs), result, name="channelwise")
