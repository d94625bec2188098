"""Matrices without blocks of zeros: what is stored, chosen and predicted of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from edgeopt.artifact import Choice, Method, Model, Plan
from edgeopt.compress import apply_plan, make_plan, possible_choices
from edgeopt.compress.codes import encode_weight
from edgeopt.compress.cost import pushed_bytes
from edgeopt.compress.forecast import nearest
from edgeopt.compress.hollow import hollow_model
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.pace import Clock, Pace, predict_latency
from edgeopt.compress.sparse import choose_width, kept_blocks
from edgeopt.compress.sparse_choices import zeroed_weights
from edgeopt.errors import ConfigError
from edgeopt.model.graph import initializers, is_hollow
from edgeopt.model.oracle import run_samples
from edgeopt.model.sparse import find_sparse
from edgeopt.sparsify import Sparsify
from tests.compress.test_plan import draw
from tests.graphs import describe, normal, save_graph, text_model

METHODS: tuple[Method, ...] = ("float32-sparse", "float16-sparse", "int8-sparse")


def blocky(seed: int, depth: int, columns: int, *, width: int, share: float) -> np.ndarray:
    """Draw a matrix of which about a share of the blocks is zero."""
    values = normal(seed, depth, columns // width, width)
    values[np.random.default_rng(seed).random(values.shape[:2]) < share] = 0
    return values.reshape(depth, columns)


def zeroed(folder: Path, *, width: int = 16, share: float = 0.7) -> Model:
    """Write a model whose matrices [96, 128] and, turned, [128, 64] have zeros in blocks."""
    text = """
    zeroed (float[1,5,96] x) => (float[1,5,64] y) {
        hidden = MatMul(x, wide)
        active = Relu(hidden)
        flat = Reshape(active, rows)
        scores = Gemm<transB=1>(flat, turned)
        y = Reshape(scores, back)
    }"""
    stored = {
        "wide": blocky(0, 96, 128, width=width, share=share),
        "turned": np.ascontiguousarray(blocky(1, 128, 64, width=width, share=share).T),
        "rows": np.array([5, 128]),
        "back": np.array([1, 5, 64]),
    }
    return describe(save_graph(folder / "zeroed.onnx", text, stored))


def stored_of(model: Model) -> dict[str, onnx.TensorProto]:
    return initializers(onnx.load(model.path).graph)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("width", [4, 8, 16])
def test_onnxruntime_gives_what_the_values_give(method: Method, width: int, tmp_path: Path) -> None:
    model = zeroed(tmp_path, width=width)
    names = ("wide", "turned")
    choices = tuple(Choice(weight=name, method=method, width=width) for name in names)
    plan = Plan(name="x", choices=choices)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    made = apply_plan(model, plan, directory=tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    again = apply_plan(model, plan, directory=tmp_path / "again")
    assert again.sha256 == made.sha256
    # The reference: the values, rounded as the formula has it, in the original graph.
    whole = onnx.load(model.path)
    for name, axis in (("wide", 1), ("turned", 0)):
        tensor = initializers(whole.graph)[name]
        values = numpy_helper.to_array(tensor)
        if method == "float16-sparse":
            values = values.astype(np.float16).astype(np.float32)
        if method == "int8-sparse":
            codes, scales = encode_weight(values, axis=axis)
            values = codes * (scales if axis == 1 else scales[:, None])
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(whole, tmp_path / "reference.onnx")
    reference = model.model_copy(update={"path": tmp_path / "reference.onnx"})
    feeds = draw(model, 4, 0)
    found, wanted = run_samples(made, feeds)[0], run_samples(reference, feeds)[0]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    tensor = stored_of(made)["wide.blocks"]
    kept = kept_blocks(numpy_helper.to_array(stored_of(model)["wide"]) != 0, width)
    assert tuple(tensor.dims) == (kept.sum() + 1, width)


@pytest.mark.parametrize("width", [4, 8, 16])
def test_the_width_of_blocks_is_that_of_the_fewest_bytes(width: int) -> None:
    assert choose_width(blocky(0, 64, 64, width=width, share=0.7), 4) == width
    assert choose_width(normal(0, 64, 64), 4) is None
    # A place of two bytes is nothing beside 16 floats, and as much as two codes.
    single = normal(0, 64, 64)
    single[np.abs(single) < 1.2] = 0
    assert choose_width(single, 4) == 4
    # Zeros that save bytes, and no time on every core.
    some = blocky(0, 64, 64, width=width, share=0.3)
    assert choose_width(some, 4) == width
    assert choose_width(some, 4, faster=True) is None
    # No blocks divide 30 columns.
    assert choose_width(np.zeros((64, 30), np.float32), 4) is None


def test_any_plan_uses_zeros_that_are_there(tmp_path: Path) -> None:
    model = zeroed(tmp_path)
    for method, sparse in (("float32", "float32-sparse"), ("float16", "float16-sparse"),
                           ("int8-weights", "int8-sparse")):  # fmt: skip
        plan = make_plan(model, method, directory=tmp_path)  # type: ignore[arg-type]
        assert {(each.method, each.width, each.zeros) for each in plan.choices} == {
            (sparse, 16, None)
        }
    codes = make_plan(model, "int4-blocks", directory=tmp_path)
    assert all(each.width is None for each in codes.choices)
    # Without zeros nothing changes.
    plain = make_plan(text_model(tmp_path), "float32-sparse", directory=tmp_path)
    assert {each.method for each in plain.choices} == {"float32"}


@pytest.mark.parametrize(
    "rule",
    [
        Sparsify(value=0.5),
        Sparsify(value=0.5, criterion="wanda", refit=True),
        Sparsify(value=0.8, threshold="global", criterion="l1"),
        Sparsify(value=0.5, threshold="z-score"),
        Sparsify(pattern="single", value=0.9),
        Sparsify(pattern="n:m", n=1, m=8),
    ],
    ids=lambda rule: rule.title,
)
def test_a_rule_of_a_profile_is_part_of_the_plan_and_replays(
    rule: Sparsify, tmp_path: Path
) -> None:
    model = zeroed(tmp_path, share=0.0)
    plan = make_plan(model, "float32-sparse", directory=tmp_path, zeros=rule)
    assert {each.zeros for each in plan.choices} == {rule}
    samples = draw(model, 16, 1) if rule.needs_samples else None
    made = apply_plan(model, plan, directory=tmp_path / "out", samples=samples)
    again = apply_plan(model, plan, directory=tmp_path / "again", samples=samples)
    assert made.sha256 == again.sha256
    matrices = find_sparse(onnx.load(made.path).graph).values()
    assert len(matrices) == 2
    assert all(each.share < 0.75 for each in matrices)
    feeds = draw(model, 4, 0)
    found, wanted = run_samples(made, feeds)[0], run_samples(model, feeds)[0]
    assert 0.01 < np.abs(found - wanted).max() / np.abs(wanted).max() < 2
    if rule.needs_samples:
        with pytest.raises(ConfigError, match="no calibration samples"):
            apply_plan(model, plan, directory=tmp_path / "without")


def test_zeros_that_would_save_nothing_are_not_made(tmp_path: Path) -> None:
    rule = Sparsify(pattern="n:m", n=2, m=4)
    plan = make_plan(text_model(tmp_path), "float16-sparse", directory=tmp_path, zeros=rule)
    assert {each.method for each in plan.choices} == {"float16"}


def test_what_stays_makes_up_for_what_is_gone(tmp_path: Path) -> None:
    model = zeroed(tmp_path, share=0.0)
    samples, feeds = draw(model, 64, 1), draw(model, 8, 0)
    # Inputs that say something of each other.
    mixed = normal(9, 96, 96) / 4 + np.eye(96, dtype=np.float32)
    samples, feeds = ({"x": each["x"] @ np.tanh(mixed)} for each in (samples, feeds))
    wanted = run_samples(model, feeds)[0]
    lost = {}
    for rule in (Sparsify(value=0.5), Sparsify(value=0.5, criterion="wanda", refit=True)):
        plan = make_plan(model, "float32-sparse", directory=tmp_path, zeros=rule)
        made = apply_plan(model, plan, directory=tmp_path / "out", samples=samples)
        lost[rule.refit] = float(np.square(run_samples(made, feeds)[0] - wanted).mean())
    assert lost[True] < 0.8 * lost[False]


def test_sizes_without_values_are_those_with(tmp_path: Path) -> None:
    """Where the zeros are a hollow model knows; how many a rule makes the rule knows."""
    for folder, share in (("zeros", 0.7), ("none", 0.0)):
        (tmp_path / folder).mkdir()
        model = zeroed(tmp_path / folder, share=share)
        rule = None if share else Sparsify(value=0.75, criterion="wanda", refit=True)
        plan = make_plan(model, "float32-sparse", directory=tmp_path, zeros=rule)
        made = apply_plan(model, plan, directory=tmp_path / "a", samples=draw(model, 8, 1))
        names, kept = ["wide", "turned"], zeroed_weights(onnx.load(model.path))
        assert kept == (names if share else [])
        hollow = hollow_model(model, names, tmp_path / "b", kept=kept)
        assert is_hollow(stored_of(hollow)["wide"]) is not bool(share)
        bare = plan.model_copy(update={"choices": tuple(map(nearest, plan.choices))})
        shape = apply_plan(hollow, bare, directory=tmp_path / "c")
        sizes = [pushed_bytes(onnx.load(each.path).graph) for each in (made, shape)]
        assert sizes[0] == sizes[1]
        before = pushed_bytes(onnx.load(model.path).graph)
        assert sum(sizes[0].values()) < 0.5 * sum(before.values())


def test_mixtures_use_zeros_that_are_there_and_make_more_where_asked(tmp_path: Path) -> None:
    model = zeroed(tmp_path)
    found = possible_choices(model)["wide"]
    sparse = [(each.method, each.zeros and each.zeros.value) for each in found if each.width]
    assert sparse == [
        ("float32-sparse", None),
        ("float16-sparse", None),
        ("int8-sparse", None),
        ("int8-sparse", 0.5),
        ("int8-sparse", 0.75),
    ]
    plain = mixable_choices(model, ("float32", "float16"), reconstruct=False)["wide"]
    assert [each.method for each in plain] == ["float16", "float32-sparse", "float16-sparse"]
    asked = mixable_choices(model, ("int8-sparse",), reconstruct=True)["wide"]
    assert [each.zeros for each in asked] == [
        Sparsify(value=share, criterion="wanda", refit=True) for share in (0.5, 0.75)
    ]


def test_time_is_predicted_to_fall_with_the_zeros(tmp_path: Path) -> None:
    clock = Clock(Pace(1e9, 1e9, 1e9, 1e15, 1e15, 0))
    model = zeroed(tmp_path)
    before = predict_latency(model, clock)
    made = apply_plan(
        model, make_plan(model, "float32", directory=tmp_path), directory=tmp_path / "out"
    )
    matrices = find_sparse(onnx.load(made.path).graph).values()
    sums = {"wide.blocks": 5 * 96 * 128, "turned.blocks": 5 * 128 * 64}
    wanted = sum(each.share * sums[each.blocks] for each in matrices) / sum(sums.values())
    assert predict_latency(made, clock) / before == pytest.approx(wanted, rel=1e-3)


def test_a_choice_that_no_weight_can_have_is_refused(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    for name, width, why in (("table", 16, "is no matrix"), ("head", 16, "do not divide the 4")):
        choice = Choice(weight=name, method="float32-sparse", width=width)
        with pytest.raises(ConfigError, match=why):
            apply_plan(model, Plan(name="x", choices=(choice,)), directory=tmp_path)
    with pytest.raises(ValidationError, match="needs the width of its blocks"):
        Choice(weight="mix", method="int8-sparse")
    with pytest.raises(ValidationError, match="has no blocks"):
        Choice(weight="mix", method="float16", width=16)
    with pytest.raises(ValidationError, match="saves nothing by zeros"):
        Choice(weight="mix", method="float16", zeros=Sparsify(value=0.5))
