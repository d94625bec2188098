"""What an inference takes out of the supply, where the board has a sensor for it; else nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.artifact import Bundle, Measurement, Release
from edgeopt.board import Board
from edgeopt.program import run_within

#: Milliseconds at rest, and again under load; in them the sensor is read 20 times.
_WINDOW = 2000
#: Fewer readings are no mean: the board was too busy to read its sensor.
_FEWEST = 10


def measure_energy(
    release: Release,
    bundle: Bundle,
    board: Board,
    *,
    feeds: Mapping[str, NDArray[Any]],
    measurement: Measurement,
    directory: Path,
) -> Measurement:
    """Return the measurement with the energy of the first sample of feeds, [S, *shape].

    It takes a launch of its own: a thread that reads a sensor would disturb inferences that are
    timed. A board without a sensor is not launched; nothing is ever estimated.
    """
    if not measurement.sensor or board.kind == "emulated":
        return measurement
    run = run_within(
        0,
        release,
        bundle,
        board,
        feeds={name: values[:1] for name, values in feeds.items()},
        threads=measurement.threads,
        directory=directory,
        energy_ms=_WINDOW,
    )
    energy = run.report.energy
    known = energy is not None and energy.readings >= _FEWEST
    return measurement.model_copy(update={"energy": energy if known else None})
