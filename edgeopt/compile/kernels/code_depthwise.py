"""Depthwise convolutions of codes where a CPU sums products of four neighbouring bytes (VNNI).

The codes that lie below each other under a window are put side by side in fours, each with its
channel, so that one instruction sums a column of up to four taps in sixteen channels.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import conv, conv_tiles, tile
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.kernels.conv_schedule import STRIPS
from edgeopt.compile.kernels.gemm import inline_around
from edgeopt.compile.kernels.intrinsics import register_fours, register_intrinsics
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    extent,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)

KIND = "code_depthwise"
#: Taps that lie together, and channels of one instruction.
_GROUP = 4
_LANES = 16
#: Codes that are moved at a time, at most: AVX-512's bytes.
_MOVED = 64
#: Moves codes from int8 to uint8, which is what is multiplied.
_SHIFT = 128


def is_depthwise(cpu: Cpu, window: Window, outputs: int) -> bool:
    """Tell whether this kernel takes a convolution: whole vectors, and taps below each other."""
    channels = window.shape[3]
    plain = window.groups == channels == outputs and channels % _LANES == 0
    return cpu.vnni and cpu.lanes == _LANES and plain and window.kernel[0] > 1


def moved(codes: str) -> int:
    """Return what the conversion of codes adds to each, and the zero point must gain."""
    return _SHIFT if codes == "int8" else 0


def pack_filters(filters: np.ndarray) -> np.ndarray:
    """Lay out int8 [KH, KW, 1, C] as [KH / 4, KW, C, 4], zeros beyond KH."""
    rows, columns, _, channels = filters.shape
    groups = -(-rows // _GROUP)
    padded = np.zeros((groups * _GROUP, columns, channels), np.int8)
    padded[:rows] = filters[:, :, 0]
    split = padded.reshape(groups, _GROUP, columns, channels)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1))


def define_depthwise(cpu: Cpu, window: Window, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes [N, H, W, C], packed filters, what each output starts from.

    The image is surrounded by the zero point's code.
    """
    register_intrinsics()
    batch, _, _, channels = window.shape
    rows, columns = window.output
    groups = -(-window.kernel[0] // _GROUP)
    lengthened = _lengthen(window, groups)
    height, width = conv_tiles.channel_tile(cpu, window, channels)
    tiled = (batch, rows, -(-columns // height), channels // width, height, width)
    apart = window.dilation[0]
    marks = mark(kind=KIND, pattern="epilogue", rows=height, columns=width, apart=apart)

    def define(x: te.Tensor, filters: te.Tensor, start: te.Tensor) -> te.Tensor:
        def unsigned(*at: tirx.Expr) -> tirx.Expr:
            code = tirx.reinterpret("uint8", x(*at))
            return tirx.bitwise_xor(code, tirx.const(_SHIFT, "uint8"))

        codes = te.compute(x.shape, unsigned, name="unsigned") if x.dtype == "int8" else x
        padded = conv.pad(lengthened, codes, tirx.const(zero + moved(x.dtype), "uint8"))

        def gather(*at: tirx.Expr) -> tirx.Expr:
            b, row, column, group, c, tap = at
            line = row * window.strides[0] + (group * _GROUP + tap) * apart
            return padded(b, line, column, c)

        shape = (batch, rows, int(padded.shape[2]), groups, channels, _GROUP)
        fours = te.compute(shape, gather, name="fours", attrs=mark(role="fours"))
        ry = te.reduce_axis((0, groups), "ry")
        rx = te.reduce_axis((0, window.kernel[1]), "rx")
        tap = te.reduce_axis((0, _GROUP), "tap")

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            b, row, mo, co, mi, ci = at
            column = tile.clamped(mo, mi, height, columns)
            place = column * window.strides[1] + rx * window.dilation[1]
            channel = co * width + ci
            left = tirx.Cast("int32", fours(b, row, place, ry, channel, tap))
            right = tirx.Cast("int32", filters(ry, rx, channel, tap))
            return te.sum(left * right, axis=[ry, rx, tap])

        product = te.compute(tiled, multiply, name="product", attrs=marks)

        def result(b: tirx.Expr, row: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            return tile.untile(product, (b, row), (z, c), (height, width)) + start(c)

        return te.compute((batch, rows, columns, channels), result, name="depthwise")

    return define


def _lengthen(window: Window, groups: int) -> Window:
    """Surround the image below by the lines that only the zeros of filters meet."""
    top, left, bottom, right = window.pads
    last = (window.output[0] - 1) * window.strides[0]
    last += (groups * _GROUP - 1) * window.dilation[0]
    bottom = max(bottom, last + 1 - top - window.shape[1])
    return dataclasses.replace(window, pads=(top, left, bottom, right))


def schedule_depthwise(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule by strips of rows and blocks of channels; fours are made for one row at a time."""
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    kept, last = inline_around(sch, product, keep=("padded", "fours"))
    batch, row, column, channel = sch.get_loops(last)
    tiles, column_in, blocks, channel_in = tile.tile_output(sch, column, channel, shape)
    rows = extent(sch, row)
    strips, row = sch.split(row, [None, next(size for size in STRIPS if rows % size == 0)])
    sch.reorder(batch, strips, blocks, row, tiles, column_in, channel_in)
    sch.parallel(sch.fuse(batch, strips))
    tile.finish_output(sch, column_in, channel_in, cpu.lanes)
    sch.compute_at(product, tiles, preserve_unit_loops=True)
    roles = {marked(sch, block, "role"): block for block in kept}
    sch.compute_at(roles["fours"], row, preserve_unit_loops=True)
    if "padded" in roles:
        sch.compute_at(roles["padded"], blocks, preserve_unit_loops=True)
        vectorize_inner(sch, sch.get_loops(roles["padded"])[-1], _MOVED)
    *_, each, _ = sch.get_loops(roles["fours"])
    _, lanes = sch.split(each, [None, _LANES])
    sch.tensorize(lanes, register_fours(marked_int(sch, product, "apart")))
    column, channel, *taps, tap = sch.get_loops(product)[-5:]
    vectors, lanes = sch.split(channel, [None, _LANES])
    sch.reorder(*taps, column, vectors, lanes, tap)
    for loop in (*taps, column, vectors):
        sch.unroll(loop)
    start = sch.decompose_reduction(product, taps[0])
    sch.vectorize(sch.get_loops(start)[-1])
    sch.tensorize(lanes, "edgeopt_vnni_fours")
