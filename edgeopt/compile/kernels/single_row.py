"""The schedule of one row times a matrix, around a loop that is written in assembly.

Each panel of columns is read once, as one stream, four registers at a time. LLVM's own loop loads
one or two registers at a time, by pointers that it keeps moving.
"""

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import row_tile
from edgeopt.compile.kernels.gemm import schedule_tiles
from edgeopt.compile.kernels.microkernel import SINGLE
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    extent,
    marked_int,
    vectorize_inner,
)
from edgeopt.compile.kernels.tile_intrinsics import register_row


def schedule_row(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a product of one row: its values in one piece, then a panel of columns at a time."""
    tiles = schedule_tiles(sch, cpu, product)
    sch.compute_at(product, tiles.inner, preserve_unit_loops=True)
    for block in tiles.staged:
        vectorize_inner(sch, sch.get_loops(block)[-1], cpu.lanes, unroll=False)
    column = sch.get_loops(product)[-2]
    width, depth = extent(sch, column), marked_int(sch, product, "depth")
    start = sch.decompose_reduction(product, column)
    vectorize_inner(sch, sch.get_loops(start)[-1], cpu.lanes)
    sums = width // SINGLE.lanes
    name = row_tile.name_row(sums, paired=cpu.in_order)
    sch.tensorize(column, register_row(name, width, depth))
    assembly = row_tile.write_row(sums, paired=cpu.in_order)
    sch.annotate(tiles.columns, "pragma_import_llvm", assembly)
