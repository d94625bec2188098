"""Whatever reduces without a kernel of its own, against onnxruntime, on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgeopt.compile.kernels import reduction, rows
from edgeopt.compile.kernels.rule import RULE, sorted_functions
from edgeopt.model.oracle import run_model
from tests.compile.kit import Graph, distance, lower_natively, run_natively

pytestmark = pytest.mark.host

SHAPES = st.lists(st.sampled_from([1, 2, 3, 7, 8, 16, 33, 64]), min_size=2, max_size=4)


def save(path: Path, operator: str, shape: Sequence[int], axis: int) -> Path:
    """Write a model of one operator that keeps the axes of its input; ArgMax and sums keep a 1."""
    graph, out, kind = Graph(), list(shape), TensorProto.FLOAT
    x, attributes = graph.input("x", shape), {"axis": axis}
    inputs: list[Any] = [x]
    if operator.startswith(("Arg", "Reduce")):
        out[axis] = 1
    if operator.startswith("Arg"):
        kind = TensorProto.INT64
    if operator.startswith("Reduce"):
        inputs.append(graph.constant(np.array([axis])))
        attributes = {}
    if operator == "CumSum":
        inputs, attributes = [x, graph.constant(np.array(axis))], {}
    graph.output(graph.add(operator, *inputs, **attributes), out, kind)
    return graph.save(path)


def rules(path: Path) -> list[str]:
    """Name the rule of every function of a model; none may be without."""
    module, refusals = lower_natively(path)
    assert not refusals
    return [str(function.attrs[RULE]) for _, function in sorted_functions(module)]


@pytest.mark.parametrize(
    "operator",
    ["Softmax", "LogSoftmax", "ArgMax", "ArgMin", "ReduceProd", "ReduceLogSumExp", "CumSum"],
)
@given(st.data())
@settings(max_examples=8, deadline=None)
def test_a_reduction_over_any_axis_has_a_rule_and_onnxruntimes_values(
    tmp_path_factory: pytest.TempPathFactory, operator: str, data: st.DataObject
) -> None:
    shape = data.draw(SHAPES)
    axis = data.draw(st.integers(0, len(shape) - 1))
    path = save(tmp_path_factory.mktemp("m") / "m.onnx", operator, shape, axis)
    rules(path)
    values = np.random.default_rng(data.draw(st.integers(0, 2))).uniform(-1, 1, shape)
    feeds = {"x": values.astype(np.float32)}
    found, expected = run_natively(path, feeds)[0], run_model(path, feeds)[0]
    if operator.startswith("Arg"):
        assert np.array_equal(found, expected)
    else:
        assert distance(found, expected) < 2e-6


def test_what_reduces_over_channels_is_folded_as_vectors_of_places(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "Softmax", (1, 16, 40, 64), 1)
    assert rules(path) == [reduction.KIND]
    module, _ = lower_natively(path)
    text = module.script(show_meta=False)
    assert text.count("T.vectorized") >= 4  # the greatest, its power, the total, the quotient
    assert "T.parallel" in text


def test_one_output_that_folds_many_elements_has_a_fold_in_every_lane(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "ReduceProd", (4, 128), 1)
    assert rules(path) == [reduction.KIND]
    module, _ = lower_natively(path)
    assert "_rf" in module.script(show_meta=False)


def test_the_logarithm_of_softmax_over_rows_is_a_row_kernel(tmp_path: Path) -> None:
    assert rules(save(tmp_path / "m.onnx", "LogSoftmax", (10, 100), 1)) == [rows.KIND]
