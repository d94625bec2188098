"""Convolutions of codes, channels last, summed in int32: exact, padded by the zero point's code.

A dense convolution is the product of integer.py: one run of codes after the other is multiplied
from where it is. Where a CPU has a tile for products of codes, it is that of code_conv.py.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import amx_conv, code_conv, conv, tile
from edgeopt.compile.kernels.amx_conv import ImageConv
from edgeopt.compile.kernels.code_conv import CodeConv
from edgeopt.compile.kernels.code_products import is_extreme
from edgeopt.compile.kernels.code_runs import Runs, pad_filters, pad_lines
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.kernels.gemm import Gemm, inline_around
from edgeopt.compile.kernels.integer import (
    Dot,
    IntegerGemm,
    choose_dot,
    convert,
    pack_codes,
    rank_tiles,
    read_packed,
    tensorize_product,
)
from edgeopt.compile.kernels.intrinsics import register_intrinsics
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    mark,
    marked,
    marked_int,
)
from edgeopt.tiles import TileKey

KIND = "integer_conv"


@dataclass(frozen=True, slots=True)
class IntegerConv:
    """A dense convolution of codes: the runs that it reads, and the product of each tile of it."""

    runs: Runs
    product: IntegerGemm

    @property
    def moved(self) -> int:
        """What the conversion of codes adds to each, and the zero point must gain."""
        return self.product.moved

    @property
    def copied(self) -> bool:
        """Whether the image is copied: padded, lengthened, or of another type of codes."""
        return self.runs.copied or self.product.dot.code != self.product.codes


def plan_conv(
    cpu: Cpu, window: Window, filters: np.ndarray, codes: str
) -> IntegerConv | CodeConv | ImageConv | None:
    """Choose the instruction and the tile for int8 filters [KH, KW, I, O].

    None for groups whose outputs no vector divides.
    """
    direct = amx_conv.plan_conv(cpu, window, filters, codes)
    if direct is not None:
        return direct
    packed = code_conv.plan_conv(cpu, window, filters, codes)
    if packed is not None or cpu.machine == "aarch64":
        return packed
    outputs = filters.shape[3]
    dot = choose_dot(cpu, extreme=is_extreme(filters))
    each = outputs // window.groups
    if each % cpu.lanes and window.groups > 1:
        return None
    key = TileKey(KIND, window.output[1], each, window.depth, codes)
    ranked = rank_tiles(cpu, key)
    # Groups take the default: its width is cut to what divides them.
    height, width = tile.choose_tuned(cpu, key, ranked) if window.groups == 1 else ranked[0]
    while window.groups > 1 and each % width:
        width -= cpu.lanes
    dot = _with_calls(dot, -(-Runs(window, 1).codes // dot.depth))
    runs = Runs(window, dot.depth * dot.calls)
    gemm = Gemm((*window.output, runs.depth), outputs, height, width)
    return IntegerConv(runs, IntegerGemm(gemm, dot, codes))


def _with_calls(dot: Dot, calls: int) -> Dot:
    """Load as many codes at a time as a run has, so that little of the last load is wasted."""
    if dot.broadcast:
        return dataclasses.replace(dot, calls=dot.calls if calls % dot.calls == 0 else 1)
    return dataclasses.replace(dot, calls=min(dot.calls, 1 << (calls - 1).bit_length()))


def pack_filters(filters: np.ndarray, plan: IntegerConv | CodeConv | ImageConv) -> np.ndarray:
    """Lay out int8 [KH, KW, I, O] in the order in which the instruction reads them."""
    if isinstance(plan, ImageConv):
        return amx_conv.pack_filters(filters, plan)
    if isinstance(plan, CodeConv):
        return code_conv.pack_filters(filters, plan)
    return pack_codes(pad_filters(filters, plan.runs), plan.product)


def define_conv(plan: IntegerConv | CodeConv | ImageConv, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes [N, H, W * C], packed filters, what each output starts from.

    The sums are those of the codes as they are multiplied, which plan.moved tells.
    """
    if isinstance(plan, ImageConv):
        return amx_conv.define_conv(plan, zero)
    if isinstance(plan, CodeConv):
        return code_conv.define_conv(plan, zero)
    register_intrinsics()
    runs, gemm, dot = plan.runs, plan.product.gemm, plan.product.dot
    window = runs.window
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

    def converted(code: tirx.Expr) -> tirx.Expr:
        return convert(code, plan.product)

    def define(x: te.Tensor, weight: te.Tensor, start: te.Tensor) -> te.Tensor:
        image = pad_lines(runs, x, zero, converted) if plan.copied else x
        packed = read_packed(plan.product, weight)
        ry, rx = (te.reduce_axis((0, size), "tap") for size in runs.taps)
        k = te.reduce_axis((0, runs.length), "k")
        codes = _read_runs(plan, image)

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            b, row, mo, no, mi, ni = at
            group = tirx.floordiv(no, panels) if groups > 1 else tirx.const(0, "int32")
            left = tirx.Cast("int32", codes(b, row, mo, group, mi, ry, rx, k))
            within = (ry * runs.taps[1] + rx) * runs.length + k
            return te.sum(left * tirx.Cast("int32", packed(no, within, ni)), axis=[ry, rx, k])

        shape = (window.shape[0], window.output[0], *tiles, gemm.height, gemm.width)
        product = te.compute(shape, multiply, name="product", attrs=marks)

        def result(b: tirx.Expr, row: tirx.Expr, z: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            return tile.untile(product, (b, row), (z, c), (gemm.height, gemm.width)) + start(c)

        final = (window.shape[0], *window.output, gemm.columns)
        return te.compute(final, result, name="integer_conv")

    return define


def _read_runs(plan: IntegerConv, image: te.Tensor) -> Callable[..., tirx.Expr]:
    """Read codes by (batch, row, tile, group, column in it, tap, tap, place in the run)."""
    runs, gemm = plan.runs, plan.product.gemm
    window = runs.window

    def read(*at: tirx.Expr) -> tirx.Expr:
        b, row, mo, group, mi, ry, rx, k = at
        column = tile.clamped(mo, mi, gemm.height, window.output[1])
        y, place = runs.place((row, column), (ry, rx), group)
        return image(b, y, place + k)

    if plan.product.dot.broadcast:
        return read
    tiles = -(-window.output[1] // gemm.height)
    shape = [window.shape[0], window.output[0], tiles, window.groups, gemm.height]
    shape += [*runs.taps, runs.length]
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
        tile.place_padded(sch, cpu, roles["padded"])
    loaded = [roles["staged"]] if "staged" in roles else []
    tensorize_product(sch, product, loaded, reductions=3)


def define_depthwise(cpu: Cpu, window: Window, outputs: int, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes, int16 filters [KH, KW, I, O], what each output starts from.

    Codes become int16 as the image is surrounded by the zero point's, not for every tap again.
    """
    each = outputs // window.groups
    # Codes are loaded by eight at least: NEON multiplies them into two vectors of sums.
    wide = dataclasses.replace(cpu, lanes=max(cpu.lanes, 8))

    def define(x: te.Tensor, filters: te.Tensor, start: te.Tensor) -> te.Tensor:
        widened = te.compute(x.shape, lambda *at: tirx.Cast("int16", x(*at)), name="widened")
        padded = conv.pad(window, widened, tirx.const(zero, "int16"))
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
