"""The assembly of the tiles of floats on 64-bit ARM."""

import re

import pytest

from edgeopt.compile.kernels.microkernel import (
    HALF,
    HALF_DEPTH,
    SINGLE,
    Numbers,
    fits_registers,
    write_tile,
)

#: Steps of K in one turn of the loop.
STEPS = 16
TILES = [
    (h, v, numbers)
    for numbers in (SINGLE, HALF)
    for h in range(2, 17)
    for v in range(1, 5)
    if fits_registers(h, v, numbers)
]


def loop_of(height: int, vectors: int, numbers: Numbers = SINGLE) -> list[str]:
    """Cut the unrolled loop out of a tile's assembly, its branch included."""
    lines = write_tile(height, vectors, numbers).split("\\0A")
    return lines[lines.index("1:") + 1 : lines.index("b.ne 1b") + 1]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_tiles_loop_keeps_its_sums_in_registers(tile: tuple[int, int, Numbers]) -> None:
    loop = loop_of(*tile)
    assert sum(line.startswith("fmla") for line in loop) == STEPS * tile[0] * tile[1]
    assert not any(line.startswith(("st", "bl")) or "sp" in line for line in loop)
    assert sum(line.startswith("ld") for line in loop) <= STEPS * 2


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_tiles_loop_loads_each_value_once_and_before_it_is_used(
    tile: tuple[int, int, Numbers],
) -> None:
    height, vectors, numbers = tile
    lanes = numbers.lanes
    first = 32 - height * vectors if numbers is HALF else 0
    #: What each register holds: (pointer, place of its first value).
    held: dict[str, tuple[str, int]] = {}
    read = {"$0": 0, "$1": 0}
    products = []
    for line in loop_of(*tile):
        registers = re.findall(r"\b[qv](\d+)", line)
        if line.startswith("ld"):
            pointer = line[line.index("[") + 1 : line.index("]")]
            for register in registers:
                held[register] = (pointer, read[pointer])
                read[pointer] += lanes
        elif line.startswith("fmla"):
            result, right, left = registers
            lane = int(line[line.rindex("[") + 1 : -1])
            assert numbers is SINGLE or int(left) < 16
            products.append((int(result) - first, held[left], lane, held[right]))
    rounded = -(-height // lanes) * lanes
    assert products == [
        (
            row * vectors + column,
            ("$0", k * rounded + row // lanes * lanes),
            row % lanes,
            ("$1", (k * vectors + column) * lanes),
        )
        for k in range(STEPS)
        for column in range(vectors)
        for row in range(height)
    ]
    assert read == {"$0": STEPS * rounded, "$1": STEPS * vectors * lanes}


def test_the_largest_tile_takes_a_sixteenth_more_than_its_multiplications() -> None:
    assert len(loop_of(8, 3)) / (STEPS * 24) <= 1 + 1 / 16


def test_sums_in_half_are_widened_often_enough_to_stay_exact_and_seldom_enough_to_pay() -> None:
    lines = write_tile(8, 3, HALF).split("\\0A")
    widening = lines[len(lines) - lines[::-1].index("4:") :]
    assert sum(line.startswith("fadd") for line in widening) == 2 * 24
    assert HALF_DEPTH % STEPS == 0
    assert len(widening) / (HALF_DEPTH * 24) < 0.1


def test_a_tile_beyond_the_register_file_is_refused() -> None:
    assert not fits_registers(8, 4)
    with pytest.raises(AssertionError):
        write_tile(8, 4)
