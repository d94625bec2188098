from pathlib import Path

import numpy as np
import pytest

from edgeopt.model.cut import cut_model, read_nodes
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.graphs import describe, normal, save_graph, text_model


def test_a_cut_gives_what_the_rest_would_have_read(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    feeds = seeded_inputs(model, 1)
    names = [node.output[0] for node in read_nodes(model)]
    cut = cut_model(model, names.index("active") + 1, feeds=feeds, directory=tmp_path / "cut")
    assert cut is not None
    assert [each.name for each in cut.inputs] == ["input_ids"]
    assert [(each.name, each.dtype, each.shape) for each in cut.outputs] == [
        ("active", "float32", (1, 8, 64))
    ]
    assert np.all(run_model(cut, {"input_ids": feeds["input_ids"]})[0] >= 0)


def test_every_tensor_that_crosses_the_cut_is_an_output(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    feeds = seeded_inputs(model, 1)
    names = [node.output[0] for node in read_nodes(model)]
    count = names.index("column") + 1
    cut = cut_model(model, count, feeds=feeds, directory=tmp_path / "cut")
    assert cut is not None
    assert {each.name for each in cut.outputs} == {"active", "column"}


def test_cutting_after_the_last_node_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    feeds = seeded_inputs(model, 1)
    cut = cut_model(model, len(read_nodes(model)), feeds=feeds, directory=tmp_path / "cut")
    assert cut is not None
    assert cut.outputs == model.outputs
    assert np.array_equal(run_model(cut, feeds)[0], run_model(model, feeds)[0])


def test_what_a_branch_reads_crosses_the_cut(tmp_path: Path) -> None:
    text = """
    branches (float[4] x, bool[] chosen) => (float[4] y) {
        active = Relu(x)
        wide = Add(x, one)
        y = If (chosen) <
            then_branch = then () => (float[4] a) { a = Neg(active) },
            else_branch = other () => (float[4] b) { b = Identity(wide) }
        >
    }"""
    model = describe(save_graph(tmp_path / "m.onnx", text, {"one": normal(0, 4)}))
    feeds = {"x": normal(1, 4), "chosen": np.array(True)}
    cut = cut_model(model, 2, feeds=feeds, directory=tmp_path / "cut")
    assert cut is not None
    assert {each.name for each in cut.outputs} == {"active", "wide"}


@pytest.mark.parametrize("count", [0, 1])
def test_nodes_without_an_input_leave_nothing_to_run(tmp_path: Path, count: int) -> None:
    text = "constants (float[4] x) => (float[4] y) { c = Neg(one)  y = Add(x, c) }"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"one": normal(0, 4)}))
    assert cut_model(model, count, feeds={"x": normal(1, 4)}, directory=tmp_path / "cut") is None
