from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.errors import ModelError
from edgeopt.model.oracle import run_model
from edgeopt.model.simplify import part_zero_points, relative_difference
from tests.graphs import normal, save_graph


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


def test_integer_products_whose_zero_point_is_shared_run_in_onnxruntime(tmp_path: Path) -> None:
    text = """
    quantized (float[4,64] x) => (float[4,32] y) {
        codes, scale, zero = DynamicQuantizeLinear(x)
        first = MatMulInteger(codes, one, zero, none)
        second = MatMulInteger(codes, two, zero, none)
        total = Add(first, second)
        wide = Cast<to=1>(total)
        y = Mul(wide, scale)
    }"""
    random = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        name: random.integers(-127, 127, (64, 32)).astype(np.int8) for name in ("one", "two")
    }
    stored["none"] = np.zeros((), np.int8)
    path = save_graph(tmp_path / "m.onnx", text, stored)
    feeds = {"x": normal(0, 4, 64)}
    expected = run_model(path, feeds, optimize=False)[0]
    model = onnx.load(path)
    part_zero_points(model)
    assert [node.input[3] for node in model.graph.node[1:3]] == ["none", "none.1"]
    onnx.save(model, path)
    assert np.allclose(run_model(path, feeds)[0], expected)
    # A second time there is nothing left to part.
    part_zero_points(model)
    assert len(model.graph.initializer) == 4
