"""Weights that simplifying leaves alone are out of its way, and back in their places."""

from pathlib import Path

import numpy as np
import onnx

from edgeopt.model.oracle import run_model
from edgeopt.model.stored import hide_stored, show_stored
from tests.graphs import normal, save_graph

TEXT = """
g (int64[1,8] ids) => (float[1,8,256] y) {
    rows = Gather<axis=0>(table, ids)
    size = Shape(ids)
    last = Gather<axis=0>(size, one)
    places = Range(zero, last, step)
    positions = Gather<axis=0>(order, places)
    x = Add(rows, positions)
    turned = Transpose<perm=[1,0]>(side)
    a = MatMul(x, mix)
    b = MatMul(a, turned)
    c = MatMul(b, twin)
    d = MatMul(c, other)
    y = MatMul(d, small)
}"""


def graph(folder: Path) -> Path:
    twin = normal(3, 256, 256) / 16
    stored: dict[str, np.ndarray] = {
        "small": normal(0, 256, 256)[:, :256] / 16,
        "table": normal(1, 500, 256),
        "order": normal(2, 300, 256),
        "mix": normal(4, 256, 256) / 16,
        "side": normal(5, 256, 256) / 16,
        "twin": twin,
        "other": twin.copy(),
        "one": np.array(1),
        "zero": np.array(0),
        "step": np.array(1),
    }
    return save_graph(folder / "m.onnx", TEXT, stored)


def test_weights_that_only_products_and_lookups_read_are_hidden(tmp_path: Path) -> None:
    hidden = hide_stored(onnx.load(graph(tmp_path)))
    # Not what is transposed, what is looked up at places known beforehand, or equal ones.
    assert [each.name for each in hidden] == ["mix", "small", "table"]


def test_what_is_shown_again_computes_the_same_in_the_order_of_its_readers(tmp_path: Path) -> None:
    path = graph(tmp_path)
    model = onnx.load(path)
    hidden = hide_stored(model)
    assert {"mix", "small", "table"} <= {each.name for each in model.graph.input}
    shown = show_stored(model, hidden)
    assert [each.name for each in shown.graph.input] == ["ids"]
    read = dict.fromkeys(name for node in shown.graph.node for name in node.input)
    stored = {each.name for each in shown.graph.initializer}
    assert [each.name for each in shown.graph.initializer] == [n for n in read if n in stored]
    onnx.save(shown, tmp_path / "shown.onnx")
    feeds = {"ids": np.arange(8)[None]}
    first, second = (run_model(each, feeds)[0] for each in (path, tmp_path / "shown.onnx"))
    np.testing.assert_array_equal(first, second)


def test_nothing_plain_is_hidden_where_a_normalization_may_be_folded_in(tmp_path: Path) -> None:
    text = """
    g (float[8,256] x) => (float[8,256] y) {
        h = MatMul(x, mix)
        y = BatchNormalization(h, scale, bias, mean, var)
    }"""
    ones = np.ones(256, np.float32)
    stored = {"mix": normal(0, 256, 256), "scale": ones, "bias": ones, "mean": ones, "var": ones}
    assert hide_stored(onnx.load(save_graph(tmp_path / "m.onnx", text, stored))) == []


def test_places_of_levels_are_hidden_as_the_codes_that_they_are(tmp_path: Path) -> None:
    text = """
    g (float[8,64] x) => (float[8,64] y) {
        places = Cast<to=6>(codes)
        level = Gather<axis=0>(levels, places)
        h = MatMul(x, level)
        mask = Cast<to=1>(kept)
        y = Mul(h, mask)
    }"""
    random = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        "codes": random.integers(0, 16, (64, 64)).astype(np.uint8),
        "levels": normal(0, 16),
        "kept": random.integers(0, 2, (8, 64)).astype(np.uint8),
    }
    hidden = hide_stored(onnx.load(save_graph(tmp_path / "m.onnx", text, stored)))
    assert [each.name for each in hidden] == ["codes"]
