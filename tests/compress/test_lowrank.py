from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from edgeopt.artifact import Choice, Method, Model, Plan
from edgeopt.compress import apply_plan, possible_choices
from edgeopt.compress.distance import measure_distance
from edgeopt.compress.lowrank import possible_ranks, split_weight
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.sensitivity import draw_calibration, measure_sensitivity
from edgeopt.errors import ConfigError
from edgeopt.model.graph import Weight, weights
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.compress.test_reconstruct import correlated, hessian_of
from tests.graphs import describe, normal, save_graph


def wide_model(folder: Path, *, seed: int = 0) -> Model:
    """Embed 8 tokens, then MatMuls and two Gemms, one turned and one that transposes its input."""
    text = """
    wide (int64[8] ids) => (float[96,8] scores) {
        rows = Gather<axis=0>(table, ids)
        hidden = MatMul(rows, mix)
        active = Relu(hidden)
        mixed = Gemm<transB=1, alpha=0.5>(active, turned, bias)
        again = MatMul(mixed, back)
        over = Transpose<perm=[1,0]>(again)
        product = Gemm<transA=1, beta=2.0>(over, side, side_bias)
        scores = Transpose<perm=[1,0]>(product)
    }"""
    stored: dict[str, Array] = {
        "table": normal(seed, 600, 128),
        "mix": normal(seed + 1, 128, 256) / 11,
        "turned": normal(seed + 2, 192, 256) / 16,
        "bias": normal(seed + 3, 192),
        "back": normal(seed + 4, 192, 128) / 14,
        "side": normal(seed + 5, 128, 96) / 11,
        "side_bias": normal(seed + 6, 96),
    }
    return describe(save_graph(folder / "wide.onnx", text, stored))


NAMES = ("table", "mix", "turned", "side")


def low(weight: str, rank: int, method: Method = "float32", block: int | None = None) -> Choice:
    return Choice(weight=weight, method=method, block=block, rank=rank)


def with_values(model: Model, name: str, values: Array, folder: Path) -> Model:
    """Write a model with other values for one weight."""
    loaded = onnx.load(model.path)
    tensor = next(each for each in loaded.graph.initializer if each.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
    path = folder / "replaced.onnx"
    path.write_bytes(loaded.SerializeToString())
    return describe(path)


def value(model: Model, name: str) -> Array:
    loaded = onnx.load(model.path)
    found = next(each for each in loaded.graph.initializer if each.name == name)
    return np.asarray(onnx.numpy_helper.to_array(found))


def weight(model: Model, name: str) -> Weight:
    return next(each for each in weights(onnx.load(model.path).graph) if each.name == name)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (900, 64)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_factors_without_inputs_are_those_of_the_singular_values(
    shape: tuple[int, int], seed: int
) -> None:
    values = normal(seed, *shape)
    left, right = split_weight(values, 16)
    assert left.shape == (shape[0], 16)
    assert right.shape == (16, shape[1])
    lost = np.linalg.svd(values.astype(float), compute_uv=False)[16:]
    assert np.linalg.norm(values - left @ right) == pytest.approx(np.linalg.norm(lost), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_no_factors_are_nearer_on_the_inputs_that_were_seen(seed: int) -> None:
    values, x = normal(seed, 96, 64), correlated(seed + 9, 400, 96)
    error = {
        name: np.linalg.norm(x @ (values - left @ right))
        for name, (left, right) in {
            "seen": split_weight(values, 16, hessian_of(x)),
            "plain": split_weight(values, 16),
        }.items()
    }
    # Eckart and Young: what any matrix of this rank loses of X W at least.
    least = np.linalg.norm(np.linalg.svd((x @ values).astype(float), compute_uv=False)[16:])
    assert error["seen"] == pytest.approx(least, rel=0.05)
    assert error["plain"] > 1.5 * error["seen"]


def test_inputs_that_are_always_zero_leave_factors_finite() -> None:
    left, right = split_weight(normal(0, 64, 64), 16, np.zeros((64, 64)))
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()


@pytest.mark.parametrize("name", NAMES)
def test_factors_compute_what_their_product_does(tmp_path: Path, name: str) -> None:
    model = wide_model(tmp_path)
    values = value(model, name)
    turned = name == "turned"
    left, right = split_weight(values.T if turned else values, 48)
    product = (left @ right).T if turned else left @ right
    feeds = draw(model, 4, 0)
    made = apply_plan(model, Plan(name="x", choices=(low(name, 48),)), directory=tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    assert (made.inputs, made.outputs) == (model.inputs, model.outputs)
    wanted = run_samples(with_values(model, name, product, tmp_path), feeds)[0]
    found, whole = run_samples(made, feeds)[0], run_samples(model, feeds)[0]
    largest = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 1e-5 * largest
    # The rank takes something away, or the comparison would say nothing.
    assert np.abs(whole - wanted).max() > 1e-2 * largest


@pytest.mark.parametrize("method", ["float16", "int8-weights", "int4-blocks", "int2-blocks"])
def test_factors_are_stored_by_the_method(tmp_path: Path, method: Method) -> None:
    model = wide_model(tmp_path)
    block = 32 if method.endswith("-blocks") else None
    plan = Plan(name="x", choices=tuple(low(name, 64, method, block) for name in NAMES))
    made = apply_plan(model, plan, directory=tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    kinds = {
        each.name: onnx.helper.tensor_dtype_to_np_dtype(each.data_type).name
        for each in onnx.load(made.path).graph.initializer
    }
    kind = {"float16": "half", "int8-weights": "int8", "int4-blocks": "int4"}.get(method, "int2")
    for name in NAMES:
        assert name not in kinds
        assert kinds[f"{name}.left.{kind}"].startswith("float16" if kind == "half" else kind)
        assert f"{name}.right.{kind}" in kinds
    again = apply_plan(
        model, Plan.model_validate_json(plan.model_dump_json()), directory=tmp_path / "again"
    )
    assert again.sha256 == made.sha256
    assert np.isfinite(run_samples(made, draw(model, 2, 0))[0]).all()


def test_factors_fitted_to_samples_move_the_outputs_less(tmp_path: Path) -> None:
    text = "agraph (float[16,128] x) => (float[16,128] y) { y = MatMul(x, w) }"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 128, 128)}))
    samples = {"x": correlated(1, 64 * 16, 128).reshape(64, 16, 128)}
    unseen = {"x": correlated(1, 128 * 16, 128).reshape(128, 16, 128)[64:]}
    wanted = run_samples(model, unseen)[0]
    errors = []
    for fitted in (False, True):
        choice = low("w", 32, "int4-blocks", 32).model_copy(update={"reconstruct": fitted})
        plan = Plan(name="x", choices=(choice,))
        made = apply_plan(model, plan, directory=tmp_path / "out", samples=samples)
        errors.append(np.linalg.norm(run_samples(made, unseen)[0] - wanted))
    assert errors[1] < 0.5 * errors[0]


def test_fitting_without_samples_is_refused(tmp_path: Path) -> None:
    choice = low("mix", 32).model_copy(update={"reconstruct": True})
    with pytest.raises(ConfigError, match="no calibration samples"):
        apply_plan(wide_model(tmp_path), Plan(name="x", choices=(choice,)), directory=tmp_path)


def test_ranks_are_tried_that_save_values(tmp_path: Path) -> None:
    model = wide_model(tmp_path)
    assert possible_ranks(weight(model, "mix")) == (16, 32, 64)
    # 128 x 96: 32 x 224 values are fewer, and 64 x 224 are not.
    assert possible_ranks(weight(model, "side")) == (16, 32)
    for choices in possible_choices(model).values():
        for each in choices:
            if each.rank is not None:
                first, second = weight(model, each.weight).shape
                assert each.rank * (first + second) < first * second
                assert (each.method, each.block) == ("int4-blocks", min(32, each.rank))
    assert [each.rank for each in possible_choices(model)["mix"] if each.rank] == [64, 32, 16]


def test_harm_and_bytes_of_a_rank_are_those_of_its_plan(tmp_path: Path) -> None:
    model = wide_model(tmp_path)
    calibration = draw_calibration(model, None)
    choices = {
        name: tuple(each for each in given if each.rank is not None)
        for name, given in mixable_choices(model, ("int4-blocks",), reconstruct=False).items()
    }
    assert set(choices) == {"table", "mix", "turned", "back", "side"}
    found = measure_sensitivity(model, choices, calibration, directory=tmp_path / "harm")
    expected = run_samples(model, calibration.judged.samples)
    for layer in found.layers:
        for option in layer[1:]:
            plan = Plan(name="one", choices=(option.choice,))
            made = apply_plan(model, plan, directory=tmp_path / "one")
            outputs = run_samples(made, calibration.judged.samples)
            distance = measure_distance(outputs, expected, classes=False)
            assert option.harm == pytest.approx(distance, rel=0.02)
            first, second = weight(model, option.choice.weight).shape
            assert option.choice.rank is not None
            block = option.choice.block or 0
            values = [option.choice.rank * each for each in (first, second)]
            parts = [part for each in values for part in (each // 2, each // block * 2)]
            # Each has a record of 112 bytes in the weights file, and begins at a multiple of 64.
            assert option.size == sum(112 + -(-part // 64) * 64 for part in parts)


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (low("table", 128), "a rank of 128 is none below those that 'table' can have"),
        (low("mix", 96, "int4-blocks", 96), "blocks of 96 do not divide the 128 values of 'mix'"),
        (
            low("table", 32).model_copy(update={"reconstruct": True}),
            "'table', a table, cannot be reconstructed",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else each.weight,
)
def test_a_rank_that_a_weight_cannot_have_is_refused(
    tmp_path: Path, choice: Choice, why: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_plan(wide_model(tmp_path), Plan(name="x", choices=(choice,)), directory=tmp_path)
    assert why in caught.value.why


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "int8-dynamic", "rank": 32},
        {"method": "float16", "rank": 8},
        {"method": "float16", "rank": 40},
        {"method": "int4-blocks", "block": 64, "rank": 96},
    ],
    ids=str,
)
def test_a_rank_that_means_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Choice.model_validate({"weight": "w", **fields})
