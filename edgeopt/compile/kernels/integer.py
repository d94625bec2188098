"""Codes times a constant int8 matrix, summed in int32: exact, with the zero point taken out.

sum over k of (a - zero) * b = sum over k of a * b - zero * (sum over k of b); the second sum is a
constant per column. What reads the result (a scale, a bias, an activation) is fused after it.
Each CPU has an instruction, or a sequence, that adds up the products of a few neighbouring codes;
the matrix is packed in the order in which that instruction reads it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import tile
from edgeopt.compile.kernels.code_products import (
    CodeProduct,
    define_product,
    is_extreme,
    pack_weight,
    plan_product,
    prefers_flat,
)
from edgeopt.compile.kernels.gemm import Gemm, RowReader, define_rows, result_of, schedule_tiles
from edgeopt.compile.kernels.intrinsics import register_intrinsics
from edgeopt.compile.kernels.scheduling import (
    Block,
    Loop,
    Schedule,
    extent,
    fuse,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)
from edgeopt.tiles import Tile, TileKey

KIND = "integer"
#: Moves codes between uint8 and int8.
_SHIFT = 128
#: Codes that are converted as one vector where they are converted beforehand: AVX-512's bytes.
_CONVERTED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """How one CPU sums products of codes."""

    intrinsic: str
    #: Columns of one vector of sums, and codes of a row that one call consumes.
    lanes: int
    depth: int
    #: Calls per row whose codes are loaded at a time, as one vector.
    calls: int
    #: What the codes are converted to before they are multiplied.
    code: str
    #: Neighbouring rows of B that lie together, innermost last: (4,) or (2, 2) make four.
    groups: tuple[int, ...]
    #: Work per code of A, in loads of a vector of B: what choosing a tile weighs.
    a_cost: float
    #: Registers that one call takes beside the sums, a vector of B and one of A.
    spare: int = 2
    #: Vectors of sums of a single row at most.
    row_vectors: int = 8
    #: Whether codes are broadcast from memory; otherwise they are loaded as vectors before.
    broadcast: bool = False

    @property
    def step(self) -> int:
        """Rows of B that one vector of its bytes holds."""
        return int(np.prod(self.groups))


_PAIR = Dot(
    intrinsic="edgeopt_pair_arm",
    lanes=4,
    depth=4,
    calls=4,
    code="int8",
    groups=(2, 2),
    a_cost=1.0,
    spare=5,
    row_vectors=4,
)
_MADD = Dot(
    intrinsic="edgeopt_madd",
    lanes=8,
    depth=2,
    calls=4,
    code="int16",
    groups=(2,),
    a_cost=0.5,
    broadcast=True,
)
_VNNI = Dot(
    intrinsic="edgeopt_vnni",
    lanes=16,
    depth=4,
    calls=2,
    code="uint8",
    groups=(4,),
    a_cost=0.25,
    broadcast=True,
)


def choose_dot(cpu: Cpu, *, extreme: bool = False) -> Dot:
    """Choose the widest instruction that the CPU has; extreme tells of weights of -128.

    64-bit ARM multiplies the same codes as 32-bit ARM, by the tile of code_products.py.
    """
    if cpu.machine in ("aarch64", "arm"):
        return dataclasses.replace(_PAIR, intrinsic="edgeopt_single_arm") if extreme else _PAIR
    return _VNNI if cpu.vnni and cpu.lanes == 16 else _MADD


@dataclass(frozen=True, slots=True)
class IntegerGemm:
    """A product of codes: its shape and tile, the instruction, and the codes' type."""

    gemm: Gemm
    dot: Dot
    codes: str

    @property
    def depth(self) -> int:
        """Length of the sum, rounded up to whole vectors of codes."""
        return tile.round_up(self.gemm.depth, self.dot.depth * self.dot.calls)

    @property
    def moved(self) -> int:
        """What the conversion of codes adds to each, and the zero point must gain."""
        if self.codes == "uint8" and self.dot.code != "uint8":
            return -_SHIFT
        return _SHIFT if self.codes == "int8" and self.dot.code == "uint8" else 0

    @property
    def direct(self) -> bool:
        """Whether codes are multiplied from where they are, broadcast, instead of from a buffer."""
        whole = self.depth == self.gemm.depth
        return whole and self.dot.broadcast and self.dot.code == self.codes


def plan_integer(
    cpu: Cpu, shape: tuple[int, ...], weight: np.ndarray, codes: str
) -> IntegerGemm | CodeProduct:
    """Choose the instruction and the tile of a product of codes with an int8 matrix [K, N]."""
    product = plan_product(cpu, shape, weight, codes)
    if product is not None:
        return product
    columns, extreme = weight.shape[1], is_extreme(weight)
    plan = Gemm(shape, columns, 1, 1)
    key = TileKey(KIND, plan.rows, columns, plan.depth, codes)
    chosen = tile.choose_tuned(cpu, key, rank_tiles(cpu, key))
    return IntegerGemm(Gemm(shape, columns, *chosen), choose_dot(cpu, extreme=extreme), codes)


def rows_of(cpu: Cpu, shape: tuple[int, ...]) -> tuple[int, ...]:
    """View codes [..., K] under the shape whose rows are tiled best: short lines as one axis."""
    *outer, lines, columns, depth = (1, *shape) if len(shape) == 2 else shape
    if not (cpu.amx and prefers_flat(lines, columns)):
        return shape
    return (*outer, lines * columns, depth)


def rank_tiles(cpu: Cpu, key: TileKey) -> list[Tile]:
    """List the tiles of sums, the best first; weights of -128 make no difference."""
    dot = choose_dot(cpu)
    weighed = dataclasses.replace(cpu, a_cost=dot.a_cost)
    if cpu.vector_a:
        # For a core in program order LLVM begins the next call before the last one ends.
        spare = dot.spare * (2 if cpu.in_order else 1)
        weighed = dataclasses.replace(weighed, registers=cpu.registers - spare)
    most = dot.row_vectors * cpu.lanes
    ranked = tile.rank_tiles(weighed, key.rows, key.columns)
    cut = [(height, min(width, most) if height == 1 else width) for height, width in ranked]
    return list(dict.fromkeys(cut))


def pack_codes(weight: np.ndarray, plan: IntegerGemm | CodeProduct) -> np.ndarray:
    """Lay out an int8 [K, N] matrix in the order in which it is read.

    Axes: panel, call along K, vector of columns, then per vector of bytes its groups, with the
    columns before the innermost group. Zeros beyond K and N. With packed rows, see there.
    """
    if isinstance(plan, CodeProduct):
        return pack_weight(weight, plan)
    dot, width = plan.dot, plan.gemm.width
    panels = -(-weight.shape[1] // width)
    padded = np.zeros((plan.depth, panels * width), np.int8)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    calls, steps = plan.depth // dot.depth, dot.depth // dot.step
    split = padded.reshape(calls, steps, *dot.groups, panels, width // dot.lanes, dot.lanes)
    groups = len(dot.groups)
    panel, vector, lane = 2 + groups, 3 + groups, 4 + groups
    outer = range(2, 1 + groups)
    return np.ascontiguousarray(split.transpose(panel, 0, vector, 1, *outer, lane, 1 + groups))


def column_sums(weight: np.ndarray) -> np.ndarray:
    """Sum each column of an int8 matrix [K, N] in int32."""
    sums: np.ndarray = weight.astype(np.int32).sum(axis=0, dtype=np.int32)
    return sums


def read_packed(plan: IntegerGemm, weight: te.Tensor) -> RowReader:
    """Read element (panel, k, column in it) of a packed matrix."""
    dot = plan.dot

    def read(no: tirx.Expr, k: tirx.Expr, ni: tirx.Expr) -> tirx.Expr:
        within = tirx.floormod(k, dot.depth)
        index = [no, tirx.floordiv(k, dot.depth), tirx.floordiv(ni, dot.lanes)]
        index.append(tirx.floordiv(within, dot.step))
        within = tirx.floormod(within, dot.step)
        for size in dot.groups[1:]:
            index.append(tirx.floordiv(within, size))
            within = tirx.floormod(within, size)
        return weight(*index, tirx.floormod(ni, dot.lanes), within)

    return read


def define_integer(plan: IntegerGemm | CodeProduct) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes, packed matrix, column sums and zero point give int32.

    Without a zero point the sums are what is added to the columns.
    """
    gemm = plan.gemm
    define_tiles = define_product(plan) if isinstance(plan, CodeProduct) else _define_tiles(plan)

    def define(codes: te.Tensor, weight: te.Tensor, sums: te.Tensor, *zero: te.Tensor) -> te.Tensor:
        product = define_tiles(codes, weight)

        def result(*at: tirx.Expr) -> tirx.Expr:
            if not zero:
                return result_of(gemm, product, at) + sums(at[-1])
            offset = tirx.Cast("int32", zero[0](*[0] * len(zero[0].shape))) + plan.moved
            return result_of(gemm, product, at) - offset * sums(at[-1])

        return te.compute(gemm.output_shape, result, name="integer_gemm")

    return define


def _define_tiles(plan: IntegerGemm) -> Callable[[te.Tensor, te.Tensor], te.Tensor]:
    """Make the TE definition of the tiled sums."""
    register_intrinsics()
    gemm = plan.gemm
    marks = mark(
        kind=KIND,
        pattern="epilogue",
        rows=gemm.height,
        columns=gemm.width,
        axis=gemm.row_axis,
        bytes=gemm.depth * gemm.columns,
        intrinsic=plan.dot.intrinsic,
        depth=plan.dot.depth,
        calls=plan.dot.calls,
        lanes=plan.dot.lanes,
    )

    def define(codes: te.Tensor, weight: te.Tensor) -> te.Tensor:
        def converted(value: tirx.Expr) -> tirx.Expr:
            return convert(value, plan)

        rows = define_rows(gemm, codes, converted, depth=0 if plan.direct else plan.depth)
        packed = read_packed(plan, weight)
        k = te.reduce_axis((0, plan.depth), "k")

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            *outer, mo, no, mi, ni = at
            left = tirx.Cast("int32", rows(*outer, mo, mi, k))
            return te.sum(left * tirx.Cast("int32", packed(no, k, ni)), axis=k)

        return te.compute(gemm.tiled_shape, multiply, name="product", attrs=marks)

    return define


def convert(value: tirx.Expr, plan: IntegerGemm) -> tirx.Expr:
    """Convert a code to what the instruction takes; flipping the top bit moves it by 128."""
    if plan.dot.code == "int16":
        return tirx.Cast("int16", value) + tirx.const(plan.moved, "int16")
    if plan.moved == 0:
        return value
    flipped = tirx.reinterpret("uint8", value) if plan.codes == "int8" else value
    flipped = tirx.bitwise_xor(flipped, tirx.const(_SHIFT, "uint8"))
    return flipped if plan.dot.code == "uint8" else tirx.reinterpret("int8", flipped)


def schedule_integer(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a product of codes around one instruction."""
    tiles = schedule_tiles(sch, cpu, product)
    sch.compute_at(product, tiles.inner, preserve_unit_loops=True)
    if not cpu.vector_a:
        for block in tiles.staged:
            _convert_codes(sch, block)
    tensorize_product(sch, product, tiles.staged if cpu.vector_a else (), reductions=1)


def tensorize_product(
    sch: Schedule, product: Block, loaded: Sequence[Block], *, reductions: int
) -> None:
    """Compute a tile of sums by one instruction; blocks of loaded codes go into its inner loop.

    All reduction axes but the last stay outside.
    """
    row, column, *outer, depth = sch.get_loops(product)[-2 - reductions :]
    calls = marked_int(sch, product, "calls")
    depth, call, step = sch.split(depth, [None, calls, marked_int(sch, product, "depth")])
    vectors, vector = sch.split(column, [None, marked_int(sch, product, "lanes")])
    intrinsic = marked(sch, product, "intrinsic")
    # All rows use a vector of B before the next is loaded, or there would be too few registers.
    sch.reorder(*outer, depth, call, row, vectors, vector, step)
    for loop in (call, row, vectors):
        sch.unroll(loop)
    for block in loaded:
        _load_codes(sch, block, depth)
    start = sch.decompose_reduction(product, outer[0] if outer else depth)
    sch.vectorize(sch.get_loops(start)[-1])
    sch.tensorize(vector, intrinsic)


def _load_codes(sch: Schedule, staged: Block, depth: Loop) -> None:
    """Load a vector of codes of each row as the sum goes on: NEON multiplies from registers."""
    sch.compute_at(staged, depth, preserve_unit_loops=True)
    loops = sch.get_loops(staged)
    if extent(sch, loops[-1]) > 1:
        vectorize_inner(sch, loops[-1], extent(sch, loops[-1]))
    sch.unroll(loops[-2])


def _convert_codes(sch: Schedule, staged: Block) -> None:
    """Convert all codes before the product: x86 broadcasts from memory.

    What is stored piece by piece and then broadcast would wait for each store to be forwarded.
    """
    *outer, codes = sch.get_loops(staged)
    vectorize_inner(sch, codes, _CONVERTED, unroll=False)
    sch.parallel(fuse(sch, outer))
