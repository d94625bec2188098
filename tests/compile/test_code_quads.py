"""Which blocks of int8 weights may be added in fours, and the assembly that does."""

import numpy as np
import pytest

from edgeopt.compile.kernels import code_quads
from edgeopt.compile.kernels.code_quads import find_quads, walk_blocks, write_bits
from edgeopt.compile.kernels.code_tile import CodeTile, write_code_tile


def block_of(*sizes: int) -> np.ndarray:
    """Make one panel of one block of four columns, whose first lane adds these four weights."""
    panels = np.zeros((1, 1, 4, code_quads.BLOCK), np.int8)
    panels[0, 0, 2, ::8] = sizes
    return panels


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [((-127, -126, -1, -1), True), ((-127, -127, -1, -1), False), ((127, 127, 1, 0), True)],
)
def test_a_block_fits_where_no_lane_of_any_column_can_overflow(
    sizes: tuple[int, ...], fits: bool
) -> None:
    assert find_quads(block_of(*sizes)).tolist() == [[fits]]
    # The largest sum there is, with every code at -128.
    assert (128 * sum(map(abs, sizes)) <= 2**15 - 1) == fits


def test_bits_lie_in_bytes_of_four_blocks_then_one_for_each_that_is_left() -> None:
    quads = np.array([[True, False, True, True, False, True], [False] * 6])
    bits = write_bits(quads, 4)
    assert bits.shape == (2, 1, 4, code_quads.BLOCK)
    assert bits.reshape(2, -1)[:, :4].tolist() == [[0b1101, 0, 1, 0], [0] * 4]


def test_more_blocks_than_there_is_room_for_are_refused() -> None:
    assert code_quads.fits_bits(4 * 128, 4)
    assert not code_quads.fits_bits(4 * 128 + 1, 4)


@pytest.mark.parametrize(("height", "width"), [(1, 4), (1, 16), (2, 8), (3, 4), (4, 4)])
def test_the_loop_multiplies_every_code_of_four_blocks_by_five_instructions_for_32(
    height: int, width: int
) -> None:
    assert CodeTile("quad", height, width).fits
    lines = write_code_tile(CodeTile("quad", height, width)).split("\\0A")
    loop = lines[lines.index("1:") + 1 : lines.index("b.ne 1b") + 1]
    names = [line.split()[0] for line in loop]
    products = [name for name in names if name.startswith("sm")]
    assert 8 * len(products) == 4 * code_quads.BLOCK * height * width
    assert names.count("sadalp") == len(products) / 4
    assert not any(line.startswith(("st", "bl")) or "sp" in line for line in loop)


def test_a_block_in_fours_takes_a_sixth_less_than_one_in_pairs() -> None:
    quad, pairs = (code_quads.count_block(4, 4, quad=each) for each in (True, False))
    assert quad < 0.86 * pairs
    assert "tbz $3, #0, 6f" in walk_blocks(4, 4)
