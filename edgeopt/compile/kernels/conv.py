"""Convolutions and pooling on [batch, height, width, channels].

A dense convolution is the GEMM of gemm.py with more axes to sum over; a depthwise one, or a pool,
walks a few columns of one block of channels. Weights are packed with numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import tile
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.scheduling import mark

DENSE = "conv"
CHANNELWISE = "channelwise"

_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The geometry of a convolution or pool over [batch, height, width, channels]."""

    shape: tuple[int, ...]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    #: Top, left, bottom, right.
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        top, left, bottom, right = self.pads
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        height = (self.shape[1] + top + bottom - spans[0]) // self.strides[0] + 1
        width = (self.shape[2] + left + right - spans[1]) // self.strides[1] + 1
        return height, width

    @property
    def pointwise(self) -> bool:
        """Whether it is a product of each pixel with a matrix."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)

    def at(
        self, row: tirx.Expr, column: tirx.Expr, tap: tuple[tirx.Expr, tirx.Expr]
    ) -> tuple[tirx.Expr, tirx.Expr]:
        """Find the padded input's row and column under one tap of the kernel."""
        return (
            row * self.strides[0] + tap[0] * self.dilation[0],
            column * self.strides[1] + tap[1] * self.dilation[1],
        )


def pad(window: Window, x: te.Tensor, value: float) -> te.Tensor:
    """Surround the image by a value; the image itself where there is nothing to add."""
    if not any(window.pads):
        return x
    batch, height, width, channels = window.shape
    top, left, bottom, right = window.pads

    def element(b: tirx.Expr, y: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
        inside = tirx.all(y >= top, y < height + top, z >= left, z < width + left)
        return tirx.if_then_else(inside, x(b, y - top, z - left, c), number(value))

    shape = (batch, height + top + bottom, width + left + right, channels)
    return te.compute(shape, element, name="padded", attrs=mark(role="padded"))


def pack_filters(filters: np.ndarray, width: int) -> np.ndarray:
    """Lay out [KH, KW, I, O] as panels [O / width, KH, KW, I, width], zeros beyond O."""
    kernel_height, kernel_width, inputs, outputs = filters.shape
    panels = -(-outputs // width)
    padded = np.zeros((kernel_height, kernel_width, inputs, panels * width), filters.dtype)
    padded[..., :outputs] = filters
    split = padded.reshape(kernel_height, kernel_width, inputs, panels, width)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 2, 4))


def dense_tile(cpu: Cpu, window: Window, outputs: int) -> tuple[int, int]:
    """Choose how many columns of the image and how many output channels a tile has."""
    return tile.choose_tile(cpu, window.output[1], outputs)


def define_dense(window: Window, outputs: int, shape: tuple[int, int]) -> Callable[..., te.Tensor]:
    """Make the TE definition: image, packed filters and, if any, scales of outputs."""
    rows, columns = window.output
    height, width = shape
    inputs = window.shape[3]
    tiled = (window.shape[0], rows, -(-columns // height), -(-outputs // width), height, width)

    def define(x: te.Tensor, filters: te.Tensor, *scales: te.Tensor) -> te.Tensor:
        padded = pad(window, x, 0.0)
        panels = tile.widen_panels(filters)
        ry = te.reduce_axis((0, window.kernel[0]), "ry")
        rx = te.reduce_axis((0, window.kernel[1]), "rx")
        rc = te.reduce_axis((0, inputs), "rc")

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            b, row, mo, no, mi, ni = at
            column = tile.clamped(mo, mi, height, columns)
            y, z = window.at(row, column, (ry, rx))
            return te.sum(padded(b, y, z, rc) * panels(no, ry, rx, rc, ni), axis=[ry, rx, rc])

        product = te.compute(
            tiled,
            multiply,
            name="product",
            attrs=mark(
                kind=DENSE,
                pattern="epilogue",
                rows=height,
                columns=width,
                unroll=tile.unroll_of(inputs),
            ),
        )

        def result(b: tirx.Expr, row: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            value = tile.untile(product, (b, row), (z, c), shape)
            return value * scales[0](c) if scales else value

        return te.compute((window.shape[0], rows, columns, outputs), result, name="conv")

    return define


def channel_tile(cpu: Cpu, window: Window) -> tuple[int, int]:
    """Choose columns and channels of a depthwise tile; channels divide, or loads would gather."""
    channels = window.shape[3]
    lanes = cpu.lanes
    while lanes > 1 and channels % lanes:
        lanes //= 2
    # On NEON one vector by 4 to 7 columns leaves registers for nine weights.
    several = (2, 3, 1) if cpu.lanes > 4 else (1,)
    width = next((lanes * n for n in several if channels % (lanes * n) == 0), lanes)
    columns = window.output[1]
    candidates = (4, 7, 8) if cpu.lanes > 4 else (4, 7)
    height = max(candidates, key=lambda n: (columns / tile.round_up(columns, n), -n))
    return min(height, columns), width


def define_channelwise(cpu: Cpu, window: Window, *, pool: bool = False) -> Callable[..., te.Tensor]:
    """Make the TE definition of a depthwise convolution, or of a maximum over the window."""
    shape = channel_tile(cpu, window)
    height, width = shape
    rows, columns = window.output
    channels = window.shape[3]
    tiled = (window.shape[0], rows, -(-columns // height), channels // width, height, width)

    def define(x: te.Tensor, *operands: te.Tensor) -> te.Tensor:
        padded = pad(window, x, _LOWEST if pool else 0.0)
        ry = te.reduce_axis((0, window.kernel[0]), "ry")
        rx = te.reduce_axis((0, window.kernel[1]), "rx")

        def reduce(*at: tirx.Expr) -> tirx.Expr:
            b, row, mo, co, mi, ci = at
            column = tile.clamped(mo, mi, height, columns)
            channel = co * width + ci
            y, z = window.at(row, column, (ry, rx))
            value = padded(b, y, z, channel)
            if pool:
                return te.max(value, axis=[ry, rx])
            weight = operands[0](ry, rx, channel)
            weight = weight if weight_is_float(operands[0]) else tirx.Cast("float32", weight)
            return te.sum(value * weight, axis=[ry, rx])

        product = te.compute(
            tiled,
            reduce,
            name="product",
            attrs=mark(kind=CHANNELWISE, pattern="epilogue", rows=height, columns=width),
        )

        def result(b: tirx.Expr, row: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            value = tile.untile(product, (b, row), (z, c), shape)
            return value * operands[1](c) if len(operands) > 1 else value

        return te.compute((window.shape[0], rows, columns, channels), result, name="channelwise")

    return define


def weight_is_float(weight: te.Tensor) -> bool:
    """Tell whether a stored weight needs no conversion."""
    return bool(weight.dtype == "float32")
