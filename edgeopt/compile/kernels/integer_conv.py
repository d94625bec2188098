"""Convolutions of codes, channels last, summed in int32: exact, padded by the zero point's code.

A dense convolution is the product of integer.py: what a window reads of one row of the image lies
together in memory, taps and channels alike, so that one run of codes after the other is multiplied
from where it is. What a run takes beyond the window, up to a whole instruction, meets zeros.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import conv, tile
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.kernels.gemm import Gemm, inline_around
from edgeopt.compile.kernels.integer import (
    Dot,
    IntegerGemm,
    choose_dot,
    convert,
    is_extreme,
    pack_codes,
    rank_tiles,
    read_packed,
    tensorize_product,
)
from edgeopt.compile.kernels.intrinsics import register_intrinsics
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    extent,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)
from edgeopt.tiles import TileKey

KIND = "integer_conv"
#: Codes that are moved at a time, at most: AVX-512's bytes.
_MOVED = 64


@dataclass(frozen=True, slots=True)
class IntegerConv:
    """A dense convolution of codes: its geometry, and the product that each tile of it is."""

    window: Window
    product: IntegerGemm

    @property
    def joined(self) -> bool:
        """Whether the taps of a row are read as one run with their channels."""
        return self.window.dilation[1] == 1 and self.window.groups == 1

    @property
    def taps(self) -> tuple[int, int]:
        """Runs that a window reads: rows, and taps along a row."""
        rows, columns = self.window.kernel
        return rows, 1 if self.joined else columns

    @property
    def run(self) -> int:
        """Codes of one run, rounded up to whole instructions."""
        return self.product.depth // (self.taps[0] * self.taps[1])

    @property
    def padded_columns(self) -> int:
        """Columns of the padded image, with those that only runs beyond windows read."""
        window = self.window
        pixels = window.shape[2] + window.pads[1] + window.pads[3]
        last = (window.output[1] - 1) * window.strides[1]
        last += (self.taps[1] - 1) * window.dilation[1]
        end = last * window.shape[3] + (window.groups - 1) * window.inputs + self.run
        return max(pixels, -(-end // window.shape[3]))

    @property
    def copied(self) -> bool:
        """Whether the image is copied: padded, lengthened, or of another type of codes."""
        window, product = self.window, self.product
        longer = self.padded_columns > window.shape[2]
        return any(window.pads) or longer or product.dot.code != product.codes


def plan_conv(cpu: Cpu, window: Window, filters: np.ndarray, codes: str) -> IntegerConv | None:
    """Choose the instruction and the tile for int8 filters [KH, KW, I, O].

    None for groups whose outputs no vector divides.
    """
    dot = choose_dot(cpu, extreme=is_extreme(filters))
    outputs = filters.shape[3]
    each = outputs // window.groups
    if each % cpu.lanes and window.groups > 1:
        return None
    key = TileKey(KIND, window.output[1], each, window.depth, codes)
    ranked = rank_tiles(cpu, key)
    # Groups take the default: its width is cut to what divides them.
    height, width = tile.choose_tuned(cpu, key, ranked) if window.groups == 1 else ranked[0]
    while window.groups > 1 and each % width:
        width -= cpu.lanes
    joined = window.dilation[1] == 1 and window.groups == 1
    run = window.inputs * (window.kernel[1] if joined else 1)
    dot = _with_calls(dot, -(-run // dot.depth))
    depth = tile.round_up(run, dot.depth * dot.calls)
    depth *= window.kernel[0] * (1 if joined else window.kernel[1])
    gemm = Gemm((*window.output, depth), outputs, height, width)
    return IntegerConv(window, IntegerGemm(gemm, dot, codes))


def _with_calls(dot: Dot, calls: int) -> Dot:
    """Load as many codes at a time as a run has, so that little of the last load is wasted."""
    if dot.broadcast:
        return dataclasses.replace(dot, calls=dot.calls if calls % dot.calls == 0 else 1)
    return dataclasses.replace(dot, calls=min(dot.calls, 1 << (calls - 1).bit_length()))


def pack_filters(filters: np.ndarray, plan: IntegerConv) -> np.ndarray:
    """Lay out int8 [KH, KW, I, O] in the order in which the instruction reads them."""
    rows, columns = plan.taps
    runs = filters.reshape(rows * columns, -1, filters.shape[3])
    padded = np.zeros((len(runs), plan.run, filters.shape[3]), np.int8)
    padded[:, : runs.shape[1]] = runs
    return pack_codes(padded.reshape(-1, filters.shape[3]), plan.product)


def define_conv(plan: IntegerConv, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes [N, H, W * C], packed filters, what each output starts from.

    The sums are those of the codes as they are multiplied, which plan.product.moved tells.
    """
    register_intrinsics()
    window, gemm, dot = plan.window, plan.product.gemm, plan.product.dot
    groups = window.groups
    panels = max(1, gemm.columns // groups // gemm.width)
    tiles = [-(-window.output[1] // gemm.height), -(-gemm.columns // gemm.width)]
    marks = mark(
        kind=KIND,
        pattern="epilogue",
        rows=gemm.height,
        columns=gemm.width,
        bytes=gemm.depth * gemm.columns,
        intrinsic=dot.intrinsic,
        depth=dot.depth,
        calls=dot.calls,
        lanes=dot.lanes,
    )

    def define(x: te.Tensor, weight: te.Tensor, start: te.Tensor) -> te.Tensor:
        image = _pad_lines(plan, x, zero) if plan.copied else x
        packed = read_packed(plan.product, weight)
        ry, rx = (te.reduce_axis((0, size), "tap") for size in plan.taps)
        k = te.reduce_axis((0, plan.run), "k")
        codes = _read_runs(plan, image)

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            b, row, mo, no, mi, ni = at
            group = tirx.floordiv(no, panels) if groups > 1 else tirx.const(0, "int32")
            left = tirx.Cast("int32", codes(b, row, mo, group, mi, ry, rx, k))
            within = (ry * plan.taps[1] + rx) * plan.run + k
            return te.sum(left * tirx.Cast("int32", packed(no, within, ni)), axis=[ry, rx, k])

        shape = (window.shape[0], window.output[0], *tiles, gemm.height, gemm.width)
        product = te.compute(shape, multiply, name="product", attrs=marks)

        def result(b: tirx.Expr, row: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            return tile.untile(product, (b, row), (z, c), (gemm.height, gemm.width)) + start(c)

        final = (window.shape[0], *window.output, gemm.columns)
        return te.compute(final, result, name="integer_conv")

    return define


def _pad_lines(plan: IntegerConv, x: te.Tensor, zero: int) -> te.Tensor:
    """Surround the image by the zero point's code, and convert it to what is multiplied."""
    window = plan.window
    batch, height, width, channels = window.shape
    top, left, bottom, _ = window.pads

    def element(b: tirx.Expr, y: tirx.Expr, at: tirx.Expr) -> tirx.Expr:
        column = tirx.floordiv(at, channels)
        inside = tirx.all(y >= top, y < height + top, column >= left, column < width + left)
        code = x(b, y - top, at - left * channels)
        return convert(tirx.if_then_else(inside, code, tirx.const(zero, x.dtype)), plan.product)

    shape = (batch, height + top + bottom, plan.padded_columns * channels)
    marks = mark(role="padded", lanes=int(np.gcd(channels, _MOVED)))
    return te.compute(shape, element, name="padded", attrs=marks)


def _read_runs(plan: IntegerConv, image: te.Tensor) -> Callable[..., tirx.Expr]:
    """Read codes by (batch, row, tile, group, column in it, tap, tap, place in the run)."""
    window, gemm = plan.window, plan.product.gemm
    channels = window.shape[3]

    def read(*at: tirx.Expr) -> tirx.Expr:
        b, row, mo, group, mi, ry, rx, k = at
        column = tile.clamped(mo, mi, gemm.height, window.output[1])
        y, z = window.at(row, column, (ry, rx))
        place = z * channels + k
        if window.groups > 1:
            place = place + group * window.inputs
        return image(b, y, place)

    if plan.product.dot.broadcast:
        return read
    tiles = -(-window.output[1] // gemm.height)
    shape = [window.shape[0], window.output[0], tiles, window.groups, gemm.height]
    shape += [*plan.taps, plan.run]
    staged: Callable[..., tirx.Expr] = te.compute(
        shape, read, name="staged", attrs=mark(role="staged")
    )
    return staged


def schedule_conv(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a dense convolution: tiles of columns, their sums in registers."""
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    kept, last = inline_around(sch, product, keep=("padded", "staged"))
    batch, row, column, channel = sch.get_loops(last)
    tiles, column_in, panels, channel_in = tile.tile_output(sch, column, channel, shape)
    if marked_int(sch, product, "bytes") <= cpu.l2 // 2:
        sch.reorder(batch, row, panels, tiles, column_in, channel_in)
        sch.parallel(sch.fuse(batch, row))
    else:
        # Filters beyond L2 are read once; the image is what is read again and again.
        sch.reorder(panels, batch, row, tiles, column_in, channel_in)
        sch.parallel(panels)
    tile.finish_output(sch, column_in, channel_in, cpu.lanes)
    sch.compute_at(product, tiles, preserve_unit_loops=True)
    roles = {marked(sch, block, "role"): block for block in kept}
    if "padded" in roles:
        _copy_lines(sch, roles["padded"])
    loaded = [roles["staged"]] if "staged" in roles else []
    tensorize_product(sch, product, loaded, reductions=3)


def _copy_lines(sch: Schedule, padded: Block) -> None:
    batch, row, place = sch.get_loops(padded)
    lanes = marked_int(sch, padded, "lanes")
    if extent(sch, place) % lanes == 0:
        vectorize_inner(sch, place, lanes, unroll=False)
    sch.parallel(sch.fuse(batch, row))


def define_depthwise(cpu: Cpu, window: Window, outputs: int, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes, filters [KH, KW, I, O], what each output starts from."""
    each = outputs // window.groups
    # Codes are loaded by eight at least: NEON widens them to two vectors of sums.
    wide = dataclasses.replace(cpu, lanes=max(cpu.lanes, 8))

    def define(x: te.Tensor, filters: te.Tensor, start: te.Tensor) -> te.Tensor:
        padded = conv.pad(window, x, tirx.const(zero, x.dtype))
        rc = te.reduce_axis((0, window.inputs), "rc")

        def term(read: Callable[..., tirx.Expr], channel: tirx.Expr, *tap: tirx.Expr) -> tirx.Expr:
            group = channel if each == 1 else tirx.floordiv(channel, each)
            source = group if window.inputs == 1 else group * window.inputs + rc
            code = tirx.Cast("int32", read(source))
            return te.sum(code * tirx.Cast("int32", filters(*tap, rc, channel)), axis=[*tap, rc])

        def finish(value: tirx.Expr, channel: tirx.Expr) -> tirx.Expr:
            return value + start(channel)

        return conv.walk(wide, window, outputs, padded, term, finish)

    return define
