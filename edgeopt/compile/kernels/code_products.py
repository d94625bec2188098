"""Products of codes whose operands are both packed, around a tile that is written in assembly.

Rows of codes are packed as the tile reads them. On 64-bit ARM they become int8 on the way; x86's
tile registers (AMX) multiply codes of either type.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import code_quads, packed, tile
from edgeopt.compile.kernels.amx_tile import AmxTile, tiles_of, write_amx_tile
from edgeopt.compile.kernels.code_tile import STEP, CodeTile, Method, write_code_tile
from edgeopt.compile.kernels.gemm import FEWEST_PACKED, Gemm, RowReader
from edgeopt.compile.kernels.scheduling import (
    Block,
    Schedule,
    extent,
    mark,
    marked,
    marked_int,
)
from edgeopt.compile.kernels.tile_intrinsics import register_code_tile, register_start
from edgeopt.tiles import Tile, TileKey

KIND = "packed_integer"
#: Those whose weights may be -128, where that makes a difference, for the choice of a tile.
SINGLE = "packed_single"
#: Those of tile registers, for the choice of a tile.
AMX = "packed_amx"
#: Heights and widths of tiles that are tried.
_HEIGHTS = range(1, 11)
_WIDTHS = (4, 8, 12, 16, 24, 32)


@dataclass(frozen=True, slots=True)
class CodeProduct:
    """A product of codes: its shape, its tile and the codes' type."""

    gemm: Gemm
    tile: CodeTile | AmxTile
    codes: str
    #: Groups of columns, each of which has rows of its own.
    groups: int = 1

    @property
    def depth(self) -> int:
        """Length of the sum, rounded up to whole steps."""
        return tile.round_up(self.gemm.depth, self.tile.step)

    @property
    def moved(self) -> int:
        """What the conversion of codes adds to each, and the zero point must gain."""
        return -128 if self.codes != self.tile.dtype else 0

    def convert(self, code: tirx.Expr) -> tirx.Expr:
        """Convert a code to what is multiplied: flipping the top bit moves it by 128."""
        if self.moved == 0:
            return code
        return tirx.reinterpret("int8", tirx.bitwise_xor(code, tirx.const(128, "uint8")))


def plan_product(
    cpu: Cpu, shape: tuple[int, ...], weight: np.ndarray, codes: str, *, groups: int = 1
) -> CodeProduct | None:
    """Choose the tile of least work, edges included; None where the CPU has no such tile.

    None as well where no tile divides a group of columns of the int8 weight [K, N].
    """
    columns = weight.shape[1]
    each = columns // groups
    plan = Gemm(shape, columns, 1, 1)
    if cpu.amx and groups == 1 and plan.rows >= FEWEST_PACKED:
        key = TileKey(AMX, plan.rows, columns, plan.depth, codes)
        chosen = tile.choose_tuned(cpu, key, rank_tiles(cpu, key))
        return CodeProduct(Gemm(shape, columns, *chosen), AmxTile(codes, *chosen), codes)
    if cpu.machine != "aarch64" or (groups > 1 and each % _WIDTHS[0]):
        return None
    kind = SINGLE if not cpu.dot_product and is_extreme(weight) else KIND
    key = TileKey(kind, plan.rows, columns, plan.depth, codes)
    ranked = [found for found in rank_tiles(cpu, key) if groups == 1 or each % found[1] == 0]
    chosen = tile.choose_tuned(cpu, key, ranked)
    made = _make_tile(cpu, kind, chosen)
    product = CodeProduct(Gemm(shape, columns, *chosen), made, codes, groups)
    fours = dataclasses.replace(product, tile=CodeTile("quad", *chosen))
    return fours if made.method == "pair" and _gains(weight, fours) else product


def _make_tile(cpu: Cpu, kind: str, shape: Tile) -> CodeTile:
    """Choose how a tile is computed: as matrices, which take two rows, where the core can."""
    method: Method = "single" if kind == SINGLE else "dot" if cpu.dot_product else "pair"
    if cpu.matrix_product and CodeTile("matrix", *shape).fits:
        method = "matrix"
    return CodeTile(method, *shape)


def step_of(cpu: Cpu) -> int:
    """Count the codes of a row that lie together in packed rows."""
    return AmxTile.step if cpu.amx else STEP


def prefers_flat(lines: int, columns: int) -> bool:
    """Tell whether tile registers hold rows of several lines of an image rather than of one."""
    return lines > 1 and 2 * columns <= AmxTile.rows_of_register


def is_extreme(weight: np.ndarray) -> bool:
    """Tell whether a weight is -128, whose products cannot be added in pairs as int16."""
    return bool((weight == -128).any())


def _gains(weight: np.ndarray, plan: CodeProduct) -> bool:
    """Tell whether adding in fours takes fewer instructions than in pairs."""
    height, width = plan.tile.height, plan.tile.width
    blocks = _split_panels(weight, plan)
    if plan.depth < code_quads.BLOCK or not code_quads.fits_bits(blocks.shape[1], width):
        return False
    share = code_quads.find_quads(blocks).mean()
    both = [code_quads.count_block(height, width, quad=quad) for quad in (True, False)]
    return bool(share * both[0] + (1 - share) * both[1] < 2 * CodeTile("pair", height, width).turn)


def rank_tiles(cpu: Cpu, key: TileKey) -> list[Tile]:
    """List the tiles of a product of codes, that of least work first; none on other CPUs."""
    if cpu.amx and key.kind == AMX:
        return _rank_amx_tiles(key)
    if cpu.machine != "aarch64" or key.kind == AMX:
        return []
    tried = [_make_tile(cpu, key.kind, (height, width)) for height in _HEIGHTS for width in _WIDTHS]
    steps = -(-key.depth // STEP)

    def work(each: CodeTile) -> float:
        tiles = -(-key.rows // each.height) * -(-key.columns // each.width)
        return tiles * (steps * each.work + each.fixed)

    fitting = [each for each in tried if each.fits and each.height <= key.rows]
    return [(each.height, each.width) for each in sorted(fitting, key=work)]


def _rank_amx_tiles(key: TileKey) -> list[Tile]:
    steps = -(-key.depth // AmxTile.step)

    def work(each: AmxTile) -> float:
        tiles = -(-key.rows // each.height) * -(-key.columns // each.width)
        return tiles * each.work(steps)

    ranked = sorted(tiles_of(key.dtype, key.rows), key=work)
    return [(each.height, each.width) for each in ranked]


def pack_weight(weight: np.ndarray, plan: CodeProduct) -> np.ndarray:
    """Lay out an int8 [K, N] matrix as panels [N / width, K / group, width, group].

    Beyond K and N are zeros. In fours, the bits of each panel come first.
    """
    panels = _split_panels(weight, plan)
    if plan.tile.lead:
        bits = code_quads.write_bits(code_quads.find_quads(panels), plan.tile.width)
        panels = np.concatenate([bits, panels], axis=1)
    return np.ascontiguousarray(panels)


def _split_panels(weight: np.ndarray, plan: CodeProduct) -> np.ndarray:
    group, width = plan.tile.group, plan.tile.width
    panels, groups = -(-weight.shape[1] // width), -(-plan.depth // group)
    padded = np.zeros((groups * group, panels * width), np.int8)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    split: np.ndarray = padded.reshape(groups, group, panels, width).transpose(2, 0, 3, 1)
    return split


def define_product(plan: CodeProduct) -> Callable[[te.Tensor, te.Tensor], te.Tensor]:
    """Make the TE definition of the tiled sums: codes and packed matrix give int32.

    With groups, codes have one more axis, before the last.
    """
    gemm, group, lead = plan.gemm, plan.tile.group, plan.tile.lead
    panels = gemm.columns // plan.groups // gemm.width
    marks = mark(
        kind=KIND,
        pattern="epilogue",
        rows=gemm.height,
        columns=gemm.width,
        axis=gemm.row_axis,
        bytes=gemm.depth * gemm.columns,
        method=plan.tile.method,
        depth=plan.depth,
        codes=plan.tile.dtype,
    )

    def define(codes: te.Tensor, weight: te.Tensor) -> te.Tensor:
        rows = _pack_rows(plan, codes)
        k = te.reduce_axis((0, plan.depth), "k")

        def multiply(*at: tirx.Expr) -> tirx.Expr:
            *outer, mo, no, mi, ni = at
            right = weight(no, tirx.floordiv(k, group) + lead, ni, tirx.floormod(k, group))
            part = [tirx.floordiv(no, panels)] if plan.groups > 1 else []
            left = tirx.Cast("int32", rows(*outer, *part, mo, mi, k))
            return te.sum(left * tirx.Cast("int32", right), axis=k)

        return te.compute(gemm.tiled_shape, multiply, name="product", attrs=marks)

    return define


def _pack_rows(plan: CodeProduct, codes: te.Tensor) -> RowReader:
    """Pack A by tiles of rows, [*outer, group if any, MO, K / step, row in it, code of a step].

    Codes beyond K repeat those of the last piece, which the matrix multiplies by zero: a piece is
    what divides K and a step, and is moved as one vector.
    """
    gemm, step = plan.gemm, plan.tile.step
    piece = math.gcd(gemm.depth, step)

    def element(*at: tirx.Expr) -> tirx.Expr:
        *outer, mo, ko, mi, ki = at
        part = [outer.pop()] if plan.groups > 1 else []
        row, k = mo * gemm.height + mi, ko * step + ki
        row = row if gemm.rows % gemm.height == 0 else tirx.min(row, gemm.rows - 1)
        if plan.depth != gemm.depth:
            last = gemm.depth // piece - 1
            k = tirx.min(tirx.floordiv(k, piece), last) * piece + tirx.floormod(k, piece)
        code = codes(*gemm.index(outer, row), *part, k)
        return code if codes.dtype == plan.tile.dtype else plan.convert(code)

    groups = [plan.groups] if plan.groups > 1 else []
    steps = plan.depth // step
    shape = [*gemm.outer_shape, *groups, gemm.tiled_shape[-4], steps, gemm.height, step]
    buffer = te.compute(
        shape, element, name="packed", attrs=mark(role="packed", item=1, piece=piece)
    )

    def read(*at: tirx.Expr) -> tirx.Expr:
        *tiles, mi, k = at
        return buffer(*tiles, tirx.floordiv(k, step), mi, tirx.floormod(k, step))

    return read


def schedule_product(sch: Schedule, cpu: Cpu, product: Block) -> None:
    """Schedule a product of codes: pack rows, then compute tiles of them for each panel."""
    columns, _ = packed.place_tiles(sch, cpu, product)
    row, column, _ = sch.get_loops(product)[-3:]
    chosen = _tile_of(sch, product, (extent(sch, row), extent(sch, column)))
    depth = marked_int(sch, product, "depth")
    start = sch.decompose_reduction(product, row)
    begin = register_start(chosen.height, chosen.width, "int32")
    sch.tensorize(sch.get_loops(start)[-1 if chosen.height == 1 else -2], begin)
    shape = (chosen.height, chosen.width, depth)
    intrinsic = register_code_tile(chosen.name, shape, (chosen.step, chosen.group), chosen.dtype)
    sch.tensorize(sch.get_loops(product)[-2 if chosen.height == 1 else -3], intrinsic)
    write = write_amx_tile(chosen) if isinstance(chosen, AmxTile) else write_code_tile(chosen)
    sch.annotate(columns, "pragma_import_llvm", write)


def _tile_of(sch: Schedule, product: Block, size: Tile) -> CodeTile | AmxTile:
    method = marked(sch, product, "method")
    if method == AmxTile.method:
        codes = marked(sch, product, "codes")
        assert codes is not None
        return AmxTile(codes, *size)
    return CodeTile(cast("Method", method), *size)
