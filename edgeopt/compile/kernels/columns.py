"""Sums and the like over axes before the last: the last axis is vectorized, the others are walked.

A tensor is seen as [outer, reduced, inner]; pooling over tokens is one such sum.
"""

from collections.abc import Callable

from tvm import te

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.rows import Fold
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    blocks_of,
    extent,
    inline_all,
    mark,
    vectorize_inner,
)

KIND = "columns"
#: Vectors that are accumulated at a time.
_VECTORS = 4


def define_columns(
    shape: tuple[int, int, int], fold: Fold, scale: float
) -> Callable[[te.Tensor], te.Tensor]:
    """Make the TE definition of a reduction of [outer, reduced, inner] to [outer, inner]."""
    outer, reduced, inner = shape

    def define(x: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, reduced), "k")
        folded = te.compute(
            (outer, inner),
            lambda o, i: fold.reduce(x(o, k, i), axis=k),
            name="folded",
            attrs=mark(kind=KIND, pattern="opaque"),
        )
        return te.compute((outer, inner), lambda o, i: folded(o, i) * number(scale), name="columns")

    return define


def schedule_columns(sch: Schedule, cpu: Cpu, block: Block) -> None:
    """Schedule a reduction over columns: a few vectors of columns at a time."""
    blocks = blocks_of(sch)
    inline_all(sch, blocks[1:-1])
    outer, inner = sch.get_loops(blocks[-1])[:2]
    width = extent(sch, inner)
    for candidate in (_VECTORS * cpu.lanes, cpu.lanes):
        if width % candidate == 0:
            width = candidate
            break
    groups, inner = sch.split(inner, [None, width])
    sch.reorder(outer, groups, inner)
    sch.parallel(sch.fuse(outer, groups))
    vectorize_inner(sch, inner, cpu.lanes)
    at = sch.get_loops(blocks[-1])[0]
    sch.compute_at(block, at, preserve_unit_loops=True)
    column, step = sch.get_loops(block)[-2:]
    sch.reorder(step, column)
    vectorize_inner(sch, column, cpu.lanes)
    sch.decompose_reduction(block, step)
