"""Energy comes from a sensor of the board, or is not measured."""

from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Measurement
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import stage_bundle
from edgeopt.energy import measure_energy
from edgeopt.errors import DeployFailed
from edgeopt.measure import measure_release
from tests.deploy.kit import APP, DyingBoard, board_facts, leftovers, make_bundle, samples_of


def measure(folder: Path, mode: str) -> tuple[Measurement, list[str]]:
    """Measure time and then energy; return what that gives, and the calls of the latter."""
    bundle = make_bundle(folder / "bundle", mode=mode)
    here = LocalBoard()
    root = PurePosixPath(folder / "board")
    release = stage_bundle(bundle, here, facts=board_facts(), app=APP, root=root)
    feeds = {"x": samples_of(3)}
    measurement, _ = measure_release(
        release,
        bundle,
        here,
        feeds=feeds,
        warmup=1,
        iterations=5,
        threads=1,
        directory=folder / "work",
    )
    assert measurement.energy is None
    board = DyingBoard(here)
    found = measure_energy(
        release, bundle, board, feeds=feeds, measurement=measurement, directory=folder / "work"
    )
    assert leftovers(folder / "board") == [f"apps/{APP}/state"]  # it stays staged
    return found, board.calls


def test_what_an_inference_takes_is_what_was_drawn_and_that_less_what_the_board_takes_at_rest(
    tmp_path: Path,
) -> None:
    found, _ = measure(tmp_path, "metered")
    assert found.sensor == "ina219"
    assert found.energy is not None
    # 4 J in 2 s, of which 1.5 W at rest are 3 J, for 100 inferences.
    assert found.energy.joules == pytest.approx(0.04)
    assert found.energy.joules_above_idle == pytest.approx(0.01)
    assert Measurement.model_validate_json(found.model_dump_json()) == found


def test_a_board_without_a_sensor_is_not_asked_again(tmp_path: Path) -> None:
    found, calls = measure(tmp_path, "good")
    assert (found.sensor, found.energy, calls) == ("", None, [])


def test_a_few_readings_are_no_figure(tmp_path: Path) -> None:
    found, calls = measure(tmp_path, "sluggish")
    assert (found.sensor, found.energy) == ("ina219", None)
    assert calls != []


def test_a_name_that_would_move_the_terminals_cursor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployFailed, match="sensor"):
        measure(tmp_path, "escape")
