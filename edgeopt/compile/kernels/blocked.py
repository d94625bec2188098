"""Weights of 1, 2, 4 or 8 bits with a scale per block of K: packed in words, decoded in registers.

A word of 32 bits holds consecutive codes of one column, and columns lie side by side, so that one
shift and one mask decode a vector of columns. Codes may stand for levels of a codebook, which are
chosen in registers too. With codes c, zero points z and scales s, one row is
sum over blocks of s * (sum of x * c - z * sum of x); more rows read a panel that was decoded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import gemm, levels, tile
from edgeopt.compile.kernels.functions import choose_level, number
from edgeopt.compile.kernels.gemm import Gemm
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)

KIND = "blocked"
#: Finds the indices in scales or zero points of an element by its own.
Finder = Callable[[te.Tensor, Sequence[tirx.Expr]], list[tirx.Expr]]
#: Reads a code by its word of a panel, its place there, and its panel, block and column.
Reader = Callable[[tirx.Expr, tirx.Expr, tuple[tirx.Expr, tirx.Expr, tirx.Expr]], tirx.Expr]

_WORD = 32
#: Steps of K that are unrolled at most.
_MOST_UNROLLED = 8


@dataclass(frozen=True, slots=True)
class Blocked:
    """A matrix [K, N] of codes from 0 on, and its scales and zero points by block of K.

    scales: [blocks, N], float16 or float32, or one for all as [1, 1]; zeros: the same. levels:
    what each code stands for, as float32 [groups, n]; None: itself. With levels there are no zero
    points.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    block: int
    bits: int
    levels: np.ndarray | None = None
    #: Columns of one group of levels; 0: there is one group.
    channels: int = 0

    @property
    def per_word(self) -> int:
        """Codes per word."""
        return _WORD // self.bits

    @property
    def words(self) -> int:
        """Words per block and column."""
        return -(-self.block // self.per_word)

    @property
    def blocks(self) -> int:
        """Blocks of each column."""
        return -(-len(self.codes) // self.block)

    @property
    def has_zeros(self) -> bool:
        """Whether zero points are stored: those that differ, and those of 8 bits."""
        return self.zeros.size > 1 or self.zeros.dtype == np.uint8

    @property
    def subtracts(self) -> bool:
        """Whether zero points are subtracted from codes, and not from sums of them.

        Of long sums of large codes too little of a float32 would be left.
        """
        return self.bits == 8 and bool(self.zeros.any())


def bits_of(codes: np.ndarray) -> int:
    """Count the bits, 2, 4 or 8, that codes from 0 on need."""
    highest = int(codes.max(initial=0))
    return next(bits for bits in (2, 4, 8) if highest < 1 << bits)


def pack_words(weight: Blocked, width: int) -> np.ndarray:
    """Lay out codes as int32 words [panel, word, column]; the first code in the lowest bits."""
    depth, columns = weight.codes.shape
    panels, per_word = -(-columns // width), weight.per_word
    whole = np.zeros((weight.blocks * weight.block, panels * width), np.uint32)
    whole[:depth, :columns] = weight.codes
    padded = np.zeros((weight.blocks, weight.words * per_word, panels * width), np.uint32)
    padded[:, : weight.block] = whole.reshape(weight.blocks, weight.block, -1)
    shifts = (np.arange(per_word, dtype=np.uint32) * weight.bits)[:, None]
    grouped = padded.reshape(-1, per_word, panels * width) << shifts
    words = np.bitwise_or.reduce(grouped, axis=1).reshape(-1, panels, width)
    return np.ascontiguousarray(words.transpose(1, 0, 2)).view(np.int32)


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put consecutive codes of the last axis into bytes, the first in the lowest bits."""
    per_byte = 8 // bits
    *lead, length = codes.shape
    padded = np.zeros((*lead, tile.round_up(length, per_byte)), np.uint8)
    padded[..., :length] = codes
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    split = padded.reshape(*lead, -1, per_byte) << shifts
    packed: np.ndarray = np.bitwise_or.reduce(split, axis=-1)
    return packed


def plan_blocked(cpu: Cpu, shape: tuple[int, ...], weight: Blocked) -> Gemm:
    """Choose the tile: of one row, as many sums as registers hold beside the decoded vectors.

    TBL takes half of them for levels, masks and codes, and LLVM mixes the steps of all vectors.
    """
    columns = weight.codes.shape[1]
    plan = gemm.plan_gemm(cpu, shape, columns, "blocks")
    if plan.rows > 1:
        return plan
    vectors = 8 if cpu.registers > 16 else 4
    if cpu.machine == "aarch64" and _has_few_levels(weight):
        vectors = 2
    return Gemm(shape, columns, 1, min(vectors * cpu.lanes, tile.round_up(columns, cpu.lanes)))


def arguments_of(weight: Blocked, width: int) -> list[np.ndarray]:
    """List what the definition takes after x: words, scales, and levels or zero points, if any."""
    panels = -(-weight.codes.shape[1] // width)

    def panelled(values: np.ndarray) -> np.ndarray:
        if values.size == 1:
            return values.reshape(1, 1, 1)
        padded = np.zeros((len(values), panels * width), values.dtype)
        padded[:, : values.shape[1]] = values
        split = padded.reshape(len(values), panels, width)
        return np.ascontiguousarray(split.transpose(1, 0, 2))

    arguments = [pack_words(weight, width), panelled(weight.scales)]
    if weight.levels is not None:
        return [*arguments, weight.levels]
    return [*arguments, panelled(weight.zeros)] if weight.has_zeros else arguments


def _code(word: tirx.Expr, place: tirx.Expr, bits: int) -> tirx.Expr:
    """Read one code of a word as float32."""
    kept = tirx.bitwise_and(tirx.shift_right(word, place * bits), tirx.const(2**bits - 1, "int32"))
    return tirx.Cast("float32", kept)


def _level(
    word: tirx.Expr, place: tirx.Expr, bits: int, stored: te.Tensor, *group: tirx.Expr
) -> tirx.Expr:
    """Find what a code of a word stands for.

    Of more than 16 levels each lane reads its own: registers hold no more.
    """
    if bits <= levels.BITS:
        return choose_level(word, place, bits, lambda level: stored(*group, level))
    kept = tirx.shift_right(word, place * bits)
    return stored(*group, tirx.bitwise_and(kept, tirx.const(2**bits - 1, "int32")))


def _group_of(weight: Blocked, width: int, panel: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
    """Find the group of levels of a column in a panel of so many; padding has the last one's."""
    assert weight.levels is not None
    if weight.channels == 0:
        return tirx.const(0, "int32")
    if weight.channels % width == 0:
        group = tirx.floordiv(panel, weight.channels // width)
    else:
        group = tirx.floordiv(panel * width + column, weight.channels)
    return tirx.min(group, len(weight.levels) - 1)


def _scale_of(scales: te.Tensor, *at: tirx.Expr) -> tirx.Expr:
    """Read a scale: its own, or the one for all."""
    place = [0 if int(size) == 1 else i for size, i in zip(scales.shape, at, strict=True)]
    return tirx.Cast("float32", scales(*place))


def define_blocked(cpu: Cpu, plan: Gemm, weight: Blocked) -> Callable[..., te.Tensor]:
    """Make the TE definition: x, words, scales, and levels or zero points, if any, give x @ W."""
    if plan.rows == 1 and not plan.outer_axes:
        return _define_row(cpu, plan, weight)
    return _define_tiles(cpu, plan, weight)


def _looks_up(cpu: Cpu, plan: Gemm, weight: Blocked) -> bool:
    """Tell whether levels are found by whole words in whole vectors, the same for a panel."""
    return (
        _has_few_levels(weight)
        and levels.has_look_up(cpu)
        and plan.width % cpu.lanes == 0
        and weight.channels % plan.width == 0
    )


def _has_few_levels(weight: Blocked) -> bool:
    return weight.levels is not None and weight.bits == levels.BITS


def _zero_of(weight: Blocked, zeros: tuple[te.Tensor, ...], *at: tirx.Expr) -> tirx.Expr:
    if weight.has_zeros:
        return _scale_of(zeros[0], *at)
    return number(float(weight.zeros.reshape(-1)[0]))


def _reader(
    plan: Gemm, weight: Blocked, words: te.Tensor, more: tuple[te.Tensor, ...], *, by_word: bool
) -> Reader:
    """Make what reads a code: its level, or less its zero point.

    by_word: levels are a stage of their own, which finds those of a whole word.
    """

    def group_of(panel: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        return _group_of(weight, plan.width, panel, column)

    found = levels.define_found(words, more[0], group_of) if by_word else None

    def read(
        word: tirx.Expr, place: tirx.Expr, at: tuple[tirx.Expr, tirx.Expr, tirx.Expr]
    ) -> tirx.Expr:
        panel, _, column = at
        if found is not None:
            return found(panel, word, place, column)
        bits = words(panel, word, column)
        if weight.levels is not None:
            return _level(bits, place, weight.bits, more[0], group_of(panel, column))
        code = _code(bits, place, weight.bits)
        return code - _zero_of(weight, more, *at) if weight.subtracts else code

    return read


def _define_tiles(cpu: Cpu, plan: Gemm, weight: Blocked) -> Callable[..., te.Tensor]:
    """Decode panels where the usual product would widen them."""
    unroll = weight.per_word if plan.depth % weight.per_word == 0 else 0
    marks = plan.marks(cpu, weight.bits, unroll=min(unroll, _MOST_UNROLLED))

    # A panel that is decoded by whole words is kept for the rows that read it, however few.
    by_word = (
        _looks_up(cpu, plan, weight)
        and plan.depth % weight.per_word == 0
        and 4 * plan.depth * plan.width <= cpu.l2
    )

    def define(x: te.Tensor, words: te.Tensor, scales: te.Tensor, *more: te.Tensor) -> te.Tensor:
        read = _reader(plan, weight, words, more, by_word=by_word)

        def decode(no: tirx.Expr, k: tirx.Expr, ni: tirx.Expr) -> tirx.Expr:
            block = tirx.floordiv(k, weight.block) if weight.blocks > 1 else tirx.const(0, "int32")
            word, place = tirx.floordiv(k, weight.per_word), tirx.floormod(k, weight.per_word)
            scale = _scale_of(scales, no, block, ni)
            code = read(word, place, (no, block, ni))
            if weight.levels is None and not weight.subtracts:
                code = code - _zero_of(weight, more, no, block, ni)
            return code * scale

        shape = (words.shape[0], plan.depth, words.shape[2])
        panels = te.compute(shape, decode, name="widened", attrs=mark(role=tile.WIDENED))
        product = gemm.define_product(cpu, plan, x, panels, marks)
        return te.compute(
            plan.output_shape, lambda *at: gemm.result_of(plan, product, at), name="blocked"
        )

    return define


def _define_row(cpu: Cpu, plan: Gemm, weight: Blocked) -> Callable[..., te.Tensor]:
    """Sum within blocks without scales, then over blocks with them."""
    blocks, words, per_word = weight.blocks, weight.words, weight.per_word
    marks = mark(kind=KIND, pattern="epilogue", columns=plan.width)
    by_word = _looks_up(cpu, plan, weight)

    def define(x: te.Tensor, packed: te.Tensor, scales: te.Tensor, *more: te.Tensor) -> te.Tensor:
        def staged(b: tirx.Expr, j: tirx.Expr) -> tirx.Expr:
            k = b * weight.block + j
            value = x(*[0] * (len(plan.shape) - 1), tirx.min(k, plan.depth - 1))
            inside = tirx.all(j < weight.block, k < plan.depth)
            return tirx.Select(inside, value, number(0.0))

        row = te.compute((blocks, words * per_word), staged, name="row", attrs=mark(role="row"))
        s = te.reduce_axis((0, words * per_word), "s")
        totals = te.compute(
            (blocks,), lambda b: te.sum(row(b, s), axis=s), name="totals", attrs=mark(role="totals")
        )
        q, j = te.reduce_axis((0, words), "q"), te.reduce_axis((0, per_word), "j")

        read = _reader(plan, weight, packed, more, by_word=by_word)

        def within(no: tirx.Expr, b: tirx.Expr, ni: tirx.Expr) -> tirx.Expr:
            code = read(b * words + q, j, (no, b, ni))
            return te.sum(row(b, q * per_word + j) * code, axis=[q, j])

        panels = -(-plan.columns // plan.width)
        shape = (panels, blocks, plan.width)
        partial = te.compute(shape, within, name="partial", attrs=mark(role="partial"))
        b = te.reduce_axis((0, blocks), "b")

        def over(no: tirx.Expr, ni: tirx.Expr) -> tirx.Expr:
            value = partial(no, b, ni)
            if not weight.subtracts and (weight.has_zeros or weight.zeros.any()):
                value = value - _zero_of(weight, more, no, b, ni) * totals(b)
            return te.sum(value * _scale_of(scales, no, b, ni), axis=b)

        product = te.compute((panels, plan.width), over, name="product", attrs=marks)

        def result(*at: tirx.Expr) -> tirx.Expr:
            width = plan.width
            return product(tirx.floordiv(at[-1], width), tirx.floormod(at[-1], width))

        return te.compute(plan.output_shape, result, name="blocked")

    return define


def schedule_blocked(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule one row: a panel of columns at a time, all its sums in registers."""
    kept, last = gemm.inline_around(sch, product, keep=("row", "totals", "partial", levels.ROLE))
    roles = {marked(sch, block, "role"): block for block in kept}
    columns, inner = sch.split(sch.get_loops(last)[-1], [None, marked_int(sch, product, "columns")])
    sch.parallel(columns)
    vectorize_inner(sch, inner, cpu.lanes)
    sch.compute_at(product, columns, preserve_unit_loops=True)
    column, block = sch.get_loops(product)[-2:]
    vectors, vector = sch.split(column, [None, cpu.lanes])
    sch.reorder(block, vectors, vector)
    sch.unroll(vectors)
    sch.vectorize(vector)
    sch.compute_at(roles["partial"], block, preserve_unit_loops=True)
    column, word, place = sch.get_loops(roles["partial"])[-3:]
    vectors, vector = sch.split(column, [None, cpu.lanes])
    if levels.ROLE in roles:
        # Of one vector of columns at a time: of all of them registers would not hold the levels.
        sch.reorder(word, vectors, place, vector)
        levels.place_found(sch, cpu, roles[levels.ROLE], at=vectors, outside=columns)
    else:
        sch.reorder(word, place, vectors, vector)
    sch.unroll(place)
    sch.unroll(vectors)
    sch.vectorize(vector)
    sch.decompose_reduction(roles["partial"], word)
    sch.decompose_reduction(product, block)
    vectorize_inner(sch, sch.get_loops(roles["row"])[-1], cpu.lanes)


def define_decoded(shape: tuple[int, ...], find: Finder, bits: int) -> Callable[..., te.Tensor]:
    """Make the TE definition of rows taken from a packed table: only what is read is decoded.

    find: tells where the scale or zero point of an element of the table is. The definition takes
    table, scales, zero points, indices and, where codes stand for them, levels.
    """
    per_byte = 8 // bits

    def define(
        table: te.Tensor,
        scales: te.Tensor,
        zeros: te.Tensor,
        indices: te.Tensor,
        *stored: te.Tensor,
    ) -> te.Tensor:
        count = len(indices.shape)

        def element(*at: tirx.Expr) -> tirx.Expr:
            chosen = tirx.Cast("int32", indices(*at[:count]))
            chosen = tirx.Select(chosen < 0, chosen + shape[0], chosen)
            chosen = tirx.max(tirx.min(chosen, shape[0] - 1), 0)
            place = [chosen, *at[count:]]
            byte = table(*place[:-1], tirx.floordiv(place[-1], per_byte))
            word, at_bit = tirx.Cast("int32", byte), tirx.floormod(place[-1], per_byte)
            zero, scale = zeros(*find(zeros, place)), scales(*find(scales, place))
            if stored:
                return _level(word, at_bit, bits, stored[0]) * tirx.Cast("float32", scale)
            code = _code(word, at_bit, bits)
            return (code - tirx.Cast("float32", zero)) * tirx.Cast("float32", scale)

        result = [*indices.shape, *shape[1:]]
        return te.compute(result, element, name="gather")

    return define
