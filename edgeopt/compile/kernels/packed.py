"""The schedule of products whose A is packed, around a tile that is written in assembly."""

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import levels, microkernel, tile
from edgeopt.compile.kernels.conv import UNFOLDED
from edgeopt.compile.kernels.gemm import GATHERED, inline_around
from edgeopt.compile.kernels.half_intrinsics import register_half_tile, register_half_transpose
from edgeopt.compile.kernels.scheduling import (
    Block,
    Loop,
    Schedule,
    blocks_of,
    extent,
    fuse,
    inline_all,
    marked,
    marked_int,
    stored_share,
    vectorize_inner,
)
from edgeopt.compile.kernels.tile_intrinsics import (
    register_start,
    register_tile,
    register_transpose,
)

#: Bytes of packed A that are made at a time; with it, a panel of B is read once.
_MOST_PACKED = 512 * 1024


def schedule_packed(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a product: pack rows, then compute tiles of them for each panel of columns."""
    columns, widened = place_tiles(sch, cpu, product)
    unroll = marked_int(sch, product, "unroll")
    for block in widened:
        tile.place_widened(sch, cpu, block, columns, unroll=unroll)
    call_tile(sch, product, columns)


def place_tiles(sch: Schedule, cpu: Cpu, product: Block) -> tuple[Loop, list[Block]]:
    """Tile the output of a product whose rows are packed, and place both in its loops.

    Returns the loop over panels of columns, and the blocks that widen them.
    """
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    sizes = _unfolded_sizes(sch)
    keep = ("packed", "padded", GATHERED, tile.WIDENED, levels.ROLE)
    kept, last = inline_around(sch, product, keep=keep)
    packed = next(block for block in kept if marked(sch, block, "role") == "packed")
    widened = [block for block in kept if marked(sch, block, "role") == tile.WIDENED]
    loops = sch.get_loops(last)
    axis = marked_int(sch, product, "axis")
    others = [loop for i, loop in enumerate(loops[:-1]) if i != axis and extent(sch, loop) > 1]
    rows, row_in, columns, column_in = tile.tile_output(sch, loops[axis], loops[-1], shape)
    # A panel that is widened is best used for all rows at once.
    if others and not widened and marked_int(sch, product, "bytes") <= cpu.l2 // 2:
        # The weights stay in L2, so the rows go outermost and each core packs its own.
        sch.reorder(*others, columns, rows, row_in, column_in)
        outer = fuse(sch, others)
        sch.parallel(outer)
        place: Loop | None = outer
    else:
        place, rows = _share_columns(sch, packed, [columns, *others, rows, row_in, column_in])
    # Rows stay a loop: the sums are in memory, and LLVM would interleave all of them and spill.
    vectorize_inner(sch, column_in, cpu.lanes * stored_share(sch, last))
    sch.compute_at(product, rows, preserve_unit_loops=True)
    for block in kept:
        if marked(sch, block, "role") == "padded":
            tile.place_padded(sch, cpu, block)
    gathered = [block for block in kept if marked(sch, block, "role") == GATHERED]
    _place_packed(sch, packed, place, sizes)
    transpose_packed(sch, packed, gathered)
    return columns, widened


def _share_columns(sch: Schedule, packed: Block, loops: list[Loop]) -> tuple[Loop | None, Loop]:
    """Share panels of columns among the cores.

    Returns the loop that rows are packed in, None for all at once, and the loop over tiles. Loops
    are given as columns, others, rows, and those inside a tile.
    """
    columns, *others, rows, row_in, column_in = loops
    blocks = extent(sch, rows)
    groups = 1 if others else _count_groups(sch, packed, blocks)
    if groups == 1:
        sch.reorder(columns, *others, rows, row_in, column_in)
        sch.parallel(columns)
        return None, rows
    group, rows = sch.split(rows, [None, blocks // groups])
    sch.reorder(group, columns, rows, row_in, column_in)
    sch.parallel(columns)
    return group, rows


def _place_packed(sch: Schedule, packed: Block, place: Loop | None, sizes: list[int]) -> None:
    if place is None:
        # Rows, steps of K and what lies together in one are the last loops.
        sch.parallel(fuse(sch, sch.get_loops(packed)[:-3]))
    else:
        sch.compute_at(packed, place, preserve_unit_loops=True)
    depth, row, lane = sch.get_loops(packed)[-3:]
    if marked_int(sch, packed, "item") == 1:
        # Codes are moved as they are, the next ones to the next place: a loop of few instructions.
        sch.reorder(row, depth, lane)
    if sizes:
        # Taps and channels get loops of their own, as finding them by K would cost divisions.
        sch.split(depth, [None, *sizes])


def transpose_packed(
    sch: Schedule, packed: Block, gathered: list[Block], *, flat: bool = False
) -> None:
    """Pack square pieces: rows are loaded as vectors and transposed in registers.

    Packed is [..., K, vectors, lane], flat [..., K, column].
    """
    if flat:
        sch.split(sch.get_loops(packed)[-1], [None, tile.PACKED_LANES])
    depth, vector, lane = sch.get_loops(packed)[-3:]
    side = extent(sch, lane)
    if not gathered or extent(sch, depth) % side:
        inline_all(sch, gathered)
        if marked(sch, packed, "piece") is None:
            sch.vectorize(lane)
        else:
            vectorize_inner(sch, lane, marked_int(sch, packed, "piece"))
        return
    _, step = sch.split(depth, [None, side])
    sch.reorder(vector, step, lane)
    for block in gathered:
        sch.compute_at(block, vector, preserve_unit_loops=True)
        row, column = sch.get_loops(block)[-2:]
        sch.vectorize(column)
        sch.unroll(row)
    if side == tile.PACKED_LANES:
        sch.tensorize(step, register_transpose(flat=flat))
    else:
        sch.tensorize(step, register_half_transpose())


def _unfolded_sizes(sch: Schedule) -> list[int]:
    """Read what K of an unfolded image is made of, below rows of taps: columns and channels."""
    for block in blocks_of(sch):
        if marked(sch, block, "role") == UNFOLDED:
            return [marked_int(sch, block, "across"), marked_int(sch, block, "inputs")]
    return []


def _count_groups(sch: Schedule, packed: Block, blocks: int) -> int:
    """Count the groups of equally many blocks of rows that are packed one after another."""
    size = marked_int(sch, packed, "item")
    for loop in sch.get_loops(packed):
        size *= extent(sch, loop)
    counts = (count for count in range(1, blocks + 1) if blocks % count == 0)
    return next(count for count in counts if count == blocks or size // count <= _MOST_PACKED)


def call_tile(sch: Schedule, product: Block, outer: Loop) -> None:
    """Let the assembly, which comes with a loop around all tiles, compute each."""
    row, column, _ = sch.get_loops(product)[-3:]
    height, width = extent(sch, row), extent(sch, column)
    depth = marked_int(sch, product, "depth")
    start = sch.decompose_reduction(product, row)
    sch.tensorize(sch.get_loops(start)[-2], register_start(height, width))
    halves = marked(sch, product, "numbers") == microkernel.HALF.dtype
    numbers = microkernel.HALF if halves else microkernel.SINGLE
    shape = height, width // numbers.lanes
    name = microkernel.name_tile(*shape, numbers)
    register = register_half_tile if halves else register_tile
    sch.tensorize(sch.get_loops(product)[-3], register(name, height, width, depth))
    sch.annotate(outer, "pragma_import_llvm", microkernel.write_tile(*shape, numbers))
