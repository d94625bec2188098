"""Launches are repeated until the figures hold; what is invalid never becomes part of one."""

import random
from collections.abc import Sequence

import pytest

from edgeopt.artifact import Measurement
from edgeopt.errors import MeasurementNoisy
from edgeopt.measure import require_steady, summarize_samples
from edgeopt.steady import FEWEST, Seen, measure_steadily
from edgeopt.surroundings import Around, Process
from tests.samples import measurement


class Launches:
    """Gives one prepared launch after the other, the last one for ever."""

    def __init__(self, *prepared: Measurement) -> None:
        self.prepared = list(prepared)
        self.asked: list[bool] = []
        self.rested: list[float] = []

    def __call__(self, first: bool) -> Seen:
        self.asked.append(first)
        return self.prepared.pop(0) if len(self.prepared) > 1 else self.prepared[0], []

    def measure(self, most: int = 6) -> Measurement:
        return measure_steadily(self, most=most, rest=self.rested.append)[0]


def launch(samples: Sequence[int], *invalid: str, **changes: object) -> Measurement:
    made = measurement().model_copy(update={"kind": "board", "samples_ns": tuple(samples)})
    return made.model_copy(update={"invalid": invalid, **changes})


STEADY = launch([1_000_000 + number % 7 for number in range(60)])
NOISY = launch([random.Random(number).randrange(10**6, 2 * 10**6) for number in range(20)])
HOT = launch([3_000_000] * 60, "throttled or short of voltage during the run (0x4)")


def test_steady_launches_are_as_few_as_a_spread_between_launches_takes() -> None:
    launches = Launches(STEADY)
    found = launches.measure()
    assert launches.asked == [True] + [False] * (FEWEST - 1)
    assert found.launches == (60,) * FEWEST
    assert len(found.samples_ns) == 60 * FEWEST
    assert (found.set_aside, found.invalid, launches.rested) == ((), (), [])


def test_noise_is_met_with_launches_and_they_end() -> None:
    launches = Launches(NOISY)
    assert launches.measure(most=6).launches == (20,) * 6
    assert len(launches.asked) == 6


def test_a_throttled_launch_is_repeated_after_a_rest_and_never_averaged_in() -> None:
    launches = Launches(STEADY, HOT, STEADY)
    found = launches.measure()
    assert found.set_aside == HOT.invalid
    assert max(found.samples_ns) < 2_000_000
    assert summarize_samples(found.samples_ns).p50 < 1_000_010
    assert launches.rested == [20.0]
    assert len(launches.asked) == FEWEST + 1


def test_a_board_that_throttles_every_time_has_no_figure() -> None:
    launches = Launches(HOT)
    found = launches.measure()
    assert found.invalid == HOT.invalid
    assert launches.rested == [20.0, 40.0]
    assert len(launches.asked) == 3
    with pytest.raises(MeasurementNoisy, match="throttled"):
        require_steady(found)


def test_too_many_invalid_launches_make_all_of_it_invalid() -> None:
    found = Launches(STEADY, HOT, STEADY, HOT, HOT, STEADY).measure()
    assert found.invalid == HOT.invalid


def test_instructions_and_a_limit_of_one_take_one_launch() -> None:
    counted = measurement()
    assert counted.kind == "emulated"
    launches = Launches(counted)
    assert launches.measure() == counted
    assert launches.asked == [True]
    one = Launches(NOISY)
    assert one.measure(most=1) == NOISY


def test_what_surrounds_several_launches_is_put_together() -> None:
    def around(load: float, pressure: int | None) -> Around:
        return Around(load=load, load_after=load + 1, pressure_us=pressure, seconds=2.5)

    parts = [
        STEADY.model_copy(
            update={
                "around": around(number, pressure),
                "process": Process(cpus="0-3", voluntary=1, involuntary=number),
                "drift_ns": drift,
            }
        )
        for number, pressure, drift in ((1, 10, 5), (2, 20, -3_600_000_000_000), (3, 30, 7))
    ]
    found = Launches(*parts).measure()
    assert found.around == Around(load=1, load_after=4, pressure_us=60, seconds=7.5)
    assert found.process == Process(cpus="0-3", voluntary=3, involuntary=6)
    assert found.drift_ns == -3_600_000_000_000
    unknown = parts[1].model_copy(
        update={"around": around(2, None), "process": Process(voluntary=1)}
    )
    found = Launches(parts[0], unknown, parts[2]).measure()
    assert found.around.pressure_us is None
    assert found.process.involuntary == -1


def test_memory_is_the_most_of_all_launches_those_that_were_set_aside_too() -> None:
    def taking(made: Measurement, peak: int) -> Measurement:
        return made.model_copy(update={"memory": made.memory.model_copy(update={"peak": peak})})

    # The first one alone reads the rows of all samples.
    found = Launches(taking(HOT, 9_000), taking(STEADY, 7_000)).measure()
    assert (found.memory.peak, found.set_aside) == (9_000, HOT.invalid)
    assert Launches(taking(STEADY, 7_000), taking(STEADY, 8_000)).measure().memory.peak == 8_000
    assert Launches(taking(HOT, 9_000), taking(HOT, 8_000)).measure().memory.peak == 9_000
