from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgeopt.model.oracle import run_model, seeded_inputs
from edgeopt.model.unroll import LONGEST, unroll_model
from tests.graphs import describe, normal, save_graph

GATES = {"LSTM": 4, "GRU": 3}


def recurrent(
    folder: Path, operator: str, *, direction: str, steps: int, states: bool, extra: str = ""
) -> Path:
    """A recurrent layer of 5 inputs and 7 states, batch 2; all its outputs are the model's."""
    total = 2 if direction == "bidirectional" else 1
    given = f"float[{total},2,7] h" + (f", float[{total},2,7] c" if operator == "LSTM" else "")
    last = f", float[{total},2,7] y_h" + (f", float[{total},2,7] y_c" if operator == "LSTM" else "")
    names = "y, y_h, y_c" if operator == "LSTM" else "y, y_h"
    passed = ", , h, c" if operator == "LSTM" else ", , h"
    text = f"""
    agraph (float[{steps},2,5] x{", " + given if states else ""})
        => (float[{steps},{total},2,7] y{last}) {{
        {names} = {operator}<hidden_size=7, direction="{direction}"{extra}>
            (x, w, r, b{passed if states else ""})
    }}"""
    gates = 7 * GATES[operator]
    stored: dict[str, npt.NDArray[Any]] = {
        "w": normal(1, total, gates, 5),
        "r": normal(2, total, gates, 7) / 2,
        "b": normal(3, total, 2 * gates),
    }
    return save_graph(folder / "m.onnx", text, stored)


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("steps", "states"), [(1, True), (6, True), (6, False)])
def test_an_unrolled_layer_computes_what_the_layer_does(
    tmp_path: Path, operator: str, direction: str, steps: int, states: bool
) -> None:
    path = recurrent(tmp_path, operator, direction=direction, steps=steps, states=states)
    made = tmp_path / "unrolled.onnx"
    onnx.save_model(unroll_model(onnx.load(path)), made)
    onnx.checker.check_model(onnx.load(made), full_check=True)
    assert operator not in {node.op_type for node in onnx.load(made).graph.node}
    for seed in range(3):
        feeds = seeded_inputs(describe(path), seed)
        for old, new in zip(run_model(path, feeds), run_model(made, feeds), strict=True):
            assert np.abs(new - old).max() < 1e-5 * np.abs(old).max()


def test_a_gru_that_resets_after_the_product_is_another_one(tmp_path: Path) -> None:
    outputs = []
    for extra in ("", ", linear_before_reset=1"):
        path = recurrent(tmp_path, "GRU", direction="forward", steps=3, states=True, extra=extra)
        feeds = seeded_inputs(describe(path), 0)
        expected = run_model(path, feeds)[0]
        onnx.save_model(unroll_model(onnx.load(path)), path)
        outputs.append(run_model(path, feeds)[0])
        assert np.abs(outputs[-1] - expected).max() < 1e-5
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("steps", "extra"),
    [
        (LONGEST + 1, ""),
        (2, ", clip=3.0"),
        (2, ", input_forget=1"),
        (2, ', activations=["Sigmoid", "Tanh", "Relu"]'),
    ],
)
def test_what_the_steps_do_not_do_is_left_as_it_is(tmp_path: Path, steps: int, extra: str) -> None:
    path = recurrent(tmp_path, "LSTM", direction="forward", steps=steps, states=False, extra=extra)
    assert [node.op_type for node in unroll_model(onnx.load(path)).graph.node] == ["LSTM"]


def test_defaults_that_are_written_out_are_defaults(tmp_path: Path) -> None:
    extra = ', input_forget=0, activations=["Sigmoid", "Tanh", "Tanh"]'
    path = recurrent(tmp_path, "LSTM", direction="forward", steps=2, states=False, extra=extra)
    assert "LSTM" not in {node.op_type for node in unroll_model(onnx.load(path)).graph.node}
