"""Ranges of activations, chosen from the values that samples show."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest

from edgeopt.choice import RangeRule
from edgeopt.compress.calibrate import calibrate, choose_range
from edgeopt.model.oracle import Array
from tests.compress.test_plan import draw
from tests.graphs import image_model

BINS = 4096


def histogram(values: Array) -> tuple[Array, Array]:
    limits = np.array([values.min(), values.max()])
    return limits, np.histogram(values, BINS, tuple(limits))[0].astype(np.float64)


def rounded(values: Array, low: float, high: float) -> Array:
    scale = (max(high, 0) - min(low, 0)) / 255
    zero = np.rint(-min(low, 0) / scale)
    made: Array = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return made


def tailed(seed: int) -> Array:
    """Normal numbers, and a few far out."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.standard_normal(100_000), 40 * random.random(20)])


def test_minmax_keeps_all_values() -> None:
    limits, counts = histogram(tailed(0))
    assert choose_range(limits, counts, "minmax") == (limits[0], limits[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_range_of_least_squared_error_is_that_of_trying_all(seed: int) -> None:
    values = tailed(seed)
    limits, counts = histogram(values)
    found = choose_range(limits, counts, "mse")

    def error(low: float, high: float) -> float:
        return float(np.square(values - rounded(values, low, high)).mean())

    steps = [1 - each / 20 for each in range(20)]
    least = min(error(limits[0] * down, limits[1] * up) for down in steps for up in steps)
    assert error(*found) == pytest.approx(least, rel=0.02)
    assert error(*found) < 0.95 * error(*limits)


def test_the_entropy_of_even_values_is_least_with_all_of_them() -> None:
    limits, counts = histogram(np.linspace(-1, 3, 100_000))
    assert choose_range(limits, counts, "entropy") == pytest.approx(tuple(limits))


@pytest.mark.parametrize(("rule", "most"), [("percentile", 1.0), ("mse", 0.95), ("entropy", 0.7)])
def test_a_few_far_values_are_cut_and_the_rest_is_kept(rule: RangeRule, most: float) -> None:
    limits, counts = histogram(tailed(1))
    low, high = choose_range(limits, counts, rule)
    assert low < -2.5
    assert 2.5 < high <= most * limits[1]


@pytest.mark.parametrize("rule", get_args(RangeRule))
def test_values_of_one_sign_keep_zero_as_an_end(rule: RangeRule) -> None:
    limits, counts = histogram(np.abs(tailed(2)))
    low, high = choose_range(limits, counts, rule)
    assert abs(low) < 0.01
    assert high > 2.5


@pytest.mark.parametrize("rule", get_args(RangeRule))
def test_every_rule_gives_the_range_of_every_tensor(rule: RangeRule, tmp_path: Path) -> None:
    model = image_model(tmp_path)
    samples = draw(model, 8, 1)
    found = calibrate(onnx.load(model.path), ["pixels", "flat"], samples, tmp_path, rule)
    assert [each.tensor for each in found] == ["pixels", "flat"]
    for each in found:
        assert each.low < each.high
    assert found[0].high <= samples["pixels"].max()
