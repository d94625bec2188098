"""The assembly of the tile of int8 codes on 64-bit ARM."""

import pytest

from edgeopt.compile.kernels.code_tile import CodeTile, Method, write_code_tile

METHODS: tuple[Method, ...] = ("matrix", "dot", "pair", "single")
TILES = [
    tile
    for method in METHODS
    for height in range(1, 11)
    for width in (4, 8, 12, 16, 24, 32)
    if (tile := CodeTile(method, height, width)).fits
]


def loop_of(tile: CodeTile) -> list[str]:
    """Cut the unrolled loop, four steps of codes, out of a tile's assembly."""
    lines = write_code_tile(tile).split("\\0A")
    return lines[lines.index("1:") + 1 : lines.index("b.ne 1b") + 1]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)
def test_a_tiles_loop_multiplies_every_code_and_keeps_its_sums_in_registers(tile: CodeTile) -> None:
    loop = loop_of(tile)
    codes = {"smmla": 32, "sdot": 16, "smull": 8, "smull2": 8, "smlal2": 8}
    assert sum(codes.get(line.split()[0], 0) for line in loop) == (
        4 * tile.step * tile.height * tile.width
    )
    assert not any(line.startswith(("st", "bl")) or "sp" in line for line in loop)


@pytest.mark.parametrize(
    ("tile", "least"),
    [(("matrix", 8, 12), 27.9), (("dot", 8, 8), 14.9), (("pair", 4, 4), 5.0)],
)
def test_the_largest_tiles_take_few_instructions(
    tile: tuple[Method, int, int], least: float
) -> None:
    chosen = CodeTile(*tile)
    codes = 4 * chosen.step * chosen.height * chosen.width
    assert codes / len(loop_of(chosen)) > least


def test_a_tile_of_matrices_has_two_rows_at_a_time() -> None:
    assert not CodeTile("matrix", 3, 8).fits
    lines = write_code_tile(CodeTile("matrix", 4, 8)).split("\\0A")
    # Four columns of a row come from two neighbouring squares: the upper halves, then the lower.
    assert lines.count("zip1 v8.2d, v0.2d, v1.2d") == 1
    assert lines.count("zip2 v1.2d, v0.2d, v1.2d") == 1
    stores = [line for line in lines if line.startswith("st")]
    assert stores[:2] == ["stp q8, q0, [$2], #32", "stp q1, q3, [$2], #32"]


def test_a_tile_beyond_the_register_file_is_refused() -> None:
    with pytest.raises(AssertionError):
        write_code_tile(CodeTile("pair", 4, 8))
    with pytest.raises(AssertionError):
        write_code_tile(CodeTile("dot", 8, 12))
