"""3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3).

36 products make 16 outputs where the plain sum takes 144. Tiles of 6x6 inputs that overlap by 2 are
transformed, multiplied channel by channel with filters that were transformed when the model was
compiled, and transformed back. The matrices are those of Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (2015), for the points 0, 1, -1, 2, -2 and infinity. In float32 the
result is within 2e-5 of the plain sum, relative to its largest value: the price of the powers of 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import tile
from edgeopt.compile.kernels.conv import Window, pad
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    blocks_of,
    extent,
    inline_all,
    mark,
    marked,
    marked_int,
    vectorize_inner,
)
from edgeopt.filters import STEP, TILE, is_transformed

KIND = "winograd"

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
#: Widths of panels that two or three vectors make.
_WIDTHS = (32, 24, 16, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A convolution by tiles of 4x4 outputs, and the register tile of its products."""

    window: Window
    outputs: int
    #: Tiles along a row of tiles, and columns, that one kernel multiplies at a time.
    height: int
    width: int
    #: Rows of tiles whose transforms are kept at a time.
    strip: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows of tiles, and tiles in each."""
        rows, columns = self.window.output
        return -(-rows // STEP), -(-columns // STEP)


def plan_winograd(cpu: Cpu, window: Window, outputs: int) -> Plan | None:
    """Plan a convolution by tiles; None where the plain sum is as fast, or another kind."""
    plain = window.kernel == (3, 3) and window.strides == (1, 1) and window.dilation == (1, 1)
    if not plain or window.groups != 1 or window.size is not None:
        return None
    inputs = window.shape[3]
    if not is_transformed(cpu.lanes, inputs, outputs, window.output):
        return None
    rows, columns = window.output
    grid = -(-rows // STEP), -(-columns // STEP)
    height, width = tile.choose_tile(cpu, grid[1], outputs)
    if outputs % width:
        # The outputs' transform reads whole panels, so panels are what divides the outputs.
        width = next(n for n in _WIDTHS if n <= 2 * cpu.lanes and outputs % n == 0)
    each = 4 * TILE**2 * grid[1] * (inputs + width)
    strip = _strip(cpu, window, grid[0], each)
    return Plan(window=window, outputs=outputs, height=height, width=width, strip=strip)


def _strip(cpu: Cpu, window: Window, rows: int, each: int) -> int:
    """Choose the rows of tiles, of so many bytes each, that stay in L2; all, where all do."""
    if rows * each <= cpu.l2 or window.output[0] % STEP:
        return rows
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * each <= cpu.l2 // 2]
    return max(fitting, default=1)


def transform_filters(filters: np.ndarray, width: int) -> np.ndarray:
    """Transform [3, 3, I, O] to panels [O / width, 6, 6, I, width]."""
    matrix = np.array(_FILTER)
    spread = np.einsum("iy,jx,yxco->ijco", matrix, matrix, filters.astype(np.float64))
    inputs, outputs = filters.shape[2:]
    split = spread.reshape(TILE, TILE, inputs, outputs // width, width)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 2, 4), np.float32)


def _row_of(
    matrix: Sequence[Sequence[float]], row: tirx.Expr, read: Callable[[int], tirx.Expr]
) -> tirx.Expr:
    """Multiply one row of a constant matrix with a vector; the row is known once unrolled."""
    sums = [_weighted(factors, read) for factors in matrix]
    result = sums[-1]
    for place in reversed(range(len(sums) - 1)):
        result = tirx.Select(row.equal(place), sums[place], result)
    return result


def _weighted(factors: Sequence[float], read: Callable[[int], tirx.Expr]) -> tirx.Expr:
    total: tirx.Expr | None = None
    for place, factor in enumerate(factors):
        if factor:
            term = read(place) if factor == 1 else read(place) * number(factor)
            total = term if total is None else total + term
    assert total is not None
    return total


def define_winograd(plan: Plan) -> Callable[[te.Tensor, te.Tensor], te.Tensor]:
    """Make the TE definition: image [N, H, W, C] and transformed filters."""
    window, (rows, columns) = plan.window, plan.grid
    batch, _, _, inputs = window.shape
    top, left, _, _ = window.pads
    # The last tiles may reach beyond the padding.
    bottom, right = (
        count * STEP + 2 - size - before
        for count, size, before in zip(plan.grid, window.shape[1:3], (top, left), strict=True)
    )
    room = Window(
        shape=window.shape, kernel=(3, 3), strides=(1, 1), pads=(top, left, bottom, right)
    )

    def define(x: te.Tensor, filters: te.Tensor) -> te.Tensor:
        padded = pad(room, x, number(0.0))
        half = te.compute(
            (batch, rows, columns, TILE, TILE, inputs),
            lambda b, ty, tx, i, z, c: _row_of(
                _INPUT, i, lambda y: padded(b, ty * STEP + y, tx * STEP + z, c)
            ),
            name="half_input",
            attrs=mark(role="half_input"),
        )
        whole = te.compute(
            (batch, TILE, TILE, rows, columns, inputs),
            lambda b, i, j, ty, tx, c: _row_of(_INPUT, j, lambda z: half(b, ty, tx, i, z, c)),
            name="input",
            attrs=mark(role="input"),
        )
        return _define_output(plan, _define_sums(plan, whole, filters))

    return define


def _define_sums(plan: Plan, whole: te.Tensor, filters: te.Tensor) -> te.Tensor:
    """Sum over the channels of [batch, 6, 6, rows of tiles, tiles, channel], place by place."""
    batch, (rows, columns) = plan.window.shape[0], plan.grid
    shape, inputs = (plan.height, plan.width), plan.window.shape[3]
    channel = te.reduce_axis((0, inputs), "c")

    def multiply(*at: tirx.Expr) -> tirx.Expr:
        b, i, j, ty, mo, no, mi, ni = at
        tx = tile.clamped(mo, mi, plan.height, columns)
        value = whole(b, i, j, ty, tx, channel) * filters(no, i, j, channel, ni)
        return te.sum(value, axis=channel)

    product = te.compute(
        (batch, TILE, TILE, rows, -(-columns // shape[0]), plan.outputs // shape[1], *shape),
        multiply,
        name="product",
        attrs=mark(
            kind=KIND,
            pattern="epilogue",
            rows=plan.height,
            columns=plan.width,
            strip=plan.strip,
            unroll=tile.unroll_of(inputs),
        ),
    )
    return te.compute(
        (batch, TILE, TILE, rows, columns, plan.outputs),
        lambda b, i, j, ty, tx, o: tile.untile(product, (b, i, j, ty), (tx, o), shape),
        name="sums",
        attrs=mark(role="sums"),
    )


def _define_output(plan: Plan, sums: te.Tensor) -> te.Tensor:
    """Transform sums back to outputs, and read them as an image."""
    batch, (rows, columns) = plan.window.shape[0], plan.grid
    half = te.compute(
        (batch, rows, columns, STEP, TILE, plan.outputs),
        lambda b, ty, tx, q, j, o: _row_of(_OUTPUT, q, lambda i: sums(b, i, j, ty, tx, o)),
        name="half_output",
        attrs=mark(role="half_output"),
    )
    whole = te.compute(
        (batch, rows, columns, STEP, STEP, plan.outputs),
        lambda b, ty, tx, q, r, o: _row_of(_OUTPUT, r, lambda j: half(b, ty, tx, q, j, o)),
        name="output",
        attrs=mark(role="output"),
    )

    def result(b: tirx.Expr, y: tirx.Expr, z: tirx.Expr, o: tirx.Expr) -> tirx.Expr:
        tiles = tirx.floordiv(y, STEP), tirx.floordiv(z, STEP)
        return whole(b, *tiles, tirx.floormod(y, STEP), tirx.floormod(z, STEP), o)

    return te.compute((batch, *plan.window.output, plan.outputs), result, name="conv")


def schedule_winograd(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule the three stages: per strip of tiles all inputs, then panel by panel the rest."""
    width, strip = marked_int(sch, product, "columns"), marked_int(sch, product, "strip")
    own = ("padded", "half_input", "input", "sums", "half_output", "output")
    blocks = blocks_of(sch)
    roles = [marked(sch, block, "role") for block in blocks[:-1]]
    placed = {role: block for role, block in zip(roles, blocks, strict=False) if role in own}
    known = [sch.get(block).name_hint for block in (*placed.values(), product)]
    inline_all(sch, [each for each in blocks[:-1] if sch.get(each).name_hint not in known])
    last = blocks_of(sch)[-1]
    batch, row, column, channel = sch.get_loops(last)
    rows = extent(sch, sch.get_loops(placed["sums"])[3])
    count = extent(sch, batch) * (rows // strip)
    panels, panel = sch.split(channel, [None, width])
    strips, row = sch.split(row, [rows // strip, None])
    sch.reorder(batch, strips, panels, row, column, panel)
    vectorize_inner(sch, panel, cpu.lanes)
    outer = sch.fuse(batch, strips)
    if count > 1:
        sch.parallel(outer)
    else:
        sch.parallel(panels)
    for role in ("output", "half_output", "sums"):
        sch.compute_at(placed[role], panels, preserve_unit_loops=True)
    _place_products(sch, cpu, placed["sums"], product)
    for role in ("input", "half_input", "padded"):
        if count > 1 and role in placed:
            sch.compute_at(placed[role], outer, preserve_unit_loops=True)
    _place_transform(sch, cpu, placed["output"], placed["half_output"], (3, 4))
    _place_transform(sch, cpu, placed["input"], placed["half_input"], (1, 2), shared=count == 1)
    if "padded" in placed:
        loops = sch.get_loops(placed["padded"])
        vectorize_inner(sch, loops[-1], cpu.lanes)
        if count == 1:
            sch.parallel(sch.fuse(*loops[:2]))


def _place_products(sch: Schedule, cpu: Cpu, sums: Block, product: Block) -> None:
    """Multiply in register tiles: for each place in the tile, all tiles of the strip."""
    shape = (marked_int(sch, product, "rows"), marked_int(sch, product, "columns"))
    loops = sch.get_loops(sums)
    tiles, tile_in, panels, column_in = tile.tile_output(sch, loops[-2], loops[-1], shape)
    sch.reorder(panels, tiles, tile_in, column_in)
    tile.finish_output(sch, tile_in, column_in, cpu.lanes)
    unroll = marked_int(sch, product, "unroll")
    first, depth = tile.place_product(sch, cpu, product, at=tiles, reductions=1, unroll=unroll)
    if cpu.vector_a and unroll > 1:
        staged = sch.cache_read(product, 0, "global")
        tile.stage_rows(sch, staged, depth)
    tile.seal_product(sch, product, first)


def _place_transform(
    sch: Schedule,
    cpu: Cpu,
    whole: Block,
    half: Block,
    places: tuple[int, int],
    *,
    shared: bool = False,
) -> None:
    """Transform a vector of channels at a time, the half of one row in registers."""
    axes = len(sch.get(whole).iter_vars)
    loops = sch.get_loops(whole)[-axes:]
    first, second = (loops[place] for place in places)
    rest = [loop for place, loop in enumerate(loops[:-1]) if place not in places]
    lanes = cpu.lanes
    while extent(sch, loops[-1]) % lanes:
        lanes //= 2
    vectors, vector = sch.split(loops[-1], [None, lanes])
    sch.reorder(*rest, vectors, first, second, vector)
    sch.compute_at(half, first, preserve_unit_loops=True)
    sch.vectorize(vector)
    sch.unroll(first)
    sch.unroll(second)
    tap, channel = sch.get_loops(half)[-2:]
    sch.unroll(tap)
    sch.vectorize(channel)
    if shared:
        sch.parallel(sch.fuse(*rest[:2]))
