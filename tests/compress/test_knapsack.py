import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.compress.knapsack import Limit, choose_options
from edgeopt.errors import BudgetExceeded

HARM = st.one_of(st.just(0.0), st.floats(1e-6, 10.0))
OPTION = st.tuples(HARM, st.integers(0, 50), st.integers(0, 50))
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def exhaust(layers: list[list[tuple[float, int, int]]], most: tuple[int, int]) -> float | None:
    """Return the least harm that limits allow, by trying everything."""
    allowed = [
        sum(option[0] for option in chosen)
        for chosen in product(*layers)
        if all(sum(option[1 + i] for option in chosen) <= most[i] for i in range(2))
    ]
    return min(allowed, default=None)


def solve(
    layers: list[list[tuple[float, int, int]]], most: tuple[int, int]
) -> list[tuple[float, int, int]] | None:
    harm = [[option[0] for option in layer] for layer in layers]
    limits = [
        Limit([[float(option[1 + i]) for option in layer] for layer in layers], most[i])
        for i in range(2)
    ]
    places = choose_options(harm, limits)
    if places is None:
        return None
    return [layer[place] for layer, place in zip(layers, places, strict=True)]


@settings(max_examples=150, deadline=None)
@given(LAYERS, st.tuples(st.integers(0, 200), st.integers(0, 200)))
def test_the_choice_is_as_good_as_the_best_of_all(
    layers: list[list[tuple[float, int, int]]], most: tuple[int, int]
) -> None:
    best, found = exhaust(layers, most), solve(layers, most)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert all(sum(option[1 + i] for option in found) <= most[i] for i in range(2))
    assert sum(option[0] for option in found) == pytest.approx(best, rel=1e-4, abs=1e-12)


def test_small_harms_are_told_apart_beside_a_huge_one() -> None:
    layers = [[(1e-7, 4, 0), (5e-8, 4, 0), (9.0, 1, 0)], [(0.0, 8, 0), (2e-8, 2, 0)]]
    assert solve(layers, (6, 0)) == [(5e-8, 4, 0), (2e-8, 2, 0)]


def test_a_limit_of_millions_is_kept_to_the_byte() -> None:
    # The solver alone takes 4 bytes more than 11,964,640 as within it.
    sizes = [[11_964_644.0, 11_964_641.0, 11_964_640.0, 11_964_000.0], [0.0, 0.0, 0.0, 0.0]]
    harm = [[0.0, 0.1, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0]]
    places = choose_options(harm, [Limit(sizes, 11_964_640.0)])
    assert places is not None
    assert places[0] == 2


def test_the_same_figures_give_the_same_choice() -> None:
    layers = [[(0.5, 3, 1), (0.5, 3, 1), (0.7, 1, 1)] for _ in range(6)]
    assert solve(layers, (12, 9)) == solve(layers, (12, 9))


def test_without_limits_the_least_harm_of_each_layer_is_chosen() -> None:
    assert choose_options([[0.2, 0.1], [0.0, 0.3]], []) == [1, 0]


def test_greed_by_harm_per_byte_does_worse_than_the_program() -> None:
    # Greedy steps down where a byte costs least, and overshoots: 12 + 12 bytes allow 14.
    layers = [[(0.0, 12, 0), (1.0, 2, 0)], [(0.0, 12, 0), (1.2, 1, 0), (0.05, 11, 0)]]
    found = solve(layers, (14, 0))
    assert found == [(1.0, 2, 0), (0.0, 12, 0)]


def test_a_search_without_time_ends_with_an_error_and_not_with_infeasible() -> None:
    random = np.random.default_rng(0)
    harm = random.uniform(0, 1, (400, 30)).tolist()
    costs = [Limit(random.uniform(0, 100, (400, 30)).tolist(), 8000.0) for _ in range(4)]
    with pytest.raises(BudgetExceeded, match="no plan was found in the time"):
        choose_options(harm, costs, seconds=0.0)


def test_what_is_found_within_the_time_is_within_the_limits() -> None:
    random = np.random.default_rng(1)
    harm = random.uniform(0, 1, (60, 12)).tolist()
    limits = [Limit(random.uniform(0, 100, (60, 12)).tolist(), 2400.0) for _ in range(3)]
    began = time.monotonic()
    places = choose_options(harm, limits, seconds=3.0)
    assert time.monotonic() - began < 20
    assert places is not None
    assert all(limit.spent(places) <= limit.most for limit in limits)
