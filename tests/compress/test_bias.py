"""Biases that make up for what rounding does to the mean of a layer's outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.artifact import Choice, Method, Plan, Recipe
from edgeopt.compress import apply_plan
from edgeopt.compress.codes import encode_weight
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_condition import layers_model
from tests.compress.test_plan import draw
from tests.graphs import describe, normal, save_graph


def shifted(samples: dict[str, Array]) -> dict[str, Array]:
    """Inputs whose mean is not zero: otherwise rounding moves no mean."""
    return {name: (values + 2).astype(np.float32) for name, values in samples.items()}


@pytest.mark.parametrize("method", ["int8-weights", "int8-dynamic", "int2-blocks"])
def test_the_mean_output_of_a_layer_is_what_it_was(method: Method, tmp_path: Path) -> None:
    text = "g (float[1,8,32] x) => (float[1,8,16] y) { y = MatMul(x, w) }"
    model = describe(save_graph(tmp_path / "g.onnx", text, {"w": normal(0, 32, 16)}))
    block = 32 if method == "int2-blocks" else None
    choices = (Choice(weight="w", method=method, block=block),)
    samples = shifted(draw(model, 60, 1))
    old = run_samples(model, samples)[0]
    moved = []
    for correct in (False, True):
        plan = Plan(name="x", choices=choices, recipe=Recipe(correct_bias=correct))
        made = apply_plan(model, plan, directory=tmp_path / str(correct), samples=samples)
        onnx.checker.check_model(onnx.load(made.path), full_check=True)
        assert [each.name for each in describe(made.path).outputs] == ["y"]
        moved.append(np.abs((run_samples(made, samples)[0] - old).mean(axis=(0, 1, 2))).max())
    assert moved[1] < 0.1 * moved[0]


def test_the_shift_is_that_of_the_formula_for_convolutions_and_gemms(tmp_path: Path) -> None:
    model = layers_model(tmp_path)
    choices = tuple(Choice(weight=name, method="int8-weights") for name in ("one", "three"))
    samples = shifted(draw(model, 10, 1))
    plan = Plan(name="x", choices=choices, recipe=Recipe(correct_bias=True))
    made = initializers(onnx.load(
        apply_plan(model, plan, directory=tmp_path / "out", samples=samples).path
    ).graph)  # fmt: skip
    stored = initializers(onnx.load(model.path).graph)
    one = numpy_helper.to_array(stored["one"])
    codes, scales = encode_weight(one, axis=0)
    change = codes * scales.reshape(-1, 1, 1, 1) - one
    mean = samples["x"].mean(axis=(0, 1, 3, 4))
    wanted = -(change.sum(axis=(2, 3)) @ mean)
    assert numpy_helper.to_array(made["a.shift"]).reshape(-1) == pytest.approx(wanted, abs=1e-5)
    assert "g1.shift" in made
    assert "c.shift" not in made
