"""Kernels that reduce the last axis of each row: softmax, layer normalization, sums and extremes.

A reduction keeps one partial result per vector lane and halves them as vectors at the end: adding
up the lanes one after another would cost as many latencies as there are lanes, for every row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import functions
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    blocks_of,
    extent,
    fuse,
    is_reduction,
    mark,
    marked,
    vectorize_inner,
)

KIND = "rows"
#: Vectors of partial results; more than one hides the latency of the addition.
_VECTORS = 4
#: Vectors that one turn of an elementwise loop computes.
_UNROLLED = 4
_LOWEST = -3.4028234663852886e38

Reader = Callable[..., tirx.Expr]


@dataclass(frozen=True, slots=True)
class Fold:
    """An associative operation: how TE reduces, how two values join, what changes nothing."""

    reduce: Callable[..., tirx.Expr]
    join: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]
    neutral: float


SUM = Fold(te.sum, lambda a, b: a + b, 0.0)
MAXIMUM = Fold(te.max, tirx.max, _LOWEST)
MINIMUM = Fold(te.min, tirx.min, -_LOWEST)


def _extreme(join: Callable[[tirx.Expr, tirx.Expr], tirx.Expr], neutral: float) -> Fold:
    """Fold from an infinity, so that a row of infinities stays one."""
    reduce = te.comm_reducer(join, lambda dtype: tirx.const(neutral, dtype), name="extreme")
    return Fold(reduce, join, neutral)


GREATEST = _extreme(lambda a, b: tirx.max(a, b), float("-inf"))
LEAST = _extreme(lambda a, b: tirx.min(a, b), float("inf"))


def partial_lanes(cpu: Cpu, length: int) -> int:
    """Choose how many partial results a row of so many elements keeps."""
    lanes = cpu.lanes * _VECTORS
    while lanes > 1 and lanes > length:
        lanes //= 2
    return lanes


def fold_rows(
    cpu: Cpu, rows: Sequence[int], length: int, read: Reader, fold: Fold, *, name: str
) -> te.Tensor:
    """Reduce read(*row, j) over j < length to one value per row."""
    lanes = partial_lanes(cpu, length)
    steps = -(-length // lanes)
    k = te.reduce_axis((0, steps), "k")

    def element(*at: tirx.Expr) -> tirx.Expr:
        j = k * lanes + at[-1]
        if length % lanes == 0:
            return read(*at[:-1], j)
        value = read(*at[:-1], tirx.min(j, length - 1))
        return tirx.if_then_else(j < length, value, number(fold.neutral))

    part = te.compute(
        [*rows, lanes],
        lambda *at: fold.reduce(element(*at), axis=k),
        name=f"{name}_lanes",
        attrs=mark(kind=KIND, role="lanes", pattern="opaque"),
    )
    while lanes > 1:
        lanes //= 2
        part = _halve(part, rows, lanes, fold, name)
    return te.compute([*rows], lambda *at: part(*at, 0), name=name, attrs=mark(role="row"))


def _halve(part: te.Tensor, rows: Sequence[int], lanes: int, fold: Fold, name: str) -> te.Tensor:
    return te.compute(
        [*rows, lanes],
        lambda *at: fold.join(part(*at), part(*at[:-1], at[-1] + lanes)),
        name=f"{name}_{lanes}",
        attrs=mark(role="half"),
    )


def define_softmax(cpu: Cpu, shape: Sequence[int]) -> Callable[[te.Tensor], te.Tensor]:
    """Make the TE definition of softmax over the last axis."""
    rows, length = list(shape[:-1]), shape[-1]

    def define(x: te.Tensor) -> te.Tensor:
        top = fold_rows(cpu, rows, length, x, MAXIMUM, name="top")
        power = te.compute(
            [*shape],
            lambda *at: functions.exp(x(*at) - top(*at[:-1]), highest=0.0),
            name="power",
        )
        total = fold_rows(cpu, rows, length, power, SUM, name="total")
        inverse = te.compute(
            rows, lambda *at: number(1.0) / total(*at), name="inverse", attrs=mark(role="row")
        )
        return te.compute([*shape], lambda *at: power(*at) * inverse(*at[:-1]), name="softmax")

    return define


def define_log_softmax(cpu: Cpu, shape: Sequence[int]) -> Callable[[te.Tensor], te.Tensor]:
    """Make the TE definition of the logarithm of softmax over the last axis."""
    rows, length = list(shape[:-1]), shape[-1]

    def define(x: te.Tensor) -> te.Tensor:
        top = fold_rows(cpu, rows, length, x, MAXIMUM, name="top")

        def power(*at: tirx.Expr) -> tirx.Expr:
            return functions.exp(x(*at) - top(*at[:-1]), highest=0.0)

        total = fold_rows(cpu, rows, length, power, SUM, name="total")
        offset = te.compute(
            rows,
            lambda *at: top(*at) + tirx.log(total(*at)),
            name="offset",
            attrs=mark(role="row"),
        )
        return te.compute([*shape], lambda *at: x(*at) - offset(*at[:-1]), name="log_softmax")

    return define


def define_layer_norm(
    cpu: Cpu, shape: Sequence[int], epsilon: float
) -> Callable[[te.Tensor, te.Tensor, te.Tensor], te.Tensor]:
    """Make the TE definition of layer normalization over the last axis, variance in two passes."""
    rows, length = list(shape[:-1]), shape[-1]
    share = number(1.0 / length)

    def define(x: te.Tensor, gain: te.Tensor, bias: te.Tensor) -> te.Tensor:
        total = fold_rows(cpu, rows, length, x, SUM, name="total")
        mean = te.compute(rows, lambda *at: total(*at) * share, name="mean", attrs=mark(role="row"))

        def deviation(*at: tirx.Expr) -> tirx.Expr:
            value = x(*at) - mean(*at[:-1])
            return value * value

        spread = fold_rows(cpu, rows, length, deviation, SUM, name="spread")
        inverse = te.compute(
            rows,
            lambda *at: number(1.0) / tirx.sqrt(spread(*at) * share + number(epsilon)),
            name="inverse",
            attrs=mark(role="row"),
        )
        return te.compute(
            [*shape],
            lambda *at: (x(*at) - mean(*at[:-1])) * inverse(*at[:-1]) * gain(at[-1]) + bias(at[-1]),
            name="layer_norm",
        )

    return define


def define_fold(
    cpu: Cpu, shape: Sequence[int], fold: Fold, scale: float = 1.0
) -> Callable[[te.Tensor], te.Tensor]:
    """Make the TE definition of a sum, mean, maximum or minimum over the last axis, kept as 1."""
    rows, length = list(shape[:-1]), shape[-1]

    def define(x: te.Tensor) -> te.Tensor:
        folded = fold_rows(cpu, rows, length, x, fold, name="folded")
        return te.compute([*rows, 1], lambda *at: folded(*at[:-1]) * number(scale), name="fold")

    return define


def schedule_rows(sch: Schedule, cpu: Cpu, block: Block) -> None:
    """Schedule a row kernel: rows in parallel, everything of one row inside."""
    del block
    blocks = blocks_of(sch)
    rows = len(sch.get(_first_lanes(sch, blocks)).iter_vars) - 2
    row = fuse(sch, sch.get_loops(blocks[-1])[:rows]) if rows else None
    if row is not None:
        sch.parallel(row)
        for each in reversed(blocks[:-1]):
            sch.compute_at(each, row, preserve_unit_loops=True)
    for each in blocks:
        _schedule_part(sch, cpu, each)


def _first_lanes(sch: Schedule, blocks: Sequence[Block]) -> Block:
    return next(block for block in blocks if marked(sch, block, "role") == "lanes")


def _schedule_part(sch: Schedule, cpu: Cpu, block: Block) -> None:
    role = marked(sch, block, "role")
    loops = sch.get_loops(block)
    if role == "row" or not loops:
        return
    if is_reduction(sch, block):
        lane, step = loops[-2], loops[-1]
        sch.reorder(step, lane)
        vectorize_inner(sch, lane, cpu.lanes)
        sch.decompose_reduction(block, step)
    elif extent(sch, loops[-1]) > 1:
        loop, unrolled = loops[-1], role == "half"
        if not unrolled and extent(sch, loop) % (cpu.lanes * _UNROLLED) == 0:
            # Constants are brought into registers once for several vectors.
            loop, unrolled = sch.split(loop, [None, cpu.lanes * _UNROLLED])[1], True
        vectorize_inner(sch, loop, cpu.lanes, unroll=unrolled)
