"""Four products of int8 codes added in int16 before they are widened, where the weights allow it.

Products are added in pairs for any weights but -128. A quad takes five instructions for 32 codes
where two pairs take six, but may overflow: the largest code of a row is 128 in size, so that the
sizes of the four weights may be 255 together at most. That holds for most of trained weights, not
for all: bits in front of each panel of B say for which blocks of 32 codes it holds in every column,
and the others are added in pairs.
"""

import numpy as np

from edgeopt.compile.kernels.microkernel import REGISTERS, load_vectors

#: Codes of a block, and of a half of a vector, which one instruction multiplies.
BLOCK = 32
_HALF = 8
#: Sizes of weights whose products with codes from -128 on fit int16 together.
_MOST = (2**15 - 1) // 128
#: Blocks for each branch back, whose bits share one byte.
_UNROLL = 4
#: Registers that one load of B fills at most: two columns of a block.
_LOADED = 4


def find_quads(panels: np.ndarray) -> np.ndarray:
    """Tell of each block of panels [panel, block, width, 32] whether its quads fit int16."""
    sizes = np.abs(panels.astype(np.int32))
    sums = sizes.reshape(*panels.shape[:-1], BLOCK // _HALF, _HALF).sum(axis=-2)
    fits: np.ndarray = (sums <= _MOST).all(axis=(-1, -2))
    return fits


def fits_bits(blocks: int, width: int) -> bool:
    """Tell whether one block's room in front of a panel holds the bits of all blocks."""
    turns, rest = divmod(blocks, _UNROLL)
    return turns + rest <= width * BLOCK


def write_bits(quads: np.ndarray, width: int) -> np.ndarray:
    """Write the bits of panels [panel, block] as what lies in front: int8 [panel, 1, width, 32].

    A byte for every four blocks, the first in its lowest bit, then one for each block that is left.
    """
    count, blocks = quads.shape
    turns = blocks // _UNROLL
    unrolled = quads[:, : turns * _UNROLL].reshape(count, turns, _UNROLL)
    room = np.zeros((count, width * BLOCK), np.uint8)
    room[:, :turns] = np.packbits(unrolled, axis=2, bitorder="little")[..., 0]
    rest = quads[:, turns * _UNROLL :]
    room[:, turns : turns + rest.shape[1]] = rest
    return room.view(np.int8).reshape(count, 1, width, BLOCK)


def walk_blocks(height: int, width: int) -> list[str]:
    """Add up $3 steps of 16 codes: blocks of two, each as its bit says, then one if one is left.

    A is at $0 and B at $1, with its bits in front. Sums are the first height * width registers.
    """
    quad, pairs = (_block(height, width, quad=quad) for quad in (True, False))
    lines = [
        f"sub x13, $1, #{width * BLOCK}",
        f"lsr x9, $3, #{_UNROLL.bit_length()}",
        f"ubfx x10, $3, #1, #{_UNROLL.bit_length() - 1}",
        "cbz x9, 2f",
        "1:",
        "ldrb w12, [x13], #1",
    ]
    for place in range(_UNROLL):
        lines += [f"tbz w12, #{place}, {10 + place}f", *quad, f"{20 + place}:"]
    lines += ["subs x9, x9, #1", "b.ne 1b", "2:", "cbz x10, 4f"]
    lines += ["3:", "ldrb w12, [x13], #1", "tbz w12, #0, 14f", *quad, "24:"]
    lines += ["subs x10, x10, #1", "b.ne 3b", "4:", "tbz $3, #0, 6f"]
    lines += [*_step(height, width), "6:", "b 7f"]
    # What is needed seldom lies behind, where it is no part of the loops.
    for place in range(_UNROLL + 1):
        lines += [f"{10 + place}:", *pairs, f"b {20 + place}b"]
    return [*lines, "7:"]


def count_block(height: int, width: int, *, quad: bool) -> float:
    """Count the instructions of one block, with its share of what goes around."""
    return len(_block(height, width, quad=quad)) + 1 + 3 / _UNROLL + (not quad)


def _block(height: int, width: int, *, quad: bool) -> list[str]:
    """Multiply two steps of every row by those of every column."""
    first = height * width
    left = list(range(first, first + 2 * height))
    return [*_load_rows(left), *_columns(height, width, left, quad=quad)]


def _step(height: int, width: int) -> list[str]:
    """Multiply one last step; the other half of B's block is not read by any."""
    first = height * width
    left = list(range(first, first + height))
    return [*_load_rows(left), *_columns(height, width, [*left, *left], quad=False, steps=1)]


def _load_rows(left: list[int]) -> list[str]:
    parts = [left[start : start + _LOADED] for start in range(0, len(left), _LOADED)]
    return [load_vectors(part, "$0") for part in parts]


def _columns(height: int, width: int, left: list[int], *, quad: bool, steps: int = 2) -> list[str]:
    """Multiply rows by all columns, two at a time, or four where rows are few.

    Each of a product's instructions waits for the one before: cores in program order need others
    in between.
    """
    together = 4 if height == 1 and width % 4 == 0 and _spare(height, width, 4) >= 0 else 2
    lines = []
    for first in range(0, width, together):
        lines += _some_columns((height, width), range(first, first + together), left, quad, steps)
    return lines


def _spare(height: int, width: int, together: int) -> int:
    """Count the registers that are left: of sums, rows, columns and products."""
    return REGISTERS - (height * width + 2 * height + together // 2 * _LOADED + together * height)


def _some_columns(
    tile: tuple[int, int], columns: range, left: list[int], quad: bool, steps: int
) -> list[str]:
    """Multiply rows by columns, each pair of registers the two steps of one."""
    height, width = tile
    start = height * width + 2 * height
    right = list(range(start, start + 2 * len(columns)))
    free = list(range(right[-1] + 1, REGISTERS))
    lines = [
        load_vectors(right[first : first + _LOADED], "$1")
        for first in range(0, len(right), _LOADED)
    ]
    pairs = [(row, column) for column in range(len(columns)) for row in range(height)]
    for begin in range(0, len(pairs), len(free)):
        part = list(zip(pairs[begin : begin + len(free)], free, strict=False))
        for step in range(steps):
            fresh = step == 0 or not quad
            for half in range(2):
                for (row, column), product in part:
                    a, b = left[step * height + row], right[2 * column + step]
                    lines.append(_product(product, a, b, upper=half == 1, fresh=fresh))
                fresh = False
            if not quad or step == steps - 1:
                lines += [
                    f"sadalp v{row * width + columns[column]}.4s, v{product}.8h"
                    for (row, column), product in part
                ]
    return lines


def _product(product: int, a: int, b: int, *, upper: bool, fresh: bool) -> str:
    name = ("smull" if fresh else "smlal") + ("2" if upper else "")
    lanes = "16b" if upper else "8b"
    return f"{name} v{product}.8h, v{a}.{lanes}, v{b}.{lanes}"
