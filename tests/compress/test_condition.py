"""Float weights changed so that 8 bits lose less: the model computes what it did."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.artifact import Choice, Model, Plan, Recipe
from edgeopt.compress import apply_plan, make_plan
from edgeopt.compress.condition import equalize, mean_inputs, smooth, smoothing_factors
from edgeopt.errors import ConfigError
from edgeopt.model.graph import Weight, initializers, weights
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.graphs import describe, normal, save_graph

#: Channels that stand out, as behind normalizations of encoders.
LOUD = (3, 17)


def spread_model(folder: Path) -> Model:
    text = """
    g (float[1,6,32] x) => (float[1,6,64] y) {
        loud = Mul(x, gains)
        a = MatMul(loud, one)
        b = MatMul(loud, two)
        y = Add(a, b)
    }"""
    gains = np.ones(32, np.float32)
    gains[list(LOUD)] = 40
    stored = {"gains": gains, "one": normal(0, 32, 64), "two": normal(1, 32, 64)}
    return describe(save_graph(folder / "spread.onnx", text, stored))


def stored_of(model: onnx.ModelProto, name: str) -> Array:
    found: Array = numpy_helper.to_array(initializers(model.graph)[name])
    return found


def wanted(model: onnx.ModelProto, method: str) -> list[tuple[Weight, Choice]]:
    return [
        (each, Choice.model_validate({"weight": each.name, "method": method}))
        for each in weights(model.graph)
        if each.role != "table"
    ]


def run(model: onnx.ModelProto, like: Model, feeds: dict[str, Array], folder: Path) -> Array:
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "changed.onnx")
    return run_samples(like.model_copy(update={"path": folder / "changed.onnx"}), feeds)[0]


def lost(model: Model, recipe: Recipe, method: str, folder: Path) -> float:
    samples = draw(model, 40, 1)
    plan = make_plan(model, method, samples=samples, directory=folder, recipe=recipe)  # type: ignore[arg-type]
    made = apply_plan(model, plan, directory=folder, samples=samples)
    feeds = draw(model, 30, 2)
    old, new = run_samples(model, feeds)[0], run_samples(made, feeds)[0]
    return float(np.square(new - old).sum() / np.square(old).sum())


def test_smoothing_moves_by_the_formula_and_computes_the_same(tmp_path: Path) -> None:
    model = spread_model(tmp_path)
    loaded, samples = onnx.load(model.path), draw(model, 20, 1)
    made = smooth(onnx.load(model.path), wanted(loaded, "int8-dynamic"), samples, 0.5)
    onnx.checker.check_model(made, full_check=True)
    one, two = stored_of(loaded, "one"), stored_of(loaded, "two")
    peaks = np.abs(samples["x"].reshape(-1, 32) * stored_of(loaded, "gains")).max(axis=0)
    rows = np.maximum(np.abs(one).max(axis=1), np.abs(two).max(axis=1))
    factors = np.sqrt(peaks) / np.sqrt(rows)
    assert stored_of(made, "loud.smoothing") == pytest.approx(1 / factors, rel=1e-5)
    assert stored_of(made, "one") == pytest.approx(one * factors[:, None], rel=1e-5)
    feeds = draw(model, 5, 3)
    found, old = run(made, model, feeds, tmp_path / "m"), run_samples(model, feeds)[0]
    assert np.abs(found - old).max() < 1e-5 * np.abs(old).max()


def test_a_strength_of_one_moves_all_of_the_activations_spread() -> None:
    peaks, rows = np.array([1.0, 8.0, 0.0]), np.array([2.0, 2.0, 3.0])
    assert smoothing_factors(peaks, rows, 0.75) == pytest.approx([2**-0.25, 8**0.75 / 2**0.25, 1])
    # A channel that is always zero is left alone: nothing may be divided by zero.
    assert smoothing_factors(peaks, rows, 0.999999)[:2] == pytest.approx([1, 8], rel=1e-4)


# Of new samples some values lie beyond the ranges of the others, smoothed or not.
@pytest.mark.parametrize(("method", "most"), [("int8-dynamic", 0.5), ("int8-static", 0.85)])
def test_smoothing_saves_activations_of_which_few_channels_stand_out(
    method: str, most: float, tmp_path: Path
) -> None:
    model = spread_model(tmp_path)
    plain, smoothed = (
        lost(model, recipe, method, tmp_path / str(recipe.smooth))
        for recipe in (Recipe(), Recipe(smooth=0.5))
    )
    assert smoothed < most * plain


def test_what_is_not_rounded_by_its_inputs_is_not_smoothed(tmp_path: Path) -> None:
    model = spread_model(tmp_path)
    loaded = onnx.load(model.path)
    made = smooth(loaded, wanted(loaded, "int8-weights"), draw(model, 4, 1), 0.5)
    assert made.SerializeToString() == loaded.SerializeToString()


def layers_model(folder: Path) -> Model:
    text = """
    g (float[1,3,10,10] x) => (float[1,4] y) {
        a = Conv<pads=[1,1,1,1]>(x, one, one_bias)
        b = Relu(a)
        c = Conv<strides=[2,2]>(b, two, two_bias)
        d = Relu(c)
        e = GlobalAveragePool(d)
        f = Flatten(e)
        g1 = Gemm<transB=1>(f, three, three_bias)
        h = Relu(g1)
        y = Gemm(h, four, four_bias)
    }"""
    ranges = np.exp(2 * normal(9, 8))
    stored = {
        "one": (normal(0, 8, 3, 3, 3) * ranges.reshape(-1, 1, 1, 1)).astype(np.float32),
        "one_bias": normal(1, 8) * ranges.astype(np.float32),
        "two": (normal(2, 12, 8, 3, 3) / ranges.reshape(1, -1, 1, 1) / 8).astype(np.float32),
        "two_bias": normal(3, 12),
        "three": normal(4, 16, 12),
        "three_bias": normal(5, 16),
        "four": normal(6, 16, 4),
        "four_bias": normal(7, 4),
    }
    return describe(save_graph(folder / "layers.onnx", text, stored))


def test_equalized_channels_have_the_same_range_in_both_layers(tmp_path: Path) -> None:
    model = layers_model(tmp_path)
    loaded = onnx.load(model.path)
    made = equalize(loaded)
    one, two = stored_of(made, "one"), stored_of(made, "two")
    first, second = np.abs(one).max(axis=(1, 2, 3)), np.abs(two).max(axis=(0, 2, 3))
    assert first == pytest.approx(second, rel=1e-4)
    before = np.abs(stored_of(loaded, "one")).max(axis=(1, 2, 3))
    after = np.abs(stored_of(loaded, "two")).max(axis=(0, 2, 3))
    assert first == pytest.approx(np.sqrt(before * after), rel=1e-4)
    # The two products behind the pool are a pair as well, one of them turned.
    three, four = stored_of(made, "three"), stored_of(made, "four")
    assert np.abs(three).max(axis=1) == pytest.approx(np.abs(four).max(axis=1), rel=1e-4)
    feeds = draw(model, 5, 3)
    found, old = run(made, model, feeds, tmp_path / "m"), run_samples(model, feeds)[0]
    assert np.abs(found - old).max() < 1e-5 * np.abs(old).max()


def test_equalizing_without_the_bias_would_compute_something_else(tmp_path: Path) -> None:
    model = layers_model(tmp_path)
    made = equalize(onnx.load(model.path))
    old_bias = initializers(onnx.load(model.path).graph)["one_bias"]
    initializers(made.graph)["one_bias"].CopyFrom(old_bias)
    feeds = draw(model, 5, 3)
    found, old = run(made, model, feeds, tmp_path / "m"), run_samples(model, feeds)[0]
    assert np.abs(found - old).max() > 1e-2 * np.abs(old).max()


def test_the_mean_of_inputs_is_that_of_each_channel(tmp_path: Path) -> None:
    model = layers_model(tmp_path)
    samples = draw(model, 6, 1)
    found = mean_inputs(onnx.load(model.path), ["x", "f"], samples)
    assert found["x"] == pytest.approx(samples["x"].mean(axis=(0, 1, 3, 4)), abs=1e-6)
    assert found["f"].shape == (12,)


def test_a_recipe_is_part_of_the_plan_and_needs_its_samples_again(tmp_path: Path) -> None:
    model = spread_model(tmp_path)
    samples = draw(model, 20, 1)
    recipe = Recipe(smooth=0.5, equalize=True, ranges="mse", correct_bias=True)
    plan = make_plan(
        model, "int8-static", samples=samples, directory=tmp_path / "plan", recipe=recipe
    )
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again.recipe == recipe
    one, two = (
        apply_plan(model, each, directory=tmp_path / name, samples=samples)
        for each, name in ((plan, "one"), (again, "two"))
    )
    assert one.sha256 == two.sha256
    with pytest.raises(ConfigError, match="calibration samples"):
        apply_plan(model, plan, directory=tmp_path / "none")
