"""Activations times a constant matrix: packed panels, register tiles, fused epilogues.

The tile is part of the definition: P[mo, no, mi, ni] = sum over k of A[row, k] * B[no, k, ni], and
C reads P. Weights are packed with numpy when the model is compiled. A weight of float16 or int8
stays so in memory and is widened in the inner loop, or multiplied in half where the core can; one
scale per column commutes with the sum over k and is applied once, in the epilogue.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import levels, tile
from edgeopt.compile.kernels.microkernel import HALF, SINGLE, Numbers
from edgeopt.compile.kernels.scheduling import (
    Block,
    Loop,
    Schedule,
    blocks_of,
    extent,
    fuse,
    inline_all,
    mark,
    marked,
    marked_int,
    name_of,
)
from edgeopt.tiles import Tile, TileKey

KIND = "gemm"
#: Products whose A is packed too, for a tile written in assembly.
PACKED = "packed_gemm"
#: Products of one row, around a loop written in assembly.
ROW = "row_gemm"

#: The role of a block that loads rows as vectors along K, for packing to transpose.
GATHERED = "gathered"

#: Rows from which packing A is worth its time.
FEWEST_PACKED = 4

#: Reads an element of A by tile: (*outer, tile of rows, row in it, k).
RowReader = Callable[..., tirx.Expr]


@dataclass(frozen=True, slots=True)
class Gemm:
    """x[..., K] times a packed matrix of so many columns, and the tile to compute it by."""

    shape: tuple[int, ...]
    columns: int
    height: int
    width: int
    #: What a tile in assembly multiplies.
    numbers: Numbers = SINGLE

    @property
    def depth(self) -> int:
        """Length of the sum."""
        return self.shape[-1]

    @property
    def row_axis(self) -> int:
        """The axis whose rows are tiled: the last one that is longer than 1.

        Tiling a flattened product of axes is not quasi-affine, and every schedule primitive
        refuses what is not.
        """
        leading = self.shape[:-1]
        long = [axis for axis, size in enumerate(leading) if size > 1]
        return long[-1] if long else len(leading) - 1

    @property
    def rows(self) -> int:
        """Length of the tiled axis."""
        return self.shape[self.row_axis]

    @property
    def outer_axes(self) -> list[int]:
        """The other axes of rows that are longer than 1."""
        leading = range(len(self.shape) - 1)
        return [axis for axis in leading if self.shape[axis] > 1 and axis != self.row_axis]

    @property
    def outer_shape(self) -> list[int]:
        """Lengths of the other axes of rows."""
        return [self.shape[axis] for axis in self.outer_axes]

    @property
    def tiled_shape(self) -> list[int]:
        """Shape of the product as it is computed: outer, MO, NO, MI, NI."""
        tiles = [-(-self.rows // self.height), -(-self.columns // self.width)]
        return [*self.outer_shape, *tiles, self.height, self.width]

    def index(self, outer: Sequence[tirx.Expr], row: tirx.Expr) -> list[tirx.Expr]:
        """Find a row of x by its place on the tiled axis and on the outer ones."""
        index: list[tirx.Expr] = [tirx.const(0, "int32")] * (len(self.shape) - 1)
        for axis, value in zip(self.outer_axes, outer, strict=True):
            index[axis] = value
        index[self.row_axis] = row
        return index

    @property
    def output_shape(self) -> list[int]:
        """Shape of the product as it is stored."""
        return [*self.shape[:-1], self.columns]

    def marks(self, cpu: Cpu, bits: int, *, unroll: int = 0) -> dict[str, int | str]:
        """Annotate the product's block for its schedule; bits are those of a stored weight.

        unroll: steps of K that are unrolled; 0 for as many as are usual.
        """
        return mark(
            kind=_kind_of(cpu, self.rows, plain=bits == 32),
            pattern="epilogue",
            rows=self.height,
            columns=self.width,
            axis=self.row_axis,
            depth=self.depth,
            unroll=unroll or tile.unroll_of(self.depth),
            bytes=self.depth * self.columns * bits // 8,
            read=int(np.prod(self.shape)) * 4,
            numbers=self.numbers.dtype,
        )


def plan_gemm(cpu: Cpu, shape: tuple[int, ...], columns: int, dtype: object) -> Gemm:
    """Choose the tile of a product by its sizes; dtype: that of the weight as it is stored."""
    plan = Gemm(shape, columns, 1, 1)
    kind = _kind_of(cpu, plan.rows, plain=str(dtype) == "float32")
    key = TileKey(kind, plan.rows, columns, plan.depth, str(dtype))
    chosen = tile.choose_tuned(cpu, key, rank_tiles(cpu, key))
    return Gemm(shape, columns, *chosen, _numbers_of(cpu, key))


def rank_tiles(cpu: Cpu, key: TileKey) -> list[Tile]:
    """List the tiles of a product, that of least work first; none where A is packed in vain."""
    if key.kind == KIND:
        return tile.rank_tiles(cpu, key.rows, key.columns)
    if key.kind == ROW:
        return tile.rank_row_tiles(key.columns) if cpu.machine == "aarch64" else []
    if not _packs(cpu, key.rows):
        return []
    return tile.rank_packed_tiles(key.rows, key.columns, _numbers_of(cpu, key))


def _numbers_of(cpu: Cpu, key: TileKey) -> Numbers:
    """Say what is multiplied: halves are where they are stored so and the core can."""
    return HALF if key.kind == PACKED and cpu.half and key.dtype == "float16" else SINGLE


def _kind_of(cpu: Cpu, rows: int, *, plain: bool) -> str:
    """Choose the kernel of a product; plain: what is stored is float32."""
    if _packs(cpu, rows):
        return PACKED
    return ROW if rows == 1 and plain and cpu.machine == "aarch64" else KIND


def is_packed(cpu: Cpu, plan: Gemm) -> bool:
    """Tell whether a product is worth packing A: with few rows that is much of the work."""
    return _packs(cpu, plan.rows)


def _packs(cpu: Cpu, rows: int) -> bool:
    return cpu.machine == "aarch64" and rows >= FEWEST_PACKED


def pack_columns(weight: np.ndarray, width: int) -> np.ndarray:
    """Lay out a [K, N] matrix as panels [N / width, K, width], zeros beyond N."""
    depth, columns = weight.shape
    panels = -(-columns // width)
    padded = np.zeros((depth, panels * width), weight.dtype)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(depth, panels, width).transpose(1, 0, 2))


def define_rows(
    plan: Gemm, x: te.Tensor, convert: Callable[[tirx.Expr], tirx.Expr], *, depth: int = 0
) -> RowReader:
    """Read A by tiles of rows; with a depth, through a small buffer of converted values.

    A depth beyond K repeats the last value, which the matrix multiplies by zero.
    """

    def element(*at: tirx.Expr) -> tirx.Expr:
        *outer, mo, mi, k = at
        row = tile.clamped(mo, mi, plan.height, plan.rows)
        within = k if depth <= plan.depth else tirx.min(k, plan.depth - 1)
        return convert(x(*plan.index(outer, row), within))

    if not depth:
        return element
    shape = [*plan.outer_shape, plan.tiled_shape[-4], plan.height, depth]
    buffer: RowReader = te.compute(shape, element, name="staged", attrs=mark(role="staged"))
    return buffer


def pack_rows(plan: Gemm, x: te.Tensor) -> RowReader:
    """Pack A by tiles of rows, [*outer, MO, K, vectors of rows, row in it]; read by row and k.

    Vectors are an axis of their own, so that the last one is whole wherever the buffer is placed.
    """
    numbers = plan.numbers
    lanes = numbers.lanes

    def element(*at: tirx.Expr) -> tirx.Expr:
        *outer, mo, k, vector, lane = at
        row = mo * plan.height + vector * lanes + lane
        whole = plan.rows % plan.height == 0 and plan.height % lanes == 0
        value = x(*plan.index(outer, row if whole else tirx.min(row, plan.rows - 1)), k)
        return value if numbers is SINGLE else tirx.Cast(numbers.dtype, value)

    outer = [*plan.outer_shape, plan.tiled_shape[-4]]
    packed = pack_vectors(element, outer, plan.depth, plan.height, numbers)

    def read(*at: tirx.Expr) -> tirx.Expr:
        *tiles, mi, k = at
        return packed(*tiles, k, tirx.floordiv(mi, lanes), tirx.floormod(mi, lanes))

    return read


def pack_vectors(
    element: Callable[..., tirx.Expr],
    outer: Sequence[int],
    depth: int,
    height: int,
    numbers: Numbers = SINGLE,
) -> te.Tensor:
    """Pack element(*outer, k, vector, lane) as [*outer, K, vectors, lanes] for the assembly.

    What several k of one row are is loaded as vectors first, which packing transposes.
    """
    lanes = numbers.lanes
    vectors = -(-height // lanes)

    def gather(*at: tirx.Expr) -> tirx.Expr:
        *place, vector, lane, k = at
        return element(*place, k, vector, lane)

    gathered = te.compute(
        [*outer, vectors, lanes, depth], gather, name="gathered", attrs=mark(role=GATHERED)
    )

    def transpose(*at: tirx.Expr) -> tirx.Expr:
        *place, k, vector, lane = at
        return gathered(*place, vector, lane, k)

    shape = [*outer, depth, vectors, lanes]
    marks = mark(role="packed", item=np.dtype(numbers.dtype).itemsize)
    return te.compute(shape, transpose, name="packed", attrs=marks)


def result_of(plan: Gemm, product: te.Tensor, at: Sequence[tirx.Expr]) -> tirx.Expr:
    """Read an element of the stored product from the tiled one."""
    outer = [at[axis] for axis in plan.outer_axes]
    place = (at[plan.row_axis], at[-1])
    return tile.untile(product, outer, place, (plan.height, plan.width))


def _stage_rows(cpu: Cpu, plan: Gemm, x: te.Tensor) -> RowReader:
    return define_rows(plan, x, lambda value: value, depth=plan.depth if cpu.vector_a else 0)


def define_gemm(cpu: Cpu, plan: Gemm) -> Callable[..., te.Tensor]:
    """Make the TE definition: x, packed weight and, if any, scales of columns give the product.

    One scale may be for all columns.
    """

    def define(x: te.Tensor, weight: te.Tensor, *scales: te.Tensor) -> te.Tensor:
        marks = plan.marks(cpu, 8 * np.dtype(str(weight.dtype)).itemsize)
        panels = weight if plan.numbers is HALF else tile.widen_panels(weight)
        product = define_product(cpu, plan, x, panels, marks)

        def result(*at: tirx.Expr) -> tirx.Expr:
            value = result_of(plan, product, at)
            if not scales:
                return value
            return value * scales[0](at[-1] if int(scales[0].shape[0]) > 1 else 0)

        return te.compute(plan.output_shape, result, name="gemm")

    return define


def define_product(
    cpu: Cpu, plan: Gemm, x: te.Tensor, panels: te.Tensor, marks: dict[str, int | str]
) -> te.Tensor:
    """Define the tiles of x times panels [panel, K, column] of what is multiplied."""
    rows = pack_rows(plan, x) if is_packed(cpu, plan) else _stage_rows(cpu, plan, x)
    k = te.reduce_axis((0, plan.depth), "k")

    def multiply(*at: tirx.Expr) -> tirx.Expr:
        *outer, mo, no, mi, ni = at
        left, right = rows(*outer, mo, mi, k), panels(no, k, ni)
        if plan.numbers is HALF:
            left, right = tirx.Cast("float32", left), tirx.Cast("float32", right)
        return te.sum(left * right, axis=k)

    return te.compute(plan.tiled_shape, multiply, name="product", attrs=marks)


def schedule_gemm(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a product with whatever elementwise work was fused before and after it."""
    tiles = schedule_tiles(sch, cpu, product)
    unroll = marked_int(sch, product, "unroll")
    _, depth = tile.place_product(sch, cpu, product, at=tiles.inner, reductions=1, unroll=unroll)
    for block in tiles.widened:
        tile.place_widened(sch, cpu, block, tiles.columns, unroll=unroll)
    for block in tiles.staged:
        tile.stage_rows(sch, block, depth)
    tile.seal_product(sch, product, depth)


@dataclass(frozen=True, slots=True)
class Tiles:
    """The loops over tiles of a product, and the blocks that its kernel places in them."""

    columns: Loop
    #: The one whose every step computes one tile.
    inner: Loop
    staged: list[Block]
    widened: list[Block]


def schedule_tiles(sch: Schedule, cpu: Cpu, product: Block) -> Tiles:
    """Tile the output of a product."""
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    kept, last = inline_around(sch, product, keep=("staged", tile.WIDENED, levels.ROLE))
    loops = sch.get_loops(last)
    axis = marked_int(sch, product, "axis")
    others = [loop for i, loop in enumerate(loops[:-1]) if i != axis and extent(sch, loop) > 1]
    rows, row_in, columns, column_in = tile.tile_output(sch, loops[axis], loops[-1], shape)
    # One row that is broadcast afterwards, as a gate is, is computed once per panel.
    one_row = all(extent(sch, loop) == 1 for loop in sch.get_loops(product)[:-4])
    broadcast = one_row and shape[0] == 1
    widened, staged = tile.inline_widened(sch, cpu, kept, 1 if broadcast else extent(sch, rows))
    # A widened panel is best used for all rows at once, if they stay in L2 from panel to panel.
    reread = bool(widened) and marked_int(sch, product, "read") <= cpu.l2
    if others and not (reread or broadcast) and marked_int(sch, product, "bytes") <= cpu.l2 // 2:
        # The weights stay in L2, so the rows go outermost and each core reads its own.
        sch.reorder(*others, columns, rows, row_in, column_in)
        sch.parallel(fuse(sch, others))
    else:
        sch.reorder(columns, *others, rows, row_in, column_in)
        sch.parallel(columns)
    tile.finish_output(sch, row_in, column_in, cpu.lanes)
    return Tiles(columns, columns if broadcast else rows, staged, widened)


def inline_around(
    sch: Schedule, product: Block, *, keep: tuple[str, ...]
) -> tuple[list[Block], Block]:
    """Inline the blocks around a product, except those whose role a kernel places itself.

    Returns the kept blocks in program order and the last block, whose loops become the tiles.
    """
    blocks = blocks_of(sch)
    place = [name_of(sch, block) for block in blocks].index(name_of(sch, product))
    inline_all(sch, blocks[place + 1 : -1])
    kept = [block for block in blocks[:place] if marked(sch, block, "role") in keep]
    inline_all(sch, [block for block in blocks[:place] if marked(sch, block, "role") not in keep])
    return kept, blocks[-1]
