"""Activations times activations, batched: both operands are read through reshapes and transposes.

B is packed on the fly, one panel of columns at a time, into memory that stays in L1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import tile
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.gemm import inline_around
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    fuse,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)

KIND = "attention"

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


def define_attention(cpu: Cpu, plan: Batched) -> Callable[..., te.Tensor]:
    """Make the TE definition of a batched product."""
    shape = tile.choose_tile(cpu, plan.rows, plan.columns)
    height, width = shape
    rank = len(plan.batch)
    tiles = (-(-plan.rows // height), -(-plan.columns // width))
    sizes = (*plan.batch, plan.rows, plan.columns)
    marks = mark(
        kind=KIND,
        pattern="epilogue",
        rows=height,
        columns=width,
        unroll=tile.unroll_of(plan.depth),
        row_axis=plan.axes.index(rank),
        column_axis=plan.axes.index(rank + 1),
    )

    def define(left: te.Tensor, *others: te.Tensor) -> te.Tensor:
        panel = _pack_right(plan, left if plan.shared else others[0], width)
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


def _pack_right(plan: Batched, right: te.Tensor, width: int) -> te.Tensor:
    """Define the panels of B: [*batch, panels, depth, width]."""

    def element(*at: tirx.Expr) -> tirx.Expr:
        *batch, no, k, ni = at
        return plan.read_right(right, [*batch, k, tile.clamped(no, ni, width, plan.columns)])

    shape = [*plan.batch, -(-plan.columns // width), plan.depth, width]
    return te.compute(shape, element, name="panel", attrs=mark(role="panel"))


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
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    kept, last = inline_around(sch, product, keep=("staged", "panel"))
    loops = sch.get_loops(last)
    row = loops[marked_int(sch, product, "row_axis")]
    column = loops[marked_int(sch, product, "column_axis")]
    batch = [
        loop
        for i, loop in enumerate(loops)
        if i not in (marked_int(sch, product, "row_axis"), marked_int(sch, product, "column_axis"))
    ]
    rows, row_in, columns, column_in = tile.tile_output(sch, row, column, shape)
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
