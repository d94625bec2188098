"""Activations times activations, batched: both operands are read through reshapes and transposes.

B is packed on the fly, one panel of columns at a time, into memory that stays in L1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import packed, tile
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.gemm import FEWEST_PACKED, GATHERED, inline_around, pack_vectors
from edgeopt.compile.kernels.scheduling import (
    Block,
    Loop,
    Schedule,
    fuse,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)

KIND = "attention"
#: Products around the tile that is written in assembly.
PACKED = "packed_attention"
#: The role of a block that loads columns of B as vectors along K.
_ALONG = "gathered_right"

#: Reads element [*batch, row, k] or [*batch, k, column] of an operand.
Reader = Callable[[te.Tensor, Sequence[tirx.Expr]], tirx.Expr]


@dataclass(frozen=True, slots=True)
class Batched:
    """A product [*batch, rows, depth] x [*batch, depth, columns], times one number."""

    batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    scale: float
    #: Axis i of the stored result is axis axes[i] of [*batch, rows, columns].
    axes: tuple[int, ...]
    read_left: Reader
    read_right: Reader
    #: Both operands are views of one tensor, which is then one argument.
    shared: bool = False
    #: What follows k in memory, not what follows a column, is next to an element of B.
    along_depth: bool = False


def define_attention(cpu: Cpu, plan: Batched) -> Callable[..., te.Tensor]:
    """Make the TE definition of a batched product."""
    by_assembly = _is_packed(cpu, plan)
    sizes_of_tiles = (
        tile.rank_packed_tiles(plan.rows, plan.columns)
        if by_assembly
        else tile.rank_tiles(cpu, plan.rows, plan.columns)
    )
    height, width = shape = sizes_of_tiles[0]
    rank = len(plan.batch)
    tiles = (-(-plan.rows // height), -(-plan.columns // width))
    sizes = (*plan.batch, plan.rows, plan.columns)
    marks = mark(
        kind=PACKED if by_assembly else KIND,
        pattern="epilogue",
        rows=height,
        columns=width,
        depth=plan.depth,
        unroll=tile.unroll_of(plan.depth),
        row_axis=plan.axes.index(rank),
        column_axis=plan.axes.index(rank + 1),
    )

    def define(left: te.Tensor, *others: te.Tensor) -> te.Tensor:
        right = left if plan.shared else others[0]
        panel = _pack_right(plan, right, width, gathered=by_assembly and plan.along_depth)
        if by_assembly:
            rows = _pack_left(plan, left, height)
        else:
            rows = _read_left(plan, left, height, staged=cpu.vector_a)
        k = te.reduce_axis((0, plan.depth), "k")

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            *batch, mo, no, mi, ni = at
            return te.sum(rows(*batch, mo, mi, k) * panel(*batch, no, k, ni), axis=k)

        product = te.compute([*plan.batch, *tiles, *shape], multiply, name="product", attrs=marks)

        def result(*stored: tirx.Expr) -> tirx.Expr:
            at: list[tirx.Expr] = [tirx.const(0, "int32")] * len(sizes)
            for value, axis in zip(stored, plan.axes, strict=True):
                at[axis] = value
            value = tile.untile(product, at[:rank], (at[rank], at[rank + 1]), shape)
            return value if plan.scale == 1.0 else value * number(plan.scale)

        return te.compute([sizes[axis] for axis in plan.axes], result, name="attention")

    return define


def _is_packed(cpu: Cpu, plan: Batched) -> bool:
    return cpu.machine == "aarch64" and plan.rows >= FEWEST_PACKED


def _pack_right(plan: Batched, right: te.Tensor, width: int, *, gathered: bool) -> te.Tensor:
    """Define the panels of B: [*batch, panels, depth, width]."""

    def read(*at: tirx.Expr) -> tirx.Expr:
        *batch, no, ni, k = at
        return plan.read_right(right, [*batch, k, tile.clamped(no, ni, width, plan.columns)])

    outer = [*plan.batch, -(-plan.columns // width)]
    marks = mark(role=_ALONG)
    columns = te.compute([*outer, width, plan.depth], read, name="columns", attrs=marks)

    def element(*at: tirx.Expr) -> tirx.Expr:
        *place, k, ni = at
        return columns(*place, ni, k) if gathered else read(*place, ni, k)

    shape = [*outer, plan.depth, width]
    return te.compute(shape, element, name="panel", attrs=mark(role="panel"))


def _pack_left(plan: Batched, left: te.Tensor, height: int) -> Callable[..., tirx.Expr]:
    """Read A by tiles of rows, packed so that the values of one k lie together."""
    lanes = tile.PACKED_LANES

    def element(*at: tirx.Expr) -> tirx.Expr:
        *batch, mo, k, vector, lane = at
        row = mo * height + vector * lanes + lane
        whole = plan.rows % height == 0 and height % lanes == 0
        row = row if whole else tirx.min(row, plan.rows - 1)
        return plan.read_left(left, [*batch, row, k])

    outer = [*plan.batch, -(-plan.rows // height)]
    rows = pack_vectors(element, outer, plan.depth, height)

    def read(*at: tirx.Expr) -> tirx.Expr:
        *tiles, mi, k = at
        return rows(*tiles, k, tirx.floordiv(mi, lanes), tirx.floormod(mi, lanes))

    return read


def _read_left(
    plan: Batched, left: te.Tensor, height: int, *, staged: bool
) -> Callable[..., tirx.Expr]:
    """Read A by tiles of rows; staged, through a small buffer that is loaded as vectors."""

    def element(*at: tirx.Expr) -> tirx.Expr:
        *batch, mo, mi, k = at
        return plan.read_left(left, [*batch, tile.clamped(mo, mi, height, plan.rows), k])

    if not staged:
        return element
    shape = [*plan.batch, -(-plan.rows // height), height, plan.depth]
    buffer: Callable[..., tirx.Expr] = te.compute(
        shape, element, name="staged", attrs=mark(role="staged")
    )
    return buffer


def schedule_attention(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a batched product: heads in parallel, panels of B packed once per head."""
    kept, batch, tiles = _tile_heads(sch, product, keep=("staged", "panel"))
    rows, row_in, columns, column_in = tiles
    sch.reorder(*batch, columns, rows, row_in, column_in)
    if batch:
        sch.parallel(fuse(sch, batch))
    tile.finish_output(sch, row_in, column_in, cpu.lanes)
    unroll = marked_int(sch, product, "unroll")
    _, depth = tile.place_product(sch, cpu, product, at=rows, reductions=1, unroll=unroll)
    panel = next(block for block in kept if marked(sch, block, "role") == "panel")
    staged = [block for block in kept if marked(sch, block, "role") == "staged"]
    sch.compute_at(panel, columns, preserve_unit_loops=True)
    vectorize_inner(sch, sch.get_loops(panel)[-1], cpu.lanes)
    for block in staged:
        tile.stage_rows(sch, block, depth)
    tile.seal_product(sch, product, depth)


def schedule_packed(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a batched product around the assembly: heads in parallel, each packs its own."""
    kept, batch, tiles = _tile_heads(sch, product, keep=("packed", GATHERED, "panel", _ALONG))
    roles = {marked(sch, block, "role"): block for block in kept}
    rows, row_in, columns, column_in = tiles
    sch.reorder(*batch, rows, columns, row_in, column_in)
    outer = fuse(sch, batch)
    sch.parallel(outer)
    # Rows of the tile stay a loop, as those of other products whose sums are in memory do.
    vectorize_inner(sch, column_in, cpu.lanes)
    sch.compute_at(product, columns, preserve_unit_loops=True)
    sch.compute_at(roles["panel"], outer, preserve_unit_loops=True)
    sch.compute_at(roles["packed"], rows, preserve_unit_loops=True)
    for name, source in (("panel", _ALONG), ("packed", GATHERED)):
        gathered = [roles[source]] if source in roles else []
        packed.transpose_packed(sch, roles[name], gathered, flat=name == "panel")
    packed.call_tile(sch, product, outer)


def _tile_heads(
    sch: Schedule, product: Block, *, keep: tuple[str, ...]
) -> tuple[list[Block], list[Loop], tuple[Loop, Loop, Loop, Loop]]:
    """Tile the output: return the kept blocks, the loops over heads and those of tiles."""
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    places = (marked_int(sch, product, "row_axis"), marked_int(sch, product, "column_axis"))
    kept, last = inline_around(sch, product, keep=keep)
    loops = sch.get_loops(last)
    batch = [loop for i, loop in enumerate(loops) if i not in places]
    return kept, batch, tile.tile_output(sch, loops[places[0]], loops[places[1]], shape)
