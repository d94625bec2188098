"""Tiles of convolutions: how many columns of the image and output channels are computed at once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import tile
from edgeopt.tiles import Tile, TileKey

if TYPE_CHECKING:
    from edgeopt.compile.kernels.conv import Window

#: Kinds of dense convolutions; of an odd number of channels tiles are chosen otherwise.
DENSE, ODD = "conv", "odd_conv"
#: Vectors of output channels across a dense tile where A is broadcast from memory.
_MOST_VECTORS = 3
#: Columns of a channelwise tile where no vector divides the channels.
_SCALAR_COLUMNS = 4
#: Columns of a channelwise tile for cores that issue in program order; the last at stride 1 only,
#: where neighbours share what they load.
_TALL = (4, 7, 14)
#: float32 lanes of a vector of NEON.
_NEON_LANES = 4
#: Registers that a tile of an odd number of channels may count on, on other cores and on those that
#: issue in program order.
_ODD, _ODD_ORDERED = 0.5, 0.625
#: Taps of a window whose weights have room in NEON's registers beside sums and what is read, and
#: columns of a tile whose window is walked line by line, of floats and of codes.
MOST_TAPS, _LINED, _LINED_CODES = 16, range(4, 13), range(4, 9)


def rank_tiles(cpu: Cpu, key: TileKey) -> list[Tile]:
    """List the tiles of a dense convolution in one group, the best first."""
    # The values of an odd number of channels are loaded one by one, those of all taps ahead.
    # A core in program order waits longer for a small tile than for a few of them.
    odd = key.kind == ODD and cpu.vector_a
    if odd:
        share = _ODD_ORDERED if cpu.in_order else _ODD
        cpu = replace(cpu, registers=int(cpu.registers * share))
    ranked = tile.rank_tiles(cpu, key.rows, key.columns)
    if odd:
        # Columns beyond the last one are clamped one by one.
        ranked.sort(key=lambda shape: key.rows % shape[0] != 0)
    if cpu.vector_a:
        return ranked
    # Measured on AVX-512: 7 x 64, which fills the register file, is moved about by LLVM.
    return [shape for shape in ranked if shape[1] <= _MOST_VECTORS * cpu.lanes]


def dense_tile(cpu: Cpu, window: "Window", outputs: int, dtype: object) -> Tile | None:
    """Choose how many columns of the image and how many output channels a tile has.

    Returns None for groups of outputs that no vector divides: a panel lies within one group.
    dtype: that of the filters as they are stored.
    """
    columns = window.output[1]
    if window.groups == 1:
        kind = ODD if tile.unroll_of(window.inputs) == 1 else DENSE
        key = TileKey(kind, columns, outputs, window.depth, str(dtype))
        return tile.choose_tuned(cpu, key, rank_tiles(cpu, key))
    each = outputs // window.groups
    lanes = _lanes_within(cpu, each)
    if lanes < 4:
        return None
    vectors = max(count for count in (1, 2, 3, 4) if each % (count * lanes) == 0)
    spare = 1 if cpu.vector_a else 0
    fitting = [
        height
        for height in range(1, min(columns, 12) + 1)
        if height * (vectors + spare) + vectors + 2 <= cpu.registers
    ]
    best = max(fitting, key=lambda height: (columns / tile.round_up(columns, height), height))
    return best, vectors * lanes


def _lanes_within(cpu: Cpu, channels: int) -> int:
    """Choose the longest vector that divides so many channels, or loads would gather."""
    lanes = cpu.lanes
    while channels % lanes:
        lanes //= 2
    return lanes


def channel_tile(cpu: Cpu, window: "Window", outputs: int) -> tuple[int, int]:
    """Choose columns and channels of a channelwise tile."""
    each = outputs // window.groups
    # A vector of two groups would gather what it multiplies, value by value: where a group has
    # vectors of its own, a tile lies within it.
    channels = outputs if each % _NEON_LANES else each
    lanes = _lanes_within(cpu, channels)
    # On NEON one vector by 4 to 7 columns leaves registers for nine weights.
    several = (1,) if cpu.vector_a else (2, 3, 1)
    width = next((lanes * n for n in several if channels % (lanes * n) == 0), lanes)
    columns = window.output[1]
    if lanes == 1:
        return min(_SCALAR_COLUMNS, columns), 1
    candidates: Sequence[int] = (4, 5, 6, 7) if cpu.vector_a else (4, 7, 8)
    if cpu.vector_a and window.inputs == 1 and math.prod(window.kernel) > MOST_TAPS:
        # Line by line weights take few registers: sums may have the others.
        lined = _LINED if lanes == _NEON_LANES else _LINED_CODES
        height = max(lined, key=lambda n: (columns / tile.round_up(columns, n), n))
        return min(height, columns), width
    if cpu.vector_a and lanes > _NEON_LANES:
        # Codes have two vectors of sums for each column.
        candidates = (4, 5)
    if cpu.in_order and cpu.registers > 16 and lanes == _NEON_LANES:
        # Nothing of the next tile hides the latency of this one. llvm-mca, Cortex-A53.
        taller = _TALL if window.strides[1] == 1 else _TALL[:-1]
        height = max(taller, key=lambda n: (columns / tile.round_up(columns, n), n))
        return min(height, columns), width
    height = max(candidates, key=lambda n: (columns / tile.round_up(columns, n), -n))
    return min(height, columns), width
