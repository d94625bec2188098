"""Schedules of the kernels in conv.py."""

import math
from collections.abc import Sequence

from tvm import tirx
from tvm.s_tir.schedule import LoopRV

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import microkernel, tile
from edgeopt.compile.kernels.conv_tiles import MOST_TAPS
from edgeopt.compile.kernels.gemm import inline_around
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    extent,
    marked_int,
    vectorize_inner,
)
from edgeopt.compile.kernels.tile_intrinsics import register_apart
from edgeopt.compile.kernels.window_intrinsics import register_taps

#: TVM's kind of an axis that nothing is summed over.
_SPATIAL = tirx.IterVar.DataPar
#: Rows of a strip whose padded input stays in L1 or L2, best first.
STRIPS = (8, 7, 6, 5, 4, 3, 2, 1)


def schedule_dense(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a dense convolution by tiles of columns: rows, or panels of filters, in parallel."""
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    kept, last = inline_around(sch, product, keep=("padded", tile.WIDENED))
    batch, row, column, channel = sch.get_loops(last)
    # The last tile of a width that is no multiple reads a region whose size is not constant.
    whole = extent(sch, column) % shape[0] == 0
    tiles, column_in, panels, channel_in = tile.tile_output(sch, column, channel, shape)
    rows = extent(sch, batch) * extent(sch, row)
    streamed = _is_streamed(sch, cpu, product, rows=rows, panels=extent(sch, panels))
    reads = extent(sch, tiles) * (rows if streamed else 1)
    widened, padded = tile.inline_widened(sch, cpu, kept, reads)
    if streamed:
        sch.reorder(panels, batch, row, tiles, column_in, channel_in)
        sch.parallel(panels)
    else:
        sch.reorder(batch, row, panels, tiles, column_in, channel_in)
        sch.parallel(sch.fuse(batch, row))
    for block in padded:
        tile.place_padded(sch, cpu, block)
    tile.finish_output(sch, column_in, channel_in, cpu.lanes)
    unroll = marked_int(sch, product, "unroll")
    first, depth = tile.place_product(sch, cpu, product, at=tiles, reductions=3, unroll=unroll)
    for block in widened:
        tile.place_widened(sch, cpu, block, panels, unroll=unroll)
    if cpu.vector_a and unroll > 1 and whole:
        staged = sch.cache_read(product, 0, "global")
        sch.compute_at(staged, depth, preserve_unit_loops=True)
        loops = sch.get_loops(staged)
        sch.vectorize(loops[-1])
        sch.unroll(loops[-2])
    tile.seal_product(sch, product, first)


def _is_streamed(sch: Schedule, cpu: Cpu, product: Block, *, rows: int, panels: int) -> bool:
    """Tell whether each panel of filters is read once, for all rows, and the image once a panel.

    Filters that do not stay in L2 would come from beyond it for each row.
    """
    filters, image = marked_int(sch, product, "bytes"), marked_int(sch, product, "read")
    return filters > cpu.l2 // 2 and panels >= cpu.threads and image * panels < filters * rows


def schedule_channelwise(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a depthwise convolution or a pool by strips of rows and blocks of channels."""
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    lanes = marked_int(sch, product, "lanes")
    padded, last = inline_around(sch, product, keep=("padded",))
    batch, row, column, channel = sch.get_loops(last)
    tiles, column_in, blocks, channel_in = tile.tile_output(sch, column, channel, shape)
    rows = extent(sch, row)
    inner = blocks
    if padded:
        strip = next(size for size in STRIPS if rows % size == 0)
        strips, row = sch.split(row, [None, strip])
        sch.reorder(batch, strips, blocks, row, tiles, column_in, channel_in)
        sch.parallel(sch.fuse(batch, strips))
        # LLVM unrolls a loop of two tiles, and spills; one over all tiles of a strip it keeps.
        inner = sch.fuse(row, tiles) if extent(sch, tiles) == 2 else tiles
    else:
        sch.reorder(batch, row, tiles, blocks, column_in, channel_in)
        sch.parallel(sch.fuse(batch, row))
    tile.finish_output(sch, column_in, channel_in, lanes)
    sch.compute_at(product, inner, preserve_unit_loops=True)
    for block in padded:
        sch.compute_at(block, blocks, preserve_unit_loops=True)
        vectorize_inner(sch, sch.get_loops(block)[-1], lanes)
    if _apart_from(sch, cpu, product) is not None:
        sch.annotate(inner, "pragma_import_llvm", microkernel.write_apart())
    _reduce_window(sch, cpu, product, lanes)


def _apart_from(sch: Schedule, cpu: Cpu, product: Block) -> float | None:
    """Return what the sums of a tile start from where LLVM is to keep tiles apart.

    For cores that issue in program order it unrolls the loop over tiles, and spills: the tile is
    long enough by itself. None where it may.
    """
    start = sch.get(product).init.value
    if cpu.machine != "aarch64" or not cpu.in_order or start.ty.dtype != "float32":
        return None
    return float(start.value)


def _reduce_window(sch: Schedule, cpu: Cpu, product: Block, lanes: int) -> None:
    """Unroll the window's taps around vectors of channels that stay in registers."""
    rank = len([axis for axis in sch.get(product).iter_vars if int(axis.iter_type) != _SPATIAL])
    column, channel, *taps = sch.get_loops(product)[-2 - rank :]
    while extent(sch, channel) % lanes:
        lanes //= 2
    # One vector wide, as NEON's tiles are, it is no loop of its own that could be split.
    value, single = _apart_from(sch, cpu, product), extent(sch, channel) == lanes
    apart = value is not None and single
    turning = single and _has_turns(sch, cpu, product, taps)
    vectors, vector = (None, channel) if apart or turning else sch.split(channel, [None, lanes])
    unrolled = [column] if vectors is None else [column, vectors]
    height = extent(sch, column)
    sch.reorder(*taps, *unrolled, vector)
    for loop in (*(taps[1:] if turning else taps), *unrolled):
        _unroll(sch, loop)
    sch.vectorize(vector)
    start = sch.decompose_reduction(product, taps[0])
    if apart:
        sch.tensorize(sch.get_loops(start)[-2], register_apart(height, lanes, value))
    if turning:
        # The block reads its sums, the image and the filters.
        staged = sch.cache_read(product, 2, "global")
        sch.compute_at(staged, taps[0])
        sch.annotate(taps[0], "pragma_import_llvm", microkernel.write_turn())
        dtype = sch.get(staged).reads[0].source.dtype
        sch.tensorize(sch.get_loops(staged)[-2], register_taps(extent(sch, taps[1]), lanes, dtype))


def _has_turns(sch: Schedule, cpu: Cpu, product: Block, taps: Sequence[LoopRV]) -> bool:
    """Tell whether a window is walked line by line, with the weights of one in registers.

    What taps multiply by is the same for all tiles: of many, LLVM loads all before the first tile,
    and spills.
    """
    reads = sch.get(product).reads
    depthwise = len(reads) == 2 and len(taps) == 3 and extent(sch, taps[2]) == 1
    many = math.prod(extent(sch, loop) for loop in taps) > MOST_TAPS
    return (
        cpu.machine == "aarch64"
        and depthwise
        and many
        # Others are decoded, which goes beyond a load.
        and {each.source.dtype for each in reads} in ({"float32"}, {"int16"})
    )


def _unroll(sch: Schedule, loop: LoopRV) -> None:
    """Unroll unless the loop is a whole image, as in a global pool."""
    if extent(sch, loop) <= 16:
        sch.unroll(loop)
