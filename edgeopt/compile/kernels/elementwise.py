"""Everything without a reduction: one loop nest, vectorized, in parallel where it is worth it."""

from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax, te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import functions
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    blocks_of,
    count_steps,
    extent,
    fuse,
    inline_all,
    mark,
    name_of,
    stored_share,
    vectorize_inner,
)

Function = Callable[[tirx.Expr], tirx.Expr]
Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]

#: Elements below which waking the other cores costs more than they save.
WORTH_SHARING = 16384
#: Vectors that one core handles at a time.
_GRAIN = 64
#: Planes of an image that are put side by side: what no vector divides.
_FEW = (2, 3)
#: Pieces per core that keep all of them busy to the end.
_CHUNKS = 4


def define_unary(function: Function, name: str) -> Callable[[te.Tensor], te.Tensor]:
    """Make the TE definition that applies a function to every element."""

    def define(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *at: function(x(*at)), name=name)

    return define


def define_gather(size: int, rank: int, axis: int) -> Callable[[te.Tensor, te.Tensor], te.Tensor]:
    """Make the TE definition of Gather along one axis of so many elements.

    Negative indices count from the end; what lies outside reads the nearest element, never other
    memory, because indices come from the user of the deployed model.
    """

    def define(data: te.Tensor, indices: te.Tensor) -> te.Tensor:
        count = len(indices.shape)
        shape = [*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]]

        def element(*at: tirx.Expr) -> tirx.Expr:
            chosen = tirx.Cast("int32", indices(*at[axis : axis + count]))
            chosen = tirx.Select(chosen < 0, chosen + size, chosen)
            chosen = tirx.max(tirx.min(chosen, size - 1), 0)
            return data(*at[:axis], chosen, *at[axis + count :])

        assert len(data.shape) == rank
        return te.compute(shape, element, name="gather")

    return define


def define_scale() -> Callable[..., te.Tensor]:
    """Make the TE definition of DynamicQuantizeLinear's scale from the extremes, [1, 1] each.

    A tensor of zeros has scale 1, as in onnxruntime; the standard would divide zero by zero.
    """

    def define(low: te.Tensor, high: te.Tensor) -> te.Tensor:
        zero, one = functions.number(0.0), functions.number(1.0)

        def scale() -> tirx.Expr:
            width = tirx.max(high(0, 0), zero) - tirx.min(low(0, 0), zero)
            return tirx.Select(width > zero, width / functions.number(255.0), one)

        return te.compute((), scale, name="scale", attrs=mark(pattern="opaque"))

    return define


def define_zero_point() -> Callable[..., te.Tensor]:
    """Make the TE definition of DynamicQuantizeLinear's zero point."""

    def define(low: te.Tensor, scale: te.Tensor) -> te.Tensor:
        def zero_point() -> tirx.Expr:
            offset = functions.number(0.0) - tirx.min(low(0, 0), functions.number(0.0)) / scale()
            limited = functions.clamp(offset, 0.0, 255.0)
            return tirx.Cast("uint8", functions.round_to_int(limited))

        return te.compute((), zero_point, name="zero_point", attrs=mark(pattern="opaque"))

    return define


def define_quantize(dtype: str, *, inverse: bool = False) -> Callable[..., te.Tensor]:
    """Make the TE definition of QuantizeLinear to 8 or 16 bits with one scale and zero point.

    Limited before it is rounded, so that the rounding sees small numbers only. With the inverse of
    the scale instead of the scale, a value next to a tie may get the neighbouring code.
    """
    lowest, highest = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)

    def define(x: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
        def code(*at: tirx.Expr) -> tirx.Expr:
            middle = tirx.Cast("int32", zero(*[0] * len(zero.shape)))
            low = tirx.Cast("float32", tirx.const(lowest, "int32") - middle)
            high = tirx.Cast("float32", tirx.const(highest, "int32") - middle)
            factor = scale(*[0] * len(scale.shape))
            value = x(*at) * factor if inverse else x(*at) / factor
            value = tirx.max(tirx.min(value, high), low)
            return tirx.Cast(dtype, functions.round_to_int(value) + middle)

        return te.compute(x.shape, code, name="quantize")

    return define


def define_flip(dtype: str) -> Callable[[te.Tensor], te.Tensor]:
    """Make the TE definition that moves codes by 128 from one 8-bit type to the other."""

    def code(x: tirx.Expr) -> tirx.Expr:
        moved = tirx.bitwise_xor(tirx.reinterpret("uint8", x), tirx.const(128, "uint8"))
        return tirx.reinterpret(dtype, moved)

    return define_unary(code, "flip")


def define_requantize(
    cpu: Cpu, dtype: str, limits: tuple[int, int, int]
) -> Callable[..., te.Tensor]:
    """Make the TE definition of int32 sums times factors of columns, plus a bias if any, to codes.

    limits: the lowest and the highest code, and the zero point.
    """
    encode = functions.encode_saturated if cpu.machine == "aarch64" else functions.encode

    def define(sums: te.Tensor, factor: te.Tensor, *bias: te.Tensor) -> te.Tensor:
        def code(*at: tirx.Expr) -> tirx.Expr:
            value = tirx.Cast("float32", sums(*at)) * factor(at[-1])
            return encode(value + bias[0](at[-1]) if bias else value, dtype, limits)

        return te.compute(sums.shape, code, name="requantize")

    return define


def define_combination(dtype: str, limits: tuple[int, int]) -> Callable[..., te.Tensor]:
    """Make the TE definition of codes from sums of codes.

    Operands are a factor for each tensor of codes and a constant as one array, then those tensors.
    """

    def define(numbers: te.Tensor, *terms: te.Tensor) -> te.Tensor:
        def code(*at: tirx.Expr) -> tirx.Expr:
            value = numbers(len(terms))
            for place, term in reversed(list(enumerate(terms))):
                value = tirx.Cast("float32", tirx.Cast("int32", term(*at))) * numbers(place) + value
            value = functions.clamp(value, *(float(limit) for limit in limits))
            return tirx.Cast(dtype, functions.round_to_int(value))

        return te.compute(terms[0].shape, code, name="add_codes")

    return define


def define_dequantize() -> Callable[..., te.Tensor]:
    """Make the TE definition of DequantizeLinear to float32 with one scale and zero point.

    Both stay operands, so that layers that differ in nothing else share one function.
    """

    def define(codes: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
        def value(*at: tirx.Expr) -> tirx.Expr:
            middle = tirx.Cast("int32", zero(*[0] * len(zero.shape)))
            steps = tirx.Cast("float32", tirx.Cast("int32", codes(*at)) - middle)
            return steps * scale(*[0] * len(scale.shape))

        return te.compute(codes.shape, value, name="dequantize")

    return define


def schedule_elementwise(sch: Schedule, cpu: Cpu) -> None:
    """Schedule a function whose blocks have no reduction; each of its outputs is one loop nest."""
    blocks = blocks_of(sch)
    outputs = [block for block in blocks if not sch.get_consumers(block)]
    if len(outputs) == 1 and _interleave(sch, cpu, blocks):
        return
    inline_all(sch, blocks[: len(blocks) - len(outputs)])
    for block in blocks_of(sch):
        schedule_nest(sch, cpu, block)


def _interleave(sch: Schedule, cpu: Cpu, blocks: Sequence[Block]) -> bool:
    """Schedule what puts a few planes side by side, pixel by pixel; False where nothing does.

    Planes are read as vectors, whose elements are stored apart; walking the output would find each
    value by divisions. A reshape after it is folded into where it is stored.
    """
    count = len(blocks)
    place = next((i for i in range(count) if _joins_planes(sch, blocks[i])), count)
    after = blocks[place + 1 :]
    reshaped = [name_of(sch, block).startswith("T_reshape") for block in after]
    if place == count or reshaped not in ([], [True]):
        return False
    joined = blocks[place]
    for block in after:
        sch.reverse_compute_inline(block)
    inline_all(sch, blocks[:place])
    *outer, across, plane = sch.get_loops(joined)
    lanes = cpu.lanes * stored_share(sch, joined)
    while extent(sch, across) % lanes:
        lanes //= 2
    pixels, vector = sch.split(across, [None, lanes])
    sch.reorder(*outer, pixels, plane, vector)
    sch.unroll(plane)
    sch.vectorize(vector)
    sch.parallel(fuse(sch, outer))
    return True


def _joins_planes(sch: Schedule, block: Block) -> bool:
    """Tell whether a block's last axis, too short for a vector, is another one of what it reads."""
    loops, facts = sch.get_loops(block), sch.get(block)
    if len(loops) < 3 or extent(sch, loops[-1]) not in _FEW or len(facts.reads) != 1:
        return False
    index = [axis.min for axis in facts.reads[0].region]
    moved = len(index) == len(loops) and index[-1].same_as(facts.iter_vars[-2].var)
    return moved and count_steps(sch, loops) >= WORTH_SHARING


def schedule_nest(sch: Schedule, cpu: Cpu, block: Block) -> None:
    """Schedule one block without a reduction: vectors, shared between cores where worth it."""
    loops = sch.get_loops(block)
    if not loops:
        return
    total = count_steps(sch, loops)
    # Fused loops recompute every index by division, which what moves data cannot vectorize.
    inner = loops[-1] if extent(sch, loops[-1]) % 4 == 0 else fuse(sch, loops)
    outer = loops[:-1] if inner is loops[-1] else []
    if total < WORTH_SHARING:
        vectorize_inner(sch, inner, cpu.lanes, unroll=False)
        return
    lanes = cpu.lanes
    while lanes > 1 and extent(sch, inner) % lanes:
        lanes //= 2
    rest, vector = sch.split(inner, [None, lanes])
    sch.vectorize(vector)
    if count_steps(sch, outer[:-1]) >= _CHUNKS * cpu.threads:
        # Whole rows of an image: what is fused costs a division per vector.
        sch.parallel(fuse(sch, outer[:-1]))
        return
    shared, _ = sch.split(fuse(sch, [*outer, rest]), [None, _GRAIN])
    sch.parallel(shared)
