"""Units that can be cut together, found in small graphs of every kind, and what is left of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from edgeopt.artifact import Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.cuts import groups_by_name, kept_units
from edgeopt.compress.flops import count_flops, find_products
from edgeopt.compress.groups import Group, open_network
from edgeopt.cut import Cut
from edgeopt.errors import ConfigError
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.graphs import describe, image_model, normal, save_graph, text_model

Stored = Mapping[str, npt.NDArray[Any]]

MLP = """
mlp (float[2,8,16] x) => (float[2,8,16] y) {
    wide = MatMul(x, up)
    shifted = Add(wide, up_bias)
    bent = Erf(shifted)
    gated = Mul(bent, shifted)
    back = MatMul(gated, down)
    y = Add(x, back)
}"""
ATTENTION = """
attention (float[1,6,16] x) => (float[1,6,16] y) {
    q = MatMul(x, query)
    k = MatMul(x, key)
    v = MatMul(x, value)
    qb = Add(q, query_bias)
    qs = Reshape(qb, split)
    ks = Reshape(k, split)
    vs = Reshape(v, split)
    qt = Transpose<perm=[0,2,1,3]>(qs)
    kt = Transpose<perm=[0,2,3,1]>(ks)
    vt = Transpose<perm=[0,2,1,3]>(vs)
    s = MatMul(qt, kt)
    p = Softmax<axis=-1>(s)
    m = MatMul(p, vt)
    mt = Transpose<perm=[0,2,1,3]>(m)
    flat = Reshape(mt, join)
    out = MatMul(flat, mixed)
    y = Add(x, out)
}"""
#: Query, key and value come from one product and are taken apart by their first axis or by Split.
FUSED = """
fused (float[1,6,16] x) => (float[1,6,16] y) {
    all = MatMul(x, qkv)
    q, k, v = Split<axis=2, num_outputs=3>(all)
    qs = Reshape(q, split)
    ks = Reshape(k, split)
    vs = Reshape(v, split)
    qt = Transpose<perm=[0,2,1,3]>(qs)
    kt = Transpose<perm=[0,2,3,1]>(ks)
    vt = Transpose<perm=[0,2,1,3]>(vs)
    s = MatMul(qt, kt)
    p = Softmax<axis=-1>(s)
    m = MatMul(p, vt)
    mt = Transpose<perm=[0,2,1,3]>(m)
    flat = Reshape(mt, join)
    y = MatMul(flat, mixed)
}"""
RESIDUAL = """
residual (float[1,3,8,8] x) => (float[1,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, first, first_bias)
    n = BatchNormalization(a, scale, shift, mean, spread)
    r = Relu(n)
    d = Conv<pads=[1,1,1,1], group=12>(r, each)
    c = Conv(d, narrow)
    b = Conv(c, widen)
    j = Add(r, b)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(j)
    f = Flatten(p)
    y = Gemm<transB=1>(f, head, head_bias)
}"""
BRANCHES = """
branches (float[1,4,10] x) => (float[1,3] y) {
    a = Conv(x, two)
    b = Conv(x, three)
    ra = ReduceMax<keepdims=0>(a, last)
    rb = ReduceMax<keepdims=0>(b, last)
    j = Concat<axis=1>(ra, rb)
    t = Tanh(j)
    y = Gemm(t, head, head_bias)
}"""
SPLIT = np.array([1, 6, 4, 4])
JOIN = np.array([1, 6, 16])


def matrices(**shapes: tuple[int, ...]) -> dict[str, npt.NDArray[Any]]:
    return {name: normal(at, *shape) / 4 for at, (name, shape) in enumerate(shapes.items())}


GRAPHS: Mapping[str, tuple[str, Stored]] = {
    "mlp": (MLP, matrices(up=(16, 24), up_bias=(24,), down=(24, 16))),
    "attention": (
        ATTENTION,
        {
            **matrices(query=(16, 16), key=(16, 16), value=(16, 16), mixed=(16, 16)),
            **matrices(query_bias=(16,)),
            "split": SPLIT,
            "join": JOIN,
        },
    ),
    "fused": (FUSED, {**matrices(qkv=(16, 48), mixed=(16, 16)), "split": SPLIT, "join": JOIN}),
    "residual": (
        RESIDUAL,
        {
            **matrices(first=(12, 3, 3, 3), first_bias=(12,), scale=(12,), shift=(12,), mean=(12,)),
            **matrices(each=(12, 1, 3, 3), narrow=(8, 12, 1, 1)),
            **matrices(widen=(12, 8, 1, 1), head=(5, 192), head_bias=(5,)),
            "spread": np.abs(normal(9, 12)) + 1,
        },
    ),
    "branches": (
        BRANCHES,
        {
            **matrices(two=(6, 4, 2), three=(10, 4, 3), head=(16, 3), head_bias=(3,)),
            "last": np.array([2]),
        },
    ),
}
#: Of each graph: the groups by name, what they are, and how many units they have.
GROUPS = {
    "mlp": [("up", "neurons", 24)],
    "attention": [("query", "heads", 4)],
    "fused": [("qkv", "heads", 4)],
    "residual": [("first", "channels", 12), ("narrow", "channels", 8)],
    "branches": [("two", "channels", 6), ("three", "channels", 10)],
}


def build(folder: Path, name: str) -> tuple[Model, ModelProto]:
    text, stored = GRAPHS[name]
    model = describe(save_graph(folder / f"{name}.onnx", text, stored))
    return model, onnx.load(model.path)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_found_from_the_graph(tmp_path: Path, name: str) -> None:
    _, loaded = build(tmp_path, name)
    found = groups_by_name(loaded)
    assert [(each.name, each.kind, each.units) for each in found.values()] == GROUPS[name]


def masked(model: ModelProto, cuts: Mapping[str, Cut], groups: Mapping[str, Group]) -> ModelProto:
    """The same model with zeros for what reads the units that are cut."""
    made = ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        for name, cut in cuts.items():
            if tensor.name in groups[name].readers:
                label = groups[name].labels[tensor.name]
                kept = (label.units < 0) | kept_units(groups[name], cut)[label.units]
                shape = [1] * len(tensor.dims)
                shape[label.axis] = -1
                values = numpy_helper.to_array(tensor) * kept.reshape(shape)
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return made


@pytest.mark.parametrize("name", [*GROUPS, "text", "image"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_left_computes_as_with_zeros_for_what_was_cut(
    tmp_path: Path, name: str, seed: int
) -> None:
    if name in GROUPS:
        model, loaded = build(tmp_path, name)
    else:
        model = (text_model if name == "text" else image_model)(tmp_path)
        loaded = onnx.load(model.path)
    groups = groups_by_name(loaded)
    random = np.random.default_rng(seed)
    cuts = {}
    for group in groups.values():
        kept = random.choice(group.units, max(1, group.units // 2), replace=False)
        cuts[group.name] = Cut(group=group.name, kept=tuple(sorted(kept.tolist())))
    plan = Plan(name="x", choices=(), cuts=tuple(cuts.values()))
    made = apply_plan(model, plan, directory=tmp_path / "out")
    small = onnx.load(made.path)
    onnx.checker.check_model(small, full_check=True)
    assert (describe(made.path).inputs, describe(made.path).outputs) == (
        model.inputs,
        model.outputs,
    )
    path = tmp_path / "masked.onnx"
    onnx.save(masked(loaded, cuts, groups), path)
    feeds = seeded_inputs(model, seed)
    wanted, whole = run_model(path, feeds)[0], run_model(model, feeds)[0]
    got = run_model(made, feeds)[0]
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    # Cutting nothing would pass as well, were the masks not to matter.
    assert np.abs(wanted - whole).max() > 1e-3 * np.abs(whole).max()
    assert made.path.stat().st_size < model.path.stat().st_size
    removed = {name: groups[name].units - len(cut.kept) for name, cut in cuts.items()}
    counted = count_flops(find_products(open_network(loaded), list(groups.values())), removed)
    assert counted == count_flops(find_products(open_network(small), []), {})


@pytest.mark.parametrize(
    "text",
    [
        "g (float[4,8] x) => (float[4,8] y) { y = MatMul(x, w) }",
        "g (float[4,8] x) => (float[4,4] y) "
        "{ a = MatMul(x, w)  n = LayerNormalization(a, s)  y = MatMul(n, v) }",
        "g (float[4,8] x) => (float[4,4] y) "
        "{ a = MatMul(x, w)  n = Softmax<axis=1>(a)  y = MatMul(n, v) }",
        "g (float[4,8] x) => (float[4,4] y) { a = MatMul(x, w)  b = Add(a, x)  y = MatMul(b, v) }",
        "g (float[4,8] x) => (float[4,4] y, float[4,8] a) { a = MatMul(x, w)  y = MatMul(a, v) }",
        "g (float[4,8] x) => (float[8,8] y) "
        "{ a = MatMul(x, w)  t = Transpose(a)  y = MatMul(t, a) }",
    ],
    ids=["output", "normalized", "softmax", "input", "also an output", "rows"],
)
def test_units_that_something_needs_whole_stay(tmp_path: Path, text: str) -> None:
    stored = {"w": normal(0, 8, 8), "s": normal(1, 8), "v": normal(2, 8, 4)}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    assert groups_by_name(onnx.load(model.path)) == {}


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (Cut(group="gone", kept=(0,)), "no units can be cut out of 'gone'"),
        (Cut(group="up", kept=(3, 24)), "'up' has 24 units, and unit 24 is to be kept"),
    ],
)
def test_a_cut_of_another_model_is_refused(tmp_path: Path, cut: Cut, why: str) -> None:
    model, _ = build(tmp_path, "mlp")
    with pytest.raises(ConfigError) as caught:
        apply_plan(model, Plan(name="x", choices=(), cuts=(cut,)), directory=tmp_path)
    assert caught.value.why == why


@pytest.mark.parametrize("kept", [(2, 1), (1, 1), (-1, 3)])
def test_kept_units_ascend(kept: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="kept"):
        Cut(group="up", kept=kept)
