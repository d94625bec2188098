"""Levels in two steps: where the step changes, and what is lost beside other levels."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Choice, Plan, Recipe
from edgeopt.choice import Numbers
from edgeopt.compress import apply_plan, make_plan
from edgeopt.compress.blocks import encode_blocks
from edgeopt.compress.levels import find_levels
from edgeopt.compress.piecewise import find_break, find_pieces
from edgeopt.model.oracle import run_samples
from tests.compress.test_levels import lost
from tests.compress.test_plan import draw
from tests.graphs import normal, text_model


@pytest.mark.parametrize("most", [3.0, 4.0, 5.0])
def test_the_break_of_normal_numbers_is_the_one_of_the_paper(most: float) -> None:
    """Fang et al. 2020 approximate it by ln(0.8614 m + 0.6079), m in standard deviations."""
    values = np.abs(np.random.default_rng(0).standard_normal(1 << 20))
    kept = values[values <= most]
    found = find_break(kept, np.ones_like(kept), most)
    assert found == pytest.approx(np.log(0.8614 * most + 0.6079), rel=0.02)


def test_the_break_of_laplaces_numbers_is_the_one_of_the_paper() -> None:
    """The same: 0.8030 sqrt(m) - 0.3167."""
    values = np.abs(np.random.default_rng(1).laplace(scale=2**-0.5, size=1 << 20))
    kept = values[values <= 6]
    found = find_break(kept, np.ones_like(kept), 6.0)
    assert found == pytest.approx(0.8030 * 6**0.5 - 0.3167, rel=0.02)


@pytest.mark.parametrize("count", [4, 8, 16, 64])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_half_of_the_levels_are_near_the_mean_and_a_quarter_in_each_tail(
    count: int, mean: float
) -> None:
    values = normal(0, 1 << 14).astype(np.float64) + mean
    weights = np.ones_like(values)
    levels = find_pieces(values, weights, count)
    middle = values.mean()
    near = find_break(np.abs(values - middle), weights, float(np.abs(values - middle).max()))
    most = np.abs(values - middle).max()
    inside = [each - middle for each in levels if abs(each - middle) < near]
    # Levels are the middles of cells that share each piece evenly.
    cells = np.linspace(-near, near, count // 2 + 1)
    assert inside == pytest.approx((cells[1:] + cells[:-1]) / 2, abs=1e-5)
    cells = np.linspace(near, most, count // 4 + 1)
    upper = [each - middle for each in levels if each - middle > near]
    assert upper == pytest.approx((cells[1:] + cells[:-1]) / 2, abs=1e-5)
    assert np.all(np.diff(levels) > 0)
    assert levels - middle == pytest.approx(-(levels - middle)[::-1], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_tails_pay_for_two_steps_and_k_means_for_none(seed: int) -> None:
    rows = np.random.default_rng(seed).laplace(size=(64, 256)).astype(np.float32)
    even = lost(rows, *encode_blocks(rows, block=128, bits=4))
    found = {
        spacing: lost(
            rows,
            *encode_blocks(
                rows,
                block=128,
                bits=4,
                levels=find_levels(rows, block=128, bits=4, spacing=spacing),
            ),
        )
        for spacing in ("kmeans", "piecewise")
    }
    assert found["kmeans"] < found["piecewise"] < 0.8 * even


@pytest.mark.parametrize("fitted", [False, True])
def test_a_plan_of_piecewise_levels_replays_and_runs(tmp_path: Path, fitted: bool) -> None:
    model = text_model(tmp_path)
    numbers = Numbers(levels="piecewise")
    choices = (
        Choice(weight="table", method="codebook16-blocks", block=32, numbers=numbers),
        Choice(
            weight="mix", method="codebook4-blocks", block=16, reconstruct=fitted, numbers=numbers
        ),
    )
    plan = Plan(name="x", choices=choices)
    samples = draw(model, 8, 1)
    made, again = (
        apply_plan(model, each, directory=tmp_path / name, samples=samples)
        for each, name in (
            (plan, "one"),
            (Plan.model_validate_json(plan.model_dump_json()), "two"),
        )
    )
    assert made.path.read_bytes() == again.path.read_bytes()
    stored = {each.name: each for each in onnx.load(made.path).graph.initializer}
    levels = onnx.numpy_helper.to_array(stored["table.levels"]).astype(np.float64)
    steps = np.diff(levels)
    # Rounded to whole numbers, there are two steps: in the middle, and wider in the tails.
    assert np.ptp(steps[5:10]) <= 1
    assert np.ptp([*steps[:3], *steps[-3:]]) <= 1
    assert steps[0] > 1.3 * steps[7]
    feeds = draw(model, 4, 0)
    old, new = run_samples(model, feeds)[0], run_samples(made, feeds)[0]
    assert 0 < np.abs(new - old).max() < np.abs(old).max()


def test_a_recipe_makes_levels_piecewise(tmp_path: Path) -> None:
    recipe = Recipe(numbers=Numbers(levels="piecewise"))
    plan = make_plan(text_model(tmp_path), "codebook16-blocks", directory=tmp_path, recipe=recipe)
    assert [each.title for each in plan.choices] == ["codebook16-blocks of 32, piecewise"] * 2
