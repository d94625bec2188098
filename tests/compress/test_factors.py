"""Factors of Hessians are found once, and never those of another one."""

import numpy as np

from edgeopt.compress.factors import Factors, Rows, inverse_factor, right_vectors
from tests.graphs import normal


def hessian_of(seed: int) -> np.ndarray:
    x = normal(seed, 200, 32).astype(np.float64)
    made: np.ndarray = x.T @ x
    return made


def test_what_is_kept_is_found_once_and_anything_else_anew() -> None:
    kept, other = hessian_of(0), hessian_of(1)
    factors = Factors([kept])
    assert factors.inverse(kept) is factors.inverse(kept)
    np.testing.assert_array_equal(factors.inverse(kept), inverse_factor(kept))
    assert factors.inverse(other) is not factors.inverse(other)
    np.testing.assert_array_equal(factors.inverse(other), inverse_factor(other))
    # What takes the place of one that is gone is not taken for it.
    for seed in range(20):
        again = hessian_of(seed)
        np.testing.assert_array_equal(factors.inverse(again), inverse_factor(again))


def test_directions_serve_all_ranks_of_one_weight_and_no_other_weight() -> None:
    kept = hessian_of(0)
    factors = Factors([kept])
    one, other = (normal(seed, 32, 48).astype(np.float64) for seed in (2, 3))
    for hessian in (kept, None):
        for values in (one, other):
            whole = right_vectors(values, hessian)
            for count in (16, 8, 24):
                found = factors.directions(values, hessian, count)
                np.testing.assert_array_equal(found, whole[:count])
        again = factors.directions(one, hessian, 8)
        assert np.shares_memory(again, factors.directions(one, hessian, 16))


def test_rows_that_are_shared_are_found_once_for_each_table_count_and_reads() -> None:
    factors, values = Factors(), normal(0, 64, 8)
    asked: list[int] = []

    def find() -> Rows:
        asked.append(len(asked))
        return np.array([len(asked)]), np.zeros(64, np.intp)

    first = factors.shared_rows(values, 8, None, find)
    assert factors.shared_rows(values.copy(), 8, None, find) is first
    others = [
        factors.shared_rows(values + 1, 8, None, find),
        factors.shared_rows(values, 16, None, find),
        factors.shared_rows(values, 8, np.ones(64, np.float32), find),
    ]
    assert len(asked) == 4
    assert all(each is not first for each in others)
    # A table without values is that of no model in particular.
    hollow = np.broadcast_to(np.float32(0), (64, 8))
    assert factors.shared_rows(hollow, 8, None, find) is not factors.shared_rows(
        hollow, 8, None, find
    )
