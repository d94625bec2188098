"""The assembly of the tile of int8 codes on x86-64 with tile registers."""

import re

import pytest

from edgeopt.compile.kernels.amx_tile import AmxTile, tiles_of, write_amx_tile

ROWS = (4, 7, 15, 16, 17, 31, 32, 33, 100, 128, 129, 197, 1000)
TILES = {tile.name: tile for rows in ROWS for tile in tiles_of("uint8", rows)}


def lines_of(tile: AmxTile) -> list[str]:
    text = re.search(r'asm sideeffect "([^"]*)"', write_amx_tile(tile))
    assert text is not None
    return text.group(1).split("\\0A")


def configuration(tile: AmxTile) -> bytes:
    text = re.search(r'c"([^"]*)"', write_amx_tile(tile))
    assert text is not None
    return bytes.fromhex(text.group(1).replace("\\", ""))


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_a_tile_stores_each_of_its_sums_once_and_releases_its_registers(tile: AmxTile) -> None:
    lines = lines_of(tile)
    stores = [line for line in lines if line.startswith("tilestored")]
    assert len(stores) * tile.rows * 16 * tile.blocks == tile.height * tile.width
    assert lines[-1] == "tilerelease"
    step = lines[lines.index("2:") + 1 : lines.index("jne 2b")]
    assert sum(line.startswith("tdp") for line in step) == len(stores)
    assert all(int(found) < 8 for line in lines for found in re.findall(r"%tmm(\d+)", line))


@pytest.mark.parametrize("tile", TILES.values(), ids=TILES)
def test_registers_of_rows_and_sums_are_as_long_as_their_rows(tile: AmxTile) -> None:
    data = configuration(tile)
    assert len(data) == 64
    assert data[0] == 1
    rows = {
        int(number)
        for line in lines_of(tile)
        if line.startswith("tdp")
        for number in re.findall(r"%tmm(\d+)", line)[1:]
    }
    assert {data[48 + register] for register in rows} == {tile.rows}
    columns = {re.findall(r"%tmm(\d+)", each)[0] for each in lines_of(tile) if each[:3] == "tdp"}
    assert {data[48 + int(register)] for register in columns} == {16}


@pytest.mark.parametrize("rows", ROWS)
def test_tiles_of_rows_waste_fewer_than_a_row_of_each_register(rows: int) -> None:
    for tile in tiles_of("int8", rows):
        computed = -(-rows // tile.height) * tile.height
        assert computed - rows < -(-rows // tile.height) * (tile.blocks * tile.down + 1)


def test_codes_of_either_type_have_their_instruction() -> None:
    assert any(line.startswith("tdpbusd") for line in lines_of(AmxTile("uint8", 32, 32)))
    assert any(line.startswith("tdpbssd") for line in lines_of(AmxTile("int8", 32, 32)))
    assert not AmxTile("int8", 33, 32).fits
    with pytest.raises(AssertionError):
        write_amx_tile(AmxTile("int8", 32, 64))
