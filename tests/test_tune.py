"""What is measured of tiles is stored, read strictly, and believed only beyond noise."""

import datetime
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import ConfigError
from edgeopt.target import load_target
from edgeopt.tiles import TileFile, TileKey, TunedTile, measured_on, name_cpu, read_tiles
from edgeopt.tiles import write_tiles as write
from edgeopt.tune import choose_best, confirm_best, measure_tiles

CPU = "aarch64-cortex-a72"
DEFAULT, OTHER, THIRD = (8, 12), (8, 8), (4, 16)


def found(**changes: object) -> TunedTile:
    fields: dict[str, object] = {
        "kind": "packed_gemm",
        "rows": 128,
        "columns": 384,
        "depth": 1536,
        "dtype": "float32",
        "tile": OTHER,
        "gain": 0.05,
        "measured": "time",
        "date": datetime.date(2026, 1, 2),
        "edgeopt": "0.1.0",
    }
    return TunedTile.model_validate(fields | changes)


def noisy(seed: int, faster: float, *, jitter: float = 0.004) -> Callable[..., Sequence[int]]:
    """A board on which OTHER takes that share less than all others, give or take."""
    random = np.random.default_rng(seed)

    def launch(tile: tuple[int, int], count: int) -> Sequence[int]:
        usual = 1_000_000 * (1 - faster if tile == OTHER else 1.0)
        return [int(usual * (1 + abs(random.normal(0, jitter)))) for _ in range(count)]

    return launch


def chosen(launch: Callable[..., Sequence[int]]) -> tuple[tuple[int, int] | None, float]:
    samples = measure_tiles(launch, (DEFAULT, OTHER, THIRD), count=10, passes=3)
    confirm_best(launch, samples, DEFAULT, count=10, passes=3)
    return choose_best(samples, DEFAULT)


@pytest.mark.parametrize("seed", range(10))
def test_a_tile_that_is_five_percent_faster_wins(seed: int) -> None:
    tile, gain = chosen(noisy(seed, 0.05))
    assert tile == OTHER
    assert 0.03 < gain < 0.07


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("faster", [0.01, 0.0, -0.05])
def test_a_tile_that_is_hardly_faster_or_slower_leaves_the_default(
    seed: int, faster: float
) -> None:
    assert chosen(noisy(seed, faster)) == (None, 0.0)


def test_a_tile_that_is_faster_in_some_launches_only_leaves_the_default() -> None:
    samples = {DEFAULT: [100, 101, 100, 102], OTHER: [94, 101, 101, 102]}
    assert choose_best(samples, DEFAULT) == (None, 0.0)
    assert choose_best(samples | {OTHER: [94, 94, 101, 102]}, DEFAULT)[0] == OTHER


def test_of_two_that_win_the_faster_one_is_chosen() -> None:
    assert choose_best({DEFAULT: [100], OTHER: [90], THIRD: [80]}, DEFAULT) == (THIRD, 0.25)


def test_a_winner_is_measured_once_more_against_the_default() -> None:
    samples = {DEFAULT: [100], OTHER: [70], THIRD: [101]}
    confirm_best(lambda _tile, count: [71] * count, samples, DEFAULT, count=2, passes=1)
    assert samples == {DEFAULT: [100, 71, 71], OTHER: [70, 71, 71], THIRD: [101]}
    assert choose_best(samples, DEFAULT) == (None, 0.0)


def test_tiles_are_launched_there_and_back() -> None:
    order: list[tuple[int, int]] = []

    def launch(tile: tuple[int, int], count: int) -> Sequence[int]:
        order.append(tile)
        return [len(order)] * count

    samples = measure_tiles(launch, (DEFAULT, OTHER), count=1, passes=2)
    assert order == [DEFAULT, OTHER, OTHER, DEFAULT] * 2
    # A machine that slows down steadily does so for all alike.
    assert sum(samples[DEFAULT]) == sum(samples[OTHER])


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "tiles" / f"{CPU}.json"
    tiles = TileFile(cpu=CPU).merged([found(), found(rows=1, tile=None, gain=0.0)])
    write(path, tiles)
    assert read_tiles(path, CPU) == tiles
    assert '"cpu": "aarch64-cortex-a72"' in path.read_text()


def test_without_a_file_there_are_no_tiles(tmp_path: Path) -> None:
    assert read_tiles(tmp_path / "none.json", CPU) == TileFile(cpu=CPU)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "EOF"),
        ('{"cpu": "aarch64-cortex-a72", "tile": []}', "tile: "),
        ('{"cpu": "aarch64-cortex-a72", "schema_version": 2}', "schema_version: "),
        ('{"cpu": "aarch64-cortex-a53"}', "it is of aarch64-cortex-a53"),
    ],
)
def test_a_broken_file_is_told_with_the_way_to_mend_it(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_tiles(path, CPU)
    assert said in caught.value.why
    assert "edgeopt tune --clear" in caught.value.fix


def test_what_is_found_again_replaces_what_was_known_of_the_same_product() -> None:
    tiles = TileFile(cpu=CPU).merged([found(), found(rows=7)]).merged([found(tile=THIRD)])
    assert [(each.rows, each.tile) for each in tiles.tiles] == [(7, OTHER), (128, THIRD)]


def test_instructions_never_decide_for_a_board_that_measures_time() -> None:
    counted = found(measured="instructions", tile=THIRD)
    tiles = TileFile(cpu=CPU).merged([found(), counted, found(rows=7, tile=None, gain=0.0)])
    assert tiles.chosen("time") == {found().key: OTHER}
    assert tiles.chosen("instructions") == {found().key: THIRD}
    assert measured_on("emulated") == "instructions"
    assert [measured_on(kind) for kind in ("native", "board")] == ["time", "time"]


def test_a_key_tells_every_size_and_type() -> None:
    key = found().key
    assert str(key) == "packed_gemm 128x384x1536 float32"
    others = [found(**{name: value}).key for name, value in CHANGED.items()]
    assert all(one != other for one, other in itertools.combinations([key, *others], 2))
    assert found(tile=None, gain=0.0).key == key


CHANGED = {"kind": "gemm", "rows": 127, "columns": 385, "depth": 1537, "dtype": "float16"}


def test_cpus_share_a_file_only_where_their_kernels_are_the_same() -> None:
    names = {name: name_cpu(load_target(name)) for name in ("rpi3", "rpi-zero2w", "rpi4", "rpi5")}
    assert names["rpi4"] == CPU
    assert names["rpi3"] == names["rpi-zero2w"] == "aarch64-cortex-a53"
    assert names["rpi5"] == "aarch64-cortex-a76+asimddp"


def test_keys_are_ordered_so_that_files_do_not_depend_on_the_run() -> None:
    one, two = TileKey("conv", 1, 2, 3, "int8"), TileKey("gemm", 1, 2, 3, "int8")
    assert sorted([two, one]) == [one, two]
