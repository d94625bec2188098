import numpy as np
import pytest

from edgeopt.errors import ModelError
from edgeopt.model.simplify import relative_difference


def difference(old: list[float], new: list[float]) -> float:
    return relative_difference("y", np.array(old), np.array(new))


def test_the_difference_is_relative_to_the_largest_value() -> None:
    assert difference([1.0, -10.0], [1.5, -10.0]) == pytest.approx(0.05)
    assert difference([0.0, 0.0], [0.0, 0.25]) == 0.25


def test_nan_in_the_original_is_an_error_and_never_equal() -> None:
    with pytest.raises(ModelError, match="empty or not a number"):
        difference([float("nan")], [float("nan")])
    with pytest.raises(ModelError, match="empty or not a number"):
        difference([], [])


@pytest.mark.parametrize("new", [[1.0, float("nan")], [1.0, float("inf")], [1.0]])
def test_what_cannot_be_compared_differs_without_limit(new: list[float]) -> None:
    assert difference([1.0, 2.0], new) == float("inf")


def test_infinity_in_the_same_place_is_equal() -> None:
    assert difference([float("-inf"), 2.0], [float("-inf"), 2.0]) == 0.0
    assert difference([float("-inf"), 2.0], [float("inf"), 2.0]) == float("inf")
    assert difference([float("-inf"), 2.0], [1.0, 2.0]) == float("inf")
