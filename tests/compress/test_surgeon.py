"""What the surgeon leaves out, and what it makes of the rest, against least squares by numpy."""

import itertools

import numpy as np
import pytest

from edgeopt.compress.moments import Moments
from edgeopt.compress.surgeon import Reader, damped, remove_units
from edgeopt.model.oracle import Array


def drawn(seed: int, rows: int, outputs: int) -> tuple[Array, Array, Array]:
    """Inputs that depend on one another, a weight, and gradients."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((200, rows)) @ random.standard_normal((rows, rows))
    return x, random.standard_normal((rows, outputs)), random.standard_normal((200, outputs))


def reader(x: Array, weight: Array, slopes: Array, units: Array) -> Reader:
    return Reader(weight.astype(np.float32), units, Moments(x.T @ x, slopes.T @ slopes))


def fitted(x: Array, weight: Array, kept: Array) -> Array:
    """The weight that leaves X W nearest to what it was, of rows that are kept alone."""
    moment = damped(x.T @ x)
    result = np.zeros_like(weight)
    result[kept] = np.linalg.solve(moment[np.ix_(kept, kept)], moment[kept] @ weight)
    return result


def loss(x: Array, change: Array, slopes: Array) -> float:
    return float(np.trace(damped(slopes.T @ slopes) @ change.T @ damped(x.T @ x) @ change))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_the_rest_is_what_least_squares_makes_of_it(seed: int, size: int) -> None:
    x, weight, slopes = drawn(seed, 12, 5)
    units = np.repeat(np.arange(12 // size), size)
    count = 12 // size
    for level in remove_units([reader(x, weight, slopes, units)], count, [count, count // 2, 1]):
        kept = np.isin(units, level.kept)
        (found,) = level.weights
        assert (found[~kept] == 0).all()
        np.testing.assert_allclose(found, fitted(x, weight, kept), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_the_first_unit_to_go_is_the_one_that_is_missed_least(seed: int) -> None:
    x, weight, slopes = drawn(seed, 8, 4)
    units = np.repeat(np.arange(4), 2)
    level = list(remove_units([reader(x, weight, slopes, units)], 4, [4, 3]))[-1]
    costs = {gone: loss(x, weight - fitted(x, weight, units != gone), slopes) for gone in range(4)}
    assert set(range(4)) - set(level.kept) == {min(costs, key=costs.__getitem__)}


def test_outputs_count_by_how_much_they_matter() -> None:
    x = np.random.default_rng(0).standard_normal((400, 2))
    weight = np.array([[1.0, 0.0], [0.0, 1.1]])
    for matters, kept in ((np.array([10.0, 0.1]), 0), (np.array([0.1, 10.0]), 1)):
        slopes = np.random.default_rng(1).standard_normal((400, 2)) * matters
        level = next(remove_units([reader(x, weight, slopes, np.arange(2))], 2, [1]))
        assert level.kept == (kept,)


def test_a_unit_that_two_weights_read_goes_by_what_both_lose() -> None:
    x, weight, slopes = drawn(3, 6, 4)
    other = np.random.default_rng(9).standard_normal((6, 4)) * 3
    both = [reader(x, each, slopes, np.arange(6)) for each in (weight, other)]
    level = next(remove_units(both, 6, [5]))
    costs = [
        sum(loss(x, each - fitted(x, each, np.arange(6) != gone), slopes)
            for each in (weight, other))
        for gone in range(6)
    ]  # fmt: skip
    assert int(np.argmin(costs)) not in level.kept


def test_greedy_removal_is_near_the_best_of_all() -> None:
    x, weight, slopes = drawn(5, 8, 6)
    level = next(remove_units([reader(x, weight, slopes, np.arange(8))], 8, [4]))
    costs: dict[tuple[int, ...], float] = {
        kept: loss(x, weight - fitted(x, weight, np.isin(np.arange(8), kept)), slopes)
        for kept in itertools.combinations(range(8), 4)
    }
    ordered = sorted(costs.values())
    assert costs[level.kept] <= ordered[len(ordered) // 5]
    assert costs[level.kept] <= 2 * ordered[0]


def test_rows_of_no_unit_stay() -> None:
    x, weight, slopes = drawn(2, 6, 3)
    units = np.array([-1, 0, 1, -1, 2, 3])
    level = next(remove_units([reader(x, weight, slopes, units)], 4, [2]))
    assert (level.weights[0][units < 0] != 0).all()
    assert len(level.kept) == 2
