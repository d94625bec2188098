"""The assembly of the float32 tile on 64-bit ARM."""

import pytest

from edgeopt.compile.kernels.microkernel import fits_registers, write_tile

TILES = [(h, v) for h in range(2, 17) for v in range(1, 5) if fits_registers(h, v)]


def loop_of(height: int, vectors: int) -> list[str]:
    """Cut the unrolled loop out of a tile's assembly, its branch included."""
    lines = write_tile(height, vectors).split("\\0A")
    return lines[lines.index("1:") + 1 : lines.index("b.ne 1b") + 1]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_tiles_loop_keeps_its_sums_in_registers(tile: tuple[int, int]) -> None:
    loop = loop_of(*tile)
    assert sum(line.startswith("fmla") for line in loop) == 8 * tile[0] * tile[1]
    assert not any(line.startswith(("st", "bl")) or "sp" in line for line in loop)
    assert sum(line.startswith("ld") for line in loop) == 8 * 2


def test_the_largest_tile_takes_less_than_a_tenth_more_than_its_multiplications() -> None:
    assert len(loop_of(8, 3)) / (8 * 24) < 1.10


def test_a_tile_beyond_the_register_file_is_refused() -> None:
    assert not fits_registers(8, 4)
    with pytest.raises(AssertionError):
        write_tile(8, 4)
