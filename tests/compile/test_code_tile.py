"""The assembly of the tile of int8 codes on 64-bit ARM."""

import pytest

from edgeopt.compile.kernels.code_tile import CodeTile, Method, write_code_tile

METHODS: tuple[Method, ...] = ("dot", "pair", "single")
TILES = [
    tile
    for method in METHODS
    for height in range(1, 11)
    for width in (4, 8, 12, 16, 24, 32)
    if (tile := CodeTile(method, height, width)).fits
]


def loop_of(tile: CodeTile) -> list[str]:
    """Cut the unrolled loop, four steps of 16 codes, out of a tile's assembly."""
    lines = write_code_tile(tile).split("\\0A")
    return lines[lines.index("1:") + 1 : lines.index("b.ne 1b") + 1]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_a_tiles_loop_multiplies_every_code_and_keeps_its_sums_in_registers(tile: CodeTile) -> None:
    loop = loop_of(tile)
    codes = {"sdot": 16, "smull": 8, "smull2": 8, "smlal2": 8}
    assert sum(codes.get(line.split()[0], 0) for line in loop) == 64 * tile.height * tile.width
    assert not any(line.startswith(("st", "bl")) or "sp" in line for line in loop)


@pytest.mark.parametrize(("tile", "least"), [(("dot", 8, 8), 14.9), (("pair", 4, 4), 5.0)])
def test_the_largest_tiles_take_few_instructions(
    tile: tuple[Method, int, int], least: float
) -> None:
    chosen = CodeTile(*tile)
    assert 64 * chosen.height * chosen.width / len(loop_of(chosen)) > least


def test_a_tile_beyond_the_register_file_is_refused() -> None:
    with pytest.raises(AssertionError):
        write_code_tile(CodeTile("pair", 4, 8))
    with pytest.raises(AssertionError):
        write_code_tile(CodeTile("dot", 8, 12))
