from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.model.branches import inline_branches
from edgeopt.model.oracle import run_model
from tests.graphs import normal, save_graph

BRANCH = """
    y = If ({condition}) <
        then_branch = then () => (float[2,3] a) {{ s = Add(x, x)  a = Neg(s) }},
        else_branch = other () => (float[2,3] b) {{ s = Mul(x, x)  b = Abs(s) }}
    >"""
STORED = {
    "yes": np.array(True),
    "no": np.array([False]),
    "two": np.array(2),
    "axis": np.array(0),
}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def graph(tmp_path: Path, body: str) -> onnx.ModelProto:
    text = f"g (float[2,3] x, bool[1] asked) => (float[2,3] y) {{ {body} }}"
    return onnx.load(save_graph(tmp_path / "m.onnx", text, STORED))


def agree(before: onnx.ModelProto, after: onnx.ModelProto, folder: Path) -> None:
    feeds = {"x": normal(1, 2, 3), "asked": np.array([True])}
    for name, model in (("before", before), ("after", after)):
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{name}.onnx")
    old = run_model(folder / "before.onnx", feeds)
    new = run_model(folder / "after.onnx", feeds)
    np.testing.assert_array_equal(old[0], new[0])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (BRANCH.format(condition="yes"), "Neg"),
        (BRANCH.format(condition="no"), "Abs"),
        (
            "d = Shape(x)  n = Gather<axis=0>(d, axis)  c = Equal(n, two)"
            + BRANCH.format(condition="c"),
            "Neg",
        ),
    ],
    ids=["stored", "stored in a vector", "of a shape"],
)
def test_a_known_condition_leaves_its_branch(tmp_path: Path, body: str, expected: str) -> None:
    model = graph(tmp_path, body)
    after = inline_branches(onnx.ModelProto.FromString(model.SerializeToString()))
    assert "If" not in operators(after)
    assert expected in operators(after)
    agree(model, after, tmp_path)


def test_a_condition_that_is_an_input_stays(tmp_path: Path) -> None:
    model = graph(tmp_path, BRANCH.format(condition="asked"))
    assert operators(inline_branches(model)) == ["If"]


def test_nested_branches_that_use_the_same_names_are_kept_apart(tmp_path: Path) -> None:
    body = """
    s = Neg(x)
    z = If (yes) <
        then_branch = outer () => (float[2,3] a) {
            t = Exp(s)
            a = If (no) <
                then_branch = inner () => (float[2,3] c) { c = Neg(t) },
                else_branch = last () => (float[2,3] d) { u = Add(t, s)  d = Abs(u) }
            >
        },
        else_branch = other () => (float[2,3] b) { b = Abs(x) }
    >
    w = If (yes) <
        then_branch = outer2 () => (float[2,3] a) { t = Sqrt(z)  a = Add(t, s) },
        else_branch = other2 () => (float[2,3] b) { b = Abs(x) }
    >
    y = Mul(w, s)"""
    model = graph(tmp_path, body)
    after = inline_branches(onnx.ModelProto.FromString(model.SerializeToString()))
    assert "If" not in operators(after)
    agree(model, after, tmp_path)


def test_a_branch_may_hand_on_a_tensor_from_outside(tmp_path: Path) -> None:
    body = """
    s = Neg(x)
    y = If (yes) <
        then_branch = then () => (float[2,3] s) { },
        else_branch = other () => (float[2,3] b) { b = Abs(x) }
    >"""
    model = graph(tmp_path, body)
    after = inline_branches(onnx.ModelProto.FromString(model.SerializeToString()))
    assert operators(after) == ["Neg", "Identity"]
