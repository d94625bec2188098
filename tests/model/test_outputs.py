"""Outputs that are kept, and what goes with the others."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.errors import ConfigError
from edgeopt.model.normalize import normalize_model
from edgeopt.model.oracle import run_model
from tests.graphs import describe, normal, save_graph

TWO = """
two (float[2,8] x, float[2,8] z) => (float[2,4] a, float[2,4] b, float[2,8] c) {
    wide = MatMul(x, shared)
    bent = Relu(wide)
    a = MatMul(bent, head)
    both = Add(bent, z)
    b = MatMul(both, other)
    c = Tanh(z)
}"""


def save(folder: Path) -> Path:
    stored = {"shared": normal(0, 8, 8), "head": normal(1, 8, 4), "other": normal(2, 8, 4)}
    return save_graph(folder / "two.onnx", TWO, stored)


@pytest.mark.parametrize(
    ("kept", "inputs", "nodes", "weights"),
    [
        (("a",), ["x"], 3, {"shared", "head"}),
        (("b",), ["x", "z"], 4, {"shared", "other"}),
        (("b", "a"), ["x", "z"], 5, {"shared", "head", "other"}),
        (("c",), ["z"], 1, set()),
        ((), ["x", "z"], 6, {"shared", "head", "other"}),
    ],
)
def test_only_what_the_outputs_are_computed_of_stays(
    tmp_path: Path, kept: tuple[str, ...], inputs: list[str], nodes: int, weights: set[str]
) -> None:
    model = describe(save(tmp_path))
    made = normalize_model(model, shapes={}, outputs=kept, directory=tmp_path / "out")
    assert [each.name for each in made.inputs] == inputs
    assert [each.name for each in made.outputs] == list(kept or ("a", "b", "c"))
    graph = onnx.load(made.path).graph
    assert len(graph.node) == nodes
    assert {each.name for each in graph.initializer} == weights
    feeds = {
        each.name: np.random.default_rng(0).standard_normal(each.shape).astype(np.float32)
        for each in model.inputs
    }
    whole = dict(zip(("a", "b", "c"), run_model(model, feeds), strict=True))
    own = {name: feeds[name] for name in inputs}
    for name, found in zip(kept or ("a", "b", "c"), run_model(made, own), strict=True):
        assert np.abs(found - whole[name]).max() < 1e-5


@pytest.mark.parametrize("outputs", [("d",), ("a", "a")])
def test_an_output_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, outputs: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=f"no output named {outputs[-1]}") as caught:
        normalize_model(
            describe(save(tmp_path)), shapes={}, outputs=outputs, directory=tmp_path / "out"
        )
    assert caught.value.why == "its outputs are a, b, c"
