"""The register tile that matrix kernels share: its choice, and the schedule of its inner loops."""

from collections.abc import Callable, Sequence

from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import levels
from edgeopt.compile.kernels.microkernel import (
    SINGLE,
    Numbers,
    count_instructions,
    fits_registers,
)
from edgeopt.compile.kernels.row_tile import FEWEST_CHAINS, row_runs_ahead
from edgeopt.compile.kernels.scheduling import (
    Block,
    Loop,
    Schedule,
    extent,
    inline_all,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)
from edgeopt.tiles import Tile, TileKey

#: The role of a block that widens the panels of a weight.
WIDENED = "widened"

#: Rows beyond this cost code size and win nothing on any CPU described.
_MOST_ROWS = 14
#: Vectors of B across a tile.
_MOST_VECTORS = 4
#: Columns of one row times a matrix: long panels keep many loads in flight.
_VECTOR_COLUMNS = 8

#: float32 lanes of the vectors that a packed A is read by.
PACKED_LANES = 4


def round_up(value: int, step: int) -> int:
    """Round up to a multiple."""
    return -(-value // step) * step


def choose_tile(cpu: Cpu, rows: int, columns: int) -> Tile:
    """Choose the rows and columns of a register tile."""
    return rank_tiles(cpu, rows, columns)[0]


def rank_tiles(cpu: Cpu, rows: int, columns: int) -> list[Tile]:
    """List the register tiles that there are, the best first.

    Accumulators, one row of B and one column of A must fit the register file; among those that
    do, little waste at the edges, enough independent chains and few loads per multiply win.
    """
    if rows == 1:
        return _rank_rows(cpu, columns)
    shapes = [
        (height, vectors)
        for height in range(1, min(_MOST_ROWS, rows) + 1)
        for vectors in range(1, _MOST_VECTORS + 1)
        if _fits(cpu, height, vectors) and vectors * cpu.lanes <= round_up(columns, cpu.lanes)
    ]
    # The first of equals comes first, as a larger tile is not better by itself.
    shapes.sort(key=lambda shape: -_tile_merit(cpu, rows, columns, shape))
    return [(height, vectors * cpu.lanes) for height, vectors in shapes]


def _rank_rows(cpu: Cpu, columns: int) -> list[Tile]:
    """List tiles of one row, the longest first, then those that waste the least beyond N."""
    widest = min(_VECTOR_COLUMNS * cpu.lanes, round_up(columns, cpu.lanes))
    shorter = range(widest - cpu.lanes, 0, -cpu.lanes)
    ranked = sorted(shorter, key=lambda width: (round_up(columns, width), -width))
    return [(1, width) for width in (widest, *ranked)]


def rank_row_tiles(columns: int) -> list[Tile]:
    """List the tiles of one row in assembly: the least waste beyond N first, then the widest.

    Narrow ones, whose multiplications wait for each other, come last.
    """
    lanes = SINGLE.lanes
    most = round_up(columns, lanes) // lanes
    counts = [sums for sums in range(1, most + 1) if row_runs_ahead(sums)]

    def cost(sums: int) -> tuple[bool, int, int]:
        return sums < min(FEWEST_CHAINS, most), round_up(columns, sums * lanes), -sums

    return [(1, sums * lanes) for sums in sorted(counts, key=cost)]


def choose_tuned(cpu: Cpu, key: TileKey, ranked: Sequence[Tile]) -> Tile:
    """Choose the tile that was measured to be best, where it is one of those that there are."""
    measured = cpu.tiles.get(key)
    return measured if measured is not None and measured in ranked else ranked[0]


def rank_packed_tiles(rows: int, columns: int, numbers: Numbers = SINGLE) -> list[Tile]:
    """List the tiles of a product whose A is packed: fewest instructions first, edges included.

    Tiles have at least the rows of one vector.
    """

    def work(shape: tuple[int, int]) -> tuple[int, bool]:
        height, vectors = shape
        tiles = -(-rows // height) * -(-columns // (vectors * numbers.lanes))
        return tiles * count_instructions(height, vectors, numbers), height % numbers.lanes != 0

    shapes = [
        (height, vectors)
        for height in range(numbers.lanes, _MOST_ROWS + 1)
        for vectors in range(1, _MOST_VECTORS + 1)
        if fits_registers(height, vectors, numbers)
    ]
    return [(height, vectors * numbers.lanes) for height, vectors in sorted(shapes, key=work)]


def _fits(cpu: Cpu, height: int, vectors: int) -> bool:
    needed = height * vectors + vectors + (height if cpu.vector_a else 1)
    # LLVM spills when NEON's file is filled to the last register, and one earlier where it
    # schedules for a core in program order; AVX2's can be filled.
    return needed <= cpu.registers - (int(cpu.vector_a) + int(cpu.in_order))


def _tile_merit(cpu: Cpu, rows: int, columns: int, tile: tuple[int, int]) -> float:
    height, vectors = tile
    width = vectors * cpu.lanes
    used = rows / round_up(rows, height) * columns / round_up(columns, width)
    accumulators = height * vectors
    per_load = accumulators / (height * cpu.a_cost + vectors)
    hidden = min(1.0, accumulators / cpu.chains)
    return used * hidden * min(1.0, per_load / cpu.intensity) + 0.001 * per_load


def clamped(outer: tirx.Expr, inner: tirx.Expr, tile: int, size: int) -> tirx.Expr:
    """Index within a tiled axis; the last tile repeats the last index instead of going beyond.

    Only the store is then predicated, and the inner loop stays free of branches.
    """
    index = outer * tile + inner
    return index if size % tile == 0 else tirx.min(index, size - 1)


def untile(
    panel: Callable[..., tirx.Expr],
    lead: Sequence[tirx.Expr],
    place: Sequence[tirx.Expr],
    tile: tuple[int, int],
) -> tirx.Expr:
    """Read element (row, column) of a product that was computed as [..., MO, NO, MI, NI]."""
    row, column = place
    height, width = tile
    return panel(
        *lead,
        tirx.floordiv(row, height),
        tirx.floordiv(column, width),
        tirx.floormod(row, height),
        tirx.floormod(column, width),
    )


def widen_panels(weight: te.Tensor) -> te.Tensor:
    """Read panels [panel, ..., column] of a stored weight as float32."""
    if weight.dtype == "float32":
        return weight
    return te.compute(
        weight.shape,
        lambda *at: tirx.Cast("float32", weight(*at)),
        name="widened",
        attrs=mark(role=WIDENED),
    )


def unroll_of(depth: int) -> int:
    """Choose how many steps of K are unrolled: a divisor, so that the loop has no tail."""
    return next(step for step in (4, 2, 1) if depth % step == 0)


def tile_output(
    sch: Schedule, row: Loop, column: Loop, tile: tuple[int, int]
) -> tuple[Loop, Loop, Loop, Loop]:
    """Split the output's last two loops into tiles: outer rows, rows, outer columns, columns."""
    rows, row_in = sch.split(row, [None, tile[0]])
    columns, column_in = sch.split(column, [None, tile[1]])
    return rows, row_in, columns, column_in


def finish_output(sch: Schedule, row_in: Loop, column_in: Loop, lanes: int) -> None:
    """Vectorize and unroll the store of one tile."""
    vectorize_inner(sch, column_in, lanes)
    sch.unroll(row_in)


def place_product(
    sch: Schedule, cpu: Cpu, product: Block, *, at: Loop, reductions: int, unroll: int
) -> tuple[Loop, Loop]:
    """Compute a tile of the product in registers inside one loop.

    Returns the outermost loop of the sum, and that of its last axis.

    All reduction axes but the last stay outside; the last is unrolled by the given step.
    """
    sch.compute_at(product, at, preserve_unit_loops=True)
    loops = sch.get_loops(product)
    reduced = loops[-reductions:]
    row, column = loops[-reductions - 2], loops[-reductions - 1]
    lanes = cpu.lanes
    while extent(sch, column) % lanes:
        lanes //= 2
    vectors, vector = sch.split(column, [None, lanes])
    depth, step = sch.split(reduced[-1], [None, unroll])
    sch.reorder(*reduced[:-1], depth, step, row, vectors, vector)
    for loop in (step, row, vectors):
        sch.unroll(loop)
    sch.vectorize(vector)
    return (reduced[0] if reductions > 1 else depth), depth


def seal_product(sch: Schedule, product: Block, outermost: Loop) -> None:
    """Start the accumulators before the loop, which LLVM then keeps in registers.

    They stay in scope "global": TVM puts a small buffer of that scope on the stack, and asks its
    runtime for one of any other, which LLVM cannot make registers of.
    """
    sch.decompose_reduction(product, outermost)


def stage_rows(sch: Schedule, staged: Block, at: Loop) -> None:
    """Load the tile's piece of A as vectors along K, so that NEON multiplies by element."""
    sch.compute_at(staged, at, preserve_unit_loops=True)
    loops = sch.get_loops(staged)
    sch.vectorize(loops[-1])
    sch.unroll(loops[-2])


def inline_widened(
    sch: Schedule, cpu: Cpu, kept: Sequence[Block], blocks: int
) -> tuple[list[Block], list[Block]]:
    """Widen as they are read the panels that are not worth a buffer; return those that are.

    Returns them and the other kept blocks. Worth it is what several blocks of rows read, if it
    stays in L2 meanwhile.
    """
    widened = [block for block in kept if marked(sch, block, "role") == WIDENED]
    others = [block for block in kept if marked(sch, block, "role") not in (WIDENED, levels.ROLE)]
    if any(levels.found_by(sch, block) for block in widened):
        return widened, others
    if blocks > 1 and all(_panel_bytes(sch, block) <= cpu.l2 for block in widened):
        return widened, others
    inline_all(sch, widened)
    return [], others


def _panel_bytes(sch: Schedule, widened: Block) -> int:
    size = 4
    for loop in sch.get_loops(widened)[1:]:
        size *= extent(sch, loop)
    return size


def place_widened(sch: Schedule, cpu: Cpu, widened: Block, at: Loop, *, unroll: int) -> None:
    """Widen a panel before the rows that read it, each of its rows of columns as one vector."""
    found = levels.found_by(sch, widened)
    sch.compute_at(widened, at, preserve_unit_loops=True)
    depth, column = sch.get_loops(widened)[-2:]
    if found is not None:
        word, place = sch.split(depth, [None, levels.PER_WORD])
        vectors, vector = sch.split(column, [None, cpu.lanes])
        sch.reorder(word, vectors, place, vector)
        for loop in (vectors, place):
            sch.unroll(loop)
        sch.vectorize(vector)
        levels.place_found(sch, cpu, found, at=vectors, outside=word)
        return
    sch.unroll(sch.split(depth, [None, unroll])[1])
    sch.vectorize(column)


def place_padded(sch: Schedule, cpu: Cpu, padded: Block) -> None:
    """Surround a whole image by zeros, or the like, before what reads it, rows in parallel.

    The block may name how many values lie within one pixel, and are moved together.
    """
    loops = sch.get_loops(padded)
    if marked(sch, padded, "lanes") is None:
        vectorize_inner(sch, loops[-1], cpu.lanes)
    else:
        vectorize_inner(sch, loops[-1], marked_int(sch, padded, "lanes"), unroll=False)
    sch.parallel(sch.fuse(loops[0], loops[1]))
