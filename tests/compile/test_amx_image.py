"""The assembly of the tile of a convolution of codes on x86-64 with tile registers."""

import re

import pytest

from edgeopt.compile.kernels.amx_image import ImageTile, write_image_tile

ROWS = {
    "two by two": ((4, 28, 14), 32),
    "four by one": ((7, 14, 14), 16),
    "an odd number": ((3, 16, 16), 32),
}


def make_tile(shape: tuple[int, int, int], width: int, dtype: str = "uint8") -> ImageTile:
    lines, columns, rows = shape
    return ImageTile(
        dtype=dtype,
        lines=lines,
        columns=columns,
        rows=rows,
        width=width,
        taps=3,
        steps=5,
        apart=(2, 3),
        line=4096,
        pixel=96,
    )


TILES = {name: make_tile(*each) for name, each in ROWS.items()}


def lines_of(tile: ImageTile) -> list[str]:
    text = re.search(r'asm sideeffect "([^"]*)"', write_image_tile(tile))
    assert text is not None
    return text.group(1).split("\\0A")


def rows_by_register(tile: ImageTile) -> list[int]:
    text = re.search(r'c"([^"]*)"', write_image_tile(tile))
    assert text is not None
    return list(bytes.fromhex(text.group(1).replace("\\", ""))[48:56])


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_each_sum_is_stored_once_where_c_has_it(tile: ImageTile) -> None:
    places = []
    for line in lines_of(tile):
        if line.startswith("tilestored"):
            offset = re.search(r", (\d+)\(\$2", line)
            assert offset is not None
            start = int(offset.group(1)) // 4
            places += [start + row * tile.width + n for row in range(tile.rows) for n in range(16)]
    assert sorted(places) == list(range(tile.lines * tile.columns * tile.width))


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_every_register_of_rows_is_multiplied_by_every_one_of_columns(tile: ImageTile) -> None:
    lines = lines_of(tile)
    products = [line for line in lines if line.startswith("tdp")]
    assert len(products) == len(tile.registers) * tile.across
    loads = [line for line in lines if "(%r8,%r11,1)" in line]
    places = [int(each.split()[1].partition("(")[0] or 0) for each in loads]
    assert sorted(places) == sorted(2 * 4096 * line + 96 * pixel for line, pixel in tile.registers)
    rows = rows_by_register(tile)
    for line in products:
        columns, left, total = (int(each) for each in re.findall(r"%tmm(\d)", line))
        assert rows[columns] == 16
        assert rows[left] == rows[total] == tile.rows


def test_codes_of_either_type_have_their_instruction() -> None:
    for dtype, name in (("uint8", "tdpbusd"), ("int8", "tdpbssd")):
        lines = lines_of(make_tile((2, 16, 16), 32, dtype))
        assert {line.split()[0] for line in lines if line.startswith("tdp")} == {name}


def test_what_registers_cannot_hold_is_refused() -> None:
    with pytest.raises(AssertionError):
        write_image_tile(make_tile((2, 57, 19), 16))
    with pytest.raises(AssertionError):
        write_image_tile(make_tile((2, 28, 12), 16))
