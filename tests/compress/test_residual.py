"""Whole residual branches that go: found from the graph, and y = x + f(x) becomes y = x."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.cuts import groups_by_name
from edgeopt.compress.flops import count_flops, find_products
from edgeopt.compress.groups import open_network
from edgeopt.compress.ladder import Ladders, levels_of
from edgeopt.compress.pruning import measure_units, prune_model
from edgeopt.cut import Cut
from edgeopt.errors import ConfigError
from edgeopt.model.oracle import Array, run_model, run_samples, seeded_inputs
from edgeopt.task import Arrays
from tests.compress.test_groups import build
from tests.compress.test_refit import draw
from tests.graphs import describe, normal, save_graph

#: Two layers, each of a branch with a bias and a factor, then something that reads the sum.
DEEP = """
deep (float[1,8,16] x) => (float[1,8,4] y) {
    one_wide = MatMul(x, one_up)
    one_bent = Relu(one_wide)
    one_back = MatMul(one_bent, one_down)
    one_moved = Add(one_bias, one_back)
    one_small = Mul(one_moved, one_factor)
    middle = Add(one_small, x)
    two_wide = MatMul(middle, two_up)
    two_bent = Relu(two_wide)
    two_back = MatMul(two_bent, two_down)
    last = Add(middle, two_back)
    y = MatMul(last, head)
}"""


def save_deep(folder: Path, *, second: float = 1.0) -> Model:
    stored: dict[str, Array] = {
        "one_up": normal(0, 16, 48) / 4,
        "one_down": normal(1, 48, 16) / 7,
        "one_bias": normal(2, 16),
        "one_factor": np.array([0.5], np.float32),
        "two_up": normal(3, 16, 48) / 4,
        "two_down": np.float32(second) * normal(4, 48, 16) / 7,
        "head": normal(5, 16, 4) / 4,
    }
    return describe(save_graph(folder / "deep.onnx", DEEP, stored))


def without(model: Model, groups: tuple[str, ...], folder: Path) -> Model:
    cuts = tuple(Cut(group=each, kept=()) for each in groups)
    return apply_plan(model, Plan(name="x", choices=(), cuts=cuts), directory=folder)


def operators(model: Model) -> list[str]:
    return [each.op_type for each in onnx.load(model.path).graph.node]


def expected(x: Array, *, first: bool, second: bool) -> Array:
    """What is left, computed by its formula."""
    values = x.astype(np.float64)
    branch = np.zeros(())
    if first:
        branch = np.maximum(values @ normal(0, 16, 48) / 4, 0) @ normal(1, 48, 16) / 7
    values = values + 0.5 * (branch + normal(2, 16))
    if second:
        values = values + np.maximum(values @ normal(3, 16, 48) / 4, 0) @ normal(4, 48, 16) / 7
    return values @ normal(5, 16, 4) / 4


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (("two_up",), ["MatMul", "Relu", "MatMul", "Add", "Mul", "Add", "Identity", "MatMul"]),
        (("one_up",), ["Add", "MatMul", "Relu", "MatMul", "Add", "MatMul"]),
        (("one_up", "two_up"), ["Add", "Identity", "MatMul"]),
    ],
)
def test_what_is_left_computes_the_sum_without_the_branch(
    tmp_path: Path, gone: tuple[str, ...], left: list[str]
) -> None:
    model = save_deep(tmp_path)
    made = without(model, gone, tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    feeds = seeded_inputs(model, 0)
    found, whole = run_model(made, feeds)[0], run_model(model, feeds)[0]
    wanted = expected(feeds["x"], first="one_up" not in gone, second="two_up" not in gone)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(found - whole).max() > 0.05 * np.abs(whole).max()
    assert operators(made) == left
    stored = {each.name for each in onnx.load(made.path).graph.initializer}
    assert not stored & {name.replace("up", part) for name in gone for part in ("up", "down")}


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_a_layer_of_neurons_and_one_of_heads_can_go(tmp_path: Path, name: str) -> None:
    model, loaded = build(tmp_path, name)
    (group,) = groups_by_name(loaded).values()
    assert levels_of(group)[-1] == 0
    made = without(model, (group.name,), tmp_path / "out")
    feeds = seeded_inputs(model, 1)
    assert np.array_equal(run_model(made, feeds)[0], feeds["x"])
    assert operators(made) == ["Identity"]
    products = find_products(open_network(loaded), [group])
    assert count_flops(products, {group.name: group.units}) == 0


def test_a_bottleneck_of_convolutions_can_go_and_the_stream_that_it_adds_to_cannot(
    tmp_path: Path,
) -> None:
    model, loaded = build(tmp_path, "residual")
    groups = groups_by_name(loaded)
    assert {name for name, each in groups.items() if each.branches} == {"narrow"}
    made = without(model, ("narrow",), tmp_path / "out")
    # The convolution by channel lies in the branch too.
    assert operators(made).count("Conv") == 1
    feeds = seeded_inputs(model, 0)
    # As with zeros for what made the branch.
    for tensor in loaded.graph.initializer:
        if tensor.name == "widen":
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, "widen"))
    path = tmp_path / "zeros.onnx"
    onnx.save(loaded, path)
    wanted = run_model(path, feeds)[0]
    assert np.abs(run_model(made, feeds)[0] - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "end",
    [
        "y = Tanh(back)",
        "y = Add(back, back)",
        "scaled = Mul(back, x)  y = Add(scaled, x)",
        "y = Add(back, row)",
        "y = Add(back, beside)",
    ],
    ids=["no sum", "twice", "gated", "broadcast", "of something else"],
)
def test_what_does_not_end_in_a_sum_keeps_a_unit(tmp_path: Path, end: str) -> None:
    text = f"""
    g (float[4,8] x, float[4,8] z) => (float[4,8] y) {{
        beside = Tanh(z)
        wide = MatMul(x, up)
        bent = Relu(wide)
        back = MatMul(bent, down)
        row = ReduceMean<keepdims=1>(x, first)
        {end}
    }}"""
    stored = {"up": normal(0, 8, 16), "down": normal(1, 16, 8), "first": np.array([0])}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    (group,) = groups_by_name(onnx.load(model.path)).values()
    assert not group.branches
    assert levels_of(group)[-1] > 0
    with pytest.raises(ConfigError, match="one of its 16 units has to stay"):
        without(model, ("up",), tmp_path / "out")


def test_harm_says_which_layer_goes_and_the_rest_is_fitted(tmp_path: Path) -> None:
    """The second layer does next to nothing: of half of the work, all of it goes."""
    model = save_deep(tmp_path, second=0.02)
    np.savez(tmp_path / "train.npz", **draw(model, 200, 0))  # type: ignore[arg-type]
    task = Arrays(kind="arrays", train=tmp_path / "train.npz")
    ladders = measure_units(model, task)
    steps = {name: each[-1] for name, each in ladders.steps.items()}
    assert steps["one_up"].kept == steps["two_up"].kept == ()
    assert steps["two_up"].harm < 0.01 * steps["one_up"].harm
    pruned = prune_model(model, task, ladders, share=0.45, directory=tmp_path / "out")
    kept = {each.cut.group: each.cut.kept for each in pruned.pruning.entries}
    assert kept["two_up"] == ()
    feeds = draw(model, 20, 3)
    old, new = run_samples(model, feeds)[0], run_samples(pruned.model, feeds)[0]
    assert 0 < np.abs(new - old).max() < 0.05 * np.abs(old).max()
    other = Ladders(steps={name: ladders.steps[name] for name in ("one_up",)})
    worse = prune_model(model, task, other, share=0.45, directory=tmp_path / "worse")
    far = run_samples(worse.model, feeds)[0]
    assert np.abs(far - old).max() > 3 * np.abs(new - old).max()
    entry = next(each for each in pruned.pruning.entries if each.cut.group == "two_up")
    assert (entry.units, entry.after) == (48, 0)
    products = find_products(open_network(onnx.load(pruned.model.path)), [])
    assert count_flops(products, {}) == pruned.pruning.flops_after
