"""Dense convolutions of codes by tile registers (AMX), whose rows are loaded from the image itself.

What a window reads of one line lies together (code_runs.py), and neighbouring windows are equally
far apart: a tile register takes up to 16 of them as they are, where packing rows would copy each
code once for every row of taps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import tile
from edgeopt.compile.kernels.amx_image import ImageTile, write_image_tile
from edgeopt.compile.kernels.amx_tile import GROUP, STEP
from edgeopt.compile.kernels.code_runs import Runs, pad_filters, pad_lines
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.kernels.gemm import inline_around
from edgeopt.compile.kernels.image_intrinsics import register_image_start, register_image_tile
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    extent,
    mark,
    marked,
    marked_int,
    stored_share,
    vectorize_inner,
)

KIND = "amx_conv"
#: Registers of rows that one call walks at most: their sums stay in L1.
_MOST_REGISTERS = 8
#: Bytes of a panel of filters that stay in L1 beside the image.
_MOST_PANEL = 36 * 1024


@dataclass(frozen=True, slots=True)
class ImageConv:
    """A dense convolution of codes: the runs that it reads, and the tile that reads them."""

    runs: Runs
    tile: ImageTile
    outputs: int

    @property
    def moved(self) -> int:
        """What the conversion of codes adds to each: there is none."""
        return 0


def plan_conv(cpu: Cpu, window: Window, filters: np.ndarray, codes: str) -> ImageConv | None:
    """Choose the tile for int8 filters [KH, KW, I, O].

    None without tile registers, and where lines do not fill registers alike, runs no steps, or
    a window has one row only.
    """
    runs = Runs(window, STEP)
    lines, columns = window.output
    registers = -(-columns // ImageTile.most_rows)
    several = [count for count in range(2, lines + 1) if lines % count == 0]
    fitting = [count for count in several if count * registers <= _MOST_REGISTERS]
    whole = columns % registers == 0 and 2 * columns > registers * ImageTile.most_rows
    if not (cpu.amx and runs.joined and whole and fitting and runs.taps[0] > 1):
        return None
    if runs.codes < STEP:
        return None
    wide = 2 * ImageTile.most_rows
    narrow = runs.depth * wide > _MOST_PANEL or filters.shape[3] <= ImageTile.most_rows
    line = (runs.columns if runs.copied else window.shape[2]) * window.shape[3]
    made = ImageTile(
        dtype=codes,
        lines=fitting[-1],
        columns=columns,
        rows=columns // registers,
        width=ImageTile.most_rows if narrow else wide,
        taps=runs.taps[0],
        steps=runs.length // STEP,
        apart=(window.strides[0], window.dilation[0]),
        line=line,
        pixel=window.strides[1] * window.shape[3],
    )
    return ImageConv(runs, made, filters.shape[3])


def pack_filters(filters: np.ndarray, plan: ImageConv) -> np.ndarray:
    """Lay out int8 [KH, KW, I, O] as [O / width, KH, run / 4, width, 4], zeros beyond O."""
    matrix = pad_filters(filters, plan.runs)
    width = plan.tile.width
    panels = -(-plan.outputs // width)
    padded = np.zeros((len(matrix), panels * width), np.int8)
    padded[:, : plan.outputs] = matrix
    split = padded.reshape(plan.tile.taps, -1, GROUP, panels, width)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 4, 2))


def define_conv(plan: ImageConv, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes [N, H, W * C], packed filters, what each output starts from."""
    runs, chosen = plan.runs, plan.tile
    window = runs.window
    rows, columns = window.output
    height, width, length = chosen.lines, chosen.width, runs.length
    panels = -(-plan.outputs // width)
    down, apart = chosen.apart
    marks = mark(
        kind=KIND,
        pattern="epilogue",
        bytes=runs.depth * plan.outputs,
        codes=chosen.dtype,
        lines=height,
        rows=chosen.rows,
        down=down,
        apart=apart,
        line=chosen.line,
        pixel=chosen.pixel,
    )

    def define(x: te.Tensor, filters: te.Tensor, start: te.Tensor) -> te.Tensor:
        image = pad_lines(runs, x, zero, lambda code: code) if runs.copied else x
        ry = te.reduce_axis((0, chosen.taps), "ry")
        k = te.reduce_axis((0, length), "k")

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            b, ro, no, ri, mi, ni = at
            left = image(b, (ro * height + ri) * down + ry * apart, mi * chosen.pixel + k)
            right = filters(no, ry, tirx.floordiv(k, GROUP), ni, tirx.floormod(k, GROUP))
            return te.sum(tirx.Cast("int32", left) * tirx.Cast("int32", right), axis=[ry, k])

        shape = (window.shape[0], rows // height, panels, height, columns, width)
        product = te.compute(shape, multiply, name="product", attrs=marks)

        def result(b: tirx.Expr, row: tirx.Expr, column: tirx.Expr, c: tirx.Expr) -> tirx.Expr:
            place = tirx.floordiv(row, height), tirx.floordiv(c, width)
            within = tirx.floormod(row, height), column, tirx.floormod(c, width)
            return product(b, *place, *within) + start(c)

        stored = (window.shape[0], rows, columns, plan.outputs)
        return te.compute(stored, result, name="integer_conv")

    return define


def schedule_conv(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a convolution: some lines of the image by one panel of filters at a time."""
    chosen = _tile_of(sch, product)
    kept, last = inline_around(sch, product, keep=("padded",))
    batch, row, column, channel = sch.get_loops(last)
    lines, line_in = sch.split(row, [None, chosen.lines])
    panels, channel_in = sch.split(channel, [None, chosen.width])
    few = extent(sch, batch) * extent(sch, lines) < 2 * cpu.threads
    if few or marked_int(sch, product, "bytes") > cpu.l2 // 2:
        sch.reorder(panels, batch, lines, line_in, column, channel_in)
        sch.parallel(panels)
        inner = lines
    else:
        sch.reorder(batch, lines, panels, line_in, column, channel_in)
        sch.parallel(sch.fuse(batch, lines))
        inner = panels
    vectorize_inner(sch, channel_in, cpu.lanes * stored_share(sch, last))
    sch.compute_at(product, inner, preserve_unit_loops=True)
    for block in kept:
        tile.place_padded(sch, cpu, block)
    start = sch.decompose_reduction(product, sch.get_loops(product)[-5])
    shape = (chosen.lines, chosen.columns, chosen.width)
    sch.tensorize(sch.get_loops(start)[-3], register_image_start(*shape))
    sch.tensorize(sch.get_loops(product)[-5], register_image_tile(chosen))
    sch.annotate(inner, "pragma_import_llvm", write_image_tile(chosen))


def _tile_of(sch: Schedule, product: Block) -> ImageTile:
    """Read the tile from the marks and loops of the product."""
    columns, width, taps, length = (extent(sch, loop) for loop in sch.get_loops(product)[-4:])
    codes = marked(sch, product, "codes")
    assert codes is not None
    numbers = ("lines", "rows", "down", "apart", "line", "pixel")
    lines, rows, down, apart, line, pixel = (marked_int(sch, product, each) for each in numbers)
    return ImageTile(
        dtype=codes,
        lines=lines,
        columns=columns,
        rows=rows,
        width=width,
        taps=taps,
        steps=length // STEP,
        apart=(down, apart),
        line=line,
        pixel=pixel,
    )
