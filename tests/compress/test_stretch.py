"""Stretches of a graph, one after the other, compute what the whole does."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.compress.stretch import cut_stretches, wrap
from edgeopt.model.graph import infer_types, weights
from edgeopt.model.oracle import run_model
from tests.graphs import deep_model, normal, save_graph


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_stretches_compute_what_the_whole_does_and_replace_weights(
    tmp_path: Path, count: int
) -> None:
    model = deep_model(tmp_path)
    loaded = infer_types(onnx.load(model.path))
    names = [each.name for each in weights(loaded.graph)]
    found = cut_stretches(loaded, list(loaded.graph.node), names, count)
    assert len(found) == min(count, len(names))
    assert sorted(name for each in found for name in each.replaced) == sorted(names)
    x = normal(3, *model.inputs[0].shape)
    moved = {"w1": normal(9, 64, 64) / np.float32(8)}
    for values in ({}, moved):
        state = {"x": wrap(x)}
        for stretch in found:
            state = stretch.run(state, {name: wrap(each) for name, each in values.items()})
        for tensor in loaded.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
        path = tmp_path / "whole.onnx"
        onnx.save(loaded, path)
        np.testing.assert_allclose(
            state["scores"].numpy(), run_model(path, {"x": x})[0], rtol=1e-4, atol=1e-6
        )
        # What nothing reads any more is forgotten.
        assert set(state) == {"scores"}


def test_a_weight_that_is_read_twice_is_replaced_in_both_places(tmp_path: Path) -> None:
    text = """
    twice (float[4,32] x) => (float[4,32] y, float[4,32] kept) {
        kept = Relu(x)
        a = MatMul(kept, one)
        b = Tanh(a)
        c = MatMul(b, two)
        y = MatMul(c, one)
        unread = Neg(c)
    }"""
    stored = {"one": normal(0, 32, 32) / 6, "two": normal(1, 32, 32) / 6}
    loaded = infer_types(onnx.load(save_graph(tmp_path / "m.onnx", text, stored)))
    found = cut_stretches(loaded, list(loaded.graph.node), ["one", "two"], 2)
    assert [each.replaced for each in found] == [{"one"}, {"one", "two"}]
    x, one = normal(2, 4, 32), normal(5, 32, 32) / np.float32(6)
    state = {"x": wrap(x)}
    for stretch in found:
        state = stretch.run(state, {"one": wrap(one)})
    wanted = np.tanh(np.maximum(x, 0) @ one) @ stored["two"] @ one
    np.testing.assert_allclose(state["y"].numpy(), wanted, rtol=1e-4, atol=1e-5)
    # An output is there at the end, wherever it is made.
    np.testing.assert_array_equal(state["kept"].numpy(), np.maximum(x, 0))
