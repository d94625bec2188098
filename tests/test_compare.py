"""Comparisons: rarely wrong about the same thing, and seldom blind to a difference of 3 %."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.compare import (
    Comparison,
    compare_blocks,
    compare_counts,
    compare_launches,
)
from edgeopt.errors import ConfigError

#: Iterations of a launch, and blocks of four launches.
ITERATIONS, BLOCKS = 30, 8

Launches = list[list[int]]


class Board:
    """A board whose clock drifts: samples of one launch are alike, and some are disturbed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._launches = 0
        # A whole session is off by this, and warms up by that from launch to launch.
        self._offset = self._random.normal(0, 0.005)
        self._warming = self._random.uniform(-0.0015, 0.0015)

    def launch(self, nanoseconds: float) -> list[int]:
        random = self._random
        place = random.normal(0, 0.006)
        state = 1 + self._offset + self._warming * self._launches + place
        self._launches += 1
        samples = nanoseconds * state * (1 + np.abs(random.normal(0, 0.01, ITERATIONS)))
        disturbed = random.random(ITERATIONS) < 0.1
        samples[disturbed] *= random.uniform(1.1, 2.0, int(disturbed.sum()))
        return [int(each) for each in samples]


def takes_turns(seed: int, slowdown: float) -> Comparison:
    board, base, other = Board(seed), Launches(), Launches()
    for _ in range(BLOCKS):
        for into, factor in ((base, 1.0), (other, slowdown), (other, slowdown), (base, 1.0)):
            into.append(board.launch(2e6 * factor))
    return compare_blocks(base, other)


def two_sessions(seed: int, slowdown: float, tolerance: float) -> Comparison:
    before, now = Board(seed), Board(seed + 10_000)
    base = [before.launch(2e6) for _ in range(BLOCKS)]
    other = [now.launch(2e6 * slowdown) for _ in range(BLOCKS)]
    return compare_launches(base, other, tolerance=tolerance)


def share(verdicts: Sequence[str], wanted: set[str]) -> float:
    return sum(each in wanted for each in verdicts) / len(verdicts)


def test_taking_turns_calls_the_same_thing_different_in_at_most_one_run_of_twenty() -> None:
    verdicts = [takes_turns(seed, 1.0).verdict for seed in range(200)]
    assert share(verdicts, {"slower", "faster"}) <= 0.05


def test_taking_turns_finds_a_slowdown_of_three_percent() -> None:
    verdicts = [takes_turns(seed, 1.03).verdict for seed in range(1000, 1050)]
    assert share(verdicts, {"slower"}) >= 0.9


def test_a_baseline_calls_the_same_thing_different_in_at_most_one_run_of_twenty() -> None:
    verdicts = [two_sessions(seed, 1.0, 0.03).verdict for seed in range(200)]
    assert share(verdicts, {"slower", "faster"}) <= 0.05


def test_a_baseline_finds_what_is_three_percent_beyond_its_tolerance() -> None:
    verdicts = [two_sessions(seed, 1.06, 0.03).verdict for seed in range(1000, 1050)]
    assert share(verdicts, {"slower"}) >= 0.9


def test_counting_each_inference_instead_of_each_launch_would_be_wrong_far_more_often() -> None:
    # The control: the simulated boards are unsteady enough for a naive comparison to fail.
    wrong, random = 0, np.random.default_rng(0)
    for seed in range(100):
        board = Board(seed)
        one, two = (np.array(board.launch(2e6)) for _ in range(2))
        gaps = [
            np.median(random.choice(two, 30)) - np.median(random.choice(one, 30))
            for _ in range(300)
        ]
        low, high = np.quantile(gaps, [0.005, 0.995])
        wrong += not low <= 0 <= high
    assert wrong > 20


def test_faster_is_seen_as_well_as_slower() -> None:
    assert takes_turns(1, 0.9).verdict == "faster"
    assert takes_turns(1, 1.1).verdict == "slower"


def test_a_tolerance_moves_the_verdict_and_not_the_figures() -> None:
    strict, lax = two_sessions(7, 1.08, 0.0), two_sessions(7, 1.08, 0.2)
    assert (strict.verdict, lax.verdict) == ("slower", "inconclusive")
    assert (strict.ratio, strict.low, strict.high) == (lax.ratio, lax.low, lax.high)
    assert lax.shown_within
    assert not strict.shown_within


def test_too_few_launches_support_no_verdict_however_clear_they_look() -> None:
    found = compare_launches([[100]] * 3, [[300]] * 3)
    assert found.verdict == "inconclusive"
    assert "too few" in str(found)
    assert not found.shown_within
    assert compare_launches([[100]] * 4, [[300]] * 4).verdict == "slower"


def counted(seed: int, slowdown: float) -> Comparison:
    """Count as an emulated board does: inferences that differ, some of them disturbed."""
    random = np.random.default_rng(seed)
    work = random.uniform(25_000, 200_000, 8)

    def launch(factor: float) -> list[int]:
        counts = work * factor * (1 + random.uniform(0, 0.001, 8))
        disturbed = random.random(8) < 0.1
        counts[disturbed] *= random.uniform(1.05, 15, int(disturbed.sum()))
        return [int(each) for each in counts]

    return compare_counts([launch(1.0) for _ in range(3)], [launch(slowdown) for _ in range(3)])


def test_counting_is_rarely_wrong_about_the_same_thing_and_sees_three_percent() -> None:
    same = [counted(seed, 1.0).verdict for seed in range(200)]
    assert share(same, {"slower", "faster"}) <= 0.05
    slower = [counted(seed, 1.03).verdict for seed in range(1000, 1050)]
    assert share(slower, {"slower"}) >= 0.9


def test_counts_of_the_emulated_board_itself_agree() -> None:
    # Recorded on a Cortex-A72: the same model in six launches, of which medians differ by 5 %.
    seen = [
        [26640, 204464, 2878400, 187632, 157456, 53392, 26128, 135264],
        [26640, 203792, 175056, 186336, 157584, 53520, 26128, 135248],
        [26624, 203792, 174688, 186352, 157824, 53392, 26128, 135280],
        [26624, 204400, 174736, 186336, 158368, 53408, 26128, 149056],
        [26640, 204192, 174688, 186336, 157728, 53440, 26128, 135360],
        [26640, 203792, 174688, 186752, 157472, 85776, 26128, 226944],
    ]
    found = compare_counts(seen[:3], seen[3:])
    assert found.verdict == "inconclusive"
    assert abs(found.ratio - 1) < 0.002
    assert compare_counts(seen[:2], seen[3:]).reasons
    with pytest.raises(ConfigError, match="different inferences"):
        compare_counts(seen[:3], [[1, 2]] * 3)


def test_counts_that_page_faults_disturb_in_every_launch_support_no_small_difference() -> None:
    # Recorded on a Cortex-A72: one model against itself. Most of each count is the kernel's.
    seen = [
        [26640, 540384, 560224, 432288, 410112, 117952, 26128, 278112],
        [26640, 597472, 424048, 541856, 362976, 54640, 26128, 390384],
        [26624, 573040, 351248, 421264, 325728, 121120, 26112, 386256],
        [26640, 2138224, 424624, 459648, 207024, 54320, 26128, 288048],
        [26640, 354864, 371952, 513904, 319728, 106512, 26128, 315376],
        [26640, 533120, 497344, 455584, 361184, 54608, 26128, 467072],
    ]
    found = compare_counts(seen[:3], seen[3:])
    assert found.ratio < 0.9
    assert found.verdict == "inconclusive"
    halved = [[each // 2 for each in launch] for launch in seen[3:]]
    assert compare_counts(seen[:3], halved).verdict == "faster"


@pytest.mark.parametrize("inferences", [1, 4, 8])
@pytest.mark.parametrize("disturbance", [0.05, 0.5])
def test_counting_is_rarely_wrong_where_everything_is_disturbed(
    inferences: int, disturbance: float
) -> None:
    random = np.random.default_rng(0)

    def counts(work: NDArray[np.float64]) -> Launches:
        return [
            [int(each) for each in work * (1 + random.exponential(disturbance, inferences))]
            for _ in range(3)
        ]

    wrong = 0
    for _ in range(200):
        work = random.uniform(1e5, 1e6, inferences)
        wrong += compare_counts(counts(work), counts(work)).verdict != "inconclusive"
    assert wrong <= 12


@pytest.mark.parametrize(("base", "other"), [([], [[1]]), ([[]], [[1]]), ([[0]], [[1]])])
def test_nothing_to_compare_is_said_and_not_guessed(base: Launches, other: Launches) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare_launches(base, other)


def test_blocks_must_be_whole() -> None:
    with pytest.raises(ConfigError, match="blocks of two"):
        compare_blocks([[1]] * 3, [[1]] * 3)


def test_a_comparison_is_said_in_one_line() -> None:
    found = Comparison(ratio=1.041, low=1.032, high=1.05, count=8, tolerance=0.03)
    assert str(found) == "slower: +4.1 % (from +3.2 % to +5.0 %, 8 launches)"
