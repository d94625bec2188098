import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Choice, Method, Model, Plan
from edgeopt.compress import apply_plan, make_plan
from edgeopt.errors import ConfigError
from edgeopt.model.oracle import Array, run_samples, seeded_inputs
from tests.graphs import describe, image_model, normal, save_graph, text_model

METHODS: tuple[Method, ...] = (
    "float32",
    "float16",
    "int8-rows",
    "int8-blocks",
    "int8-weights",
    "codebook-weights",
    "int8-dynamic",
    "int8-static",
    "int4-blocks",
    "int2-blocks",
    "codebook16-blocks",
    "codebook4-blocks",
    "ternary-blocks",
    "binary-blocks",
)
#: Largest |compressed - original| of an output, as a share of the largest |original|: what one
#: layer of 8 bits, of 11 bits, and of both may do on these graphs; 4 and 2 bits of random numbers
#: leave a tenth and a third of their norm wrong.
TOLERANCES = {
    "float32": 0.0,
    "float16": 2e-3,
    "int8-rows": 2e-2,
    "int8-blocks": 2e-2,
    "int8-weights": 3e-2,
    "codebook-weights": 3e-2,
    "int8-dynamic": 5e-2,
    "int8-static": 5e-2,
    "int4-blocks": 0.3,
    "int2-blocks": 0.9,
    "codebook16-blocks": 0.3,
    "codebook4-blocks": 0.9,
    "ternary-blocks": 0.9,
    "binary-blocks": 1.5,
}
MODELS = {"text": text_model, "image": image_model}


def draw(model: Model, count: int, seed: int) -> dict[str, Array]:
    rows = [seeded_inputs(model, 100 * seed + index) for index in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def compress(model: Model, method: Method, folder: Path) -> tuple[Plan, Model]:
    plan = make_plan(model, method, samples=draw(model, 16, 9), directory=folder)
    return plan, apply_plan(model, plan, directory=folder)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_plan_keeps_names_shapes_and_nearly_the_outputs(
    tmp_path: Path, name: str, method: Method, seed: int
) -> None:
    model = MODELS[name](tmp_path, seed=10 * seed)
    _, made = compress(model, method, tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    again = describe(made.path)
    assert (again.inputs, again.outputs) == (model.inputs, model.outputs)
    feeds = draw(model, 8, seed)
    old, new = run_samples(model, feeds)[0], run_samples(made, feeds)[0]
    error = np.abs(new - old).max() / np.abs(old).max()
    assert error <= TOLERANCES[method]
    # A plan that changed nothing would pass as well.
    assert (error > 0) == (method != "float32")


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_replays_through_json_to_the_same_bytes(tmp_path: Path, method: Method) -> None:
    model = text_model(tmp_path)
    plan, made = compress(model, method, tmp_path / "one")
    again = apply_plan(
        model, Plan.model_validate_json(plan.model_dump_json()), directory=tmp_path / "two"
    )
    assert made.path.read_bytes() == again.path.read_bytes()
    assert made.sha256 == again.sha256
    assert made.provenance == (*model.provenance, method)
    assert json.loads(plan.model_dump_json())["name"] == method


def operators(model: Model) -> list[str]:
    return [node.op_type for node in onnx.load(model.path).graph.node]


def stored(model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        each.name: (
            onnx.helper.tensor_dtype_to_np_dtype(each.data_type).name,
            tuple(each.dims),
        )
        for each in onnx.load(model.path).graph.initializer
    }


def test_float16_casts_a_weight_where_it_is_used_and_rows_after_the_lookup(tmp_path: Path) -> None:
    _, made = compress(text_model(tmp_path), "float16", tmp_path)
    assert operators(made)[:4] == ["Gather", "Cast", "Cast", "MatMul"]
    assert stored(made)["table.half"] == ("float16", (500, 32))
    assert "table" not in stored(made)
    assert "mix" not in stored(made)


def test_int8_rows_looks_up_codes_and_scales(tmp_path: Path) -> None:
    _, made = compress(text_model(tmp_path), "int8-rows", tmp_path)
    assert operators(made)[:4] == ["Gather", "Gather", "Cast", "Mul"]
    assert stored(made)["table.int8"] == ("int8", (500, 32))
    assert stored(made)["table.scale"] == ("float32", (500, 1))
    assert stored(made)["mix.half"] == ("float16", (32, 64))


def test_int8_weights_has_one_scale_per_output_channel(tmp_path: Path) -> None:
    _, made = compress(image_model(tmp_path), "int8-weights", tmp_path)
    kinds = stored(made)
    assert kinds["kernel.scale"] == ("float32", (128,))
    assert kinds["head.int8"] == ("int8", (10, 128))
    assert kinds["head.scale"] == ("float32", (10,))
    assert operators(made).count("DequantizeLinear") == 3


def test_int8_dynamic_multiplies_integers_and_leaves_convolutions_to_weights(
    tmp_path: Path,
) -> None:
    _, text = compress(text_model(tmp_path), "int8-dynamic", tmp_path)
    assert "MatMulInteger" in operators(text)
    assert operators(text).count("MatMul") == 0
    plan, image = compress(image_model(tmp_path), "int8-dynamic", tmp_path)
    assert [each.method for each in plan.choices] == ["int8-weights"] * 2 + ["int8-dynamic"]
    assert operators(image).count("Conv") == 2
    assert "Gemm" not in operators(image)


def test_int8_static_holds_the_range_of_every_quantized_activation(tmp_path: Path) -> None:
    plan, made = compress(image_model(tmp_path), "int8-static", tmp_path)
    assert [each.tensor for each in plan.ranges] == ["pixels", "active", "flat"]
    assert all(each.low <= each.high for each in plan.ranges)
    assert operators(made).count("QuantizeLinear") == 3


def test_blocks_of_four_and_two_bits_have_half_float_scales(tmp_path: Path) -> None:
    for method, kind in (("int4-blocks", "int4"), ("int2-blocks", "int2")):
        plan, made = compress(text_model(tmp_path), method, tmp_path)  # type: ignore[arg-type]
        assert [(each.method, each.block) for each in plan.choices] == [(method, 32)] * 2
        kinds = stored(made)
        assert kinds[f"table.{kind}"] == (kind, (500, 32))
        assert kinds["table.scale.half"] == ("float16", (500, 1))
        assert kinds[f"mix.{kind}"] == (kind, (32, 64))
        assert kinds["mix.scale.half"] == ("float16", (1, 64))
        assert operators(made).count("DequantizeLinear") == 2


def test_weights_without_a_form_in_blocks_become_int8(tmp_path: Path) -> None:
    plan, made = compress(image_model(tmp_path), "int4-blocks", tmp_path)
    methods = {each.weight: each.method for each in plan.choices}
    assert methods == {
        "kernel": "int8-weights",
        "depthwise": "int8-weights",
        "head": "int4-blocks",
    }
    assert stored(made)["head.int4"] == ("int4", (10, 128))
    assert stored(made)["head.scale.half"] == ("float16", (10, 4))


def test_small_tensors_stay_as_they_are(tmp_path: Path) -> None:
    plan, made = compress(text_model(tmp_path), "int8-weights", tmp_path)
    assert [each.weight for each in plan.choices] == ["table", "mix"]
    assert stored(made)["head"] == ("float32", (4, 64))
    assert stored(made)["bias"] == ("float32", (64,))


def test_activations_that_several_weights_share_are_quantized_once(tmp_path: Path) -> None:
    text = """
    shared (float[4,32] x) => (float[4,32] y) {
        a = MatMul(x, late)
        b = MatMul(x, early)
        y = Add(a, b)
    }"""
    weights = {"early": normal(0, 32, 32), "late": normal(1, 32, 32)}
    model = describe(save_graph(tmp_path / "m.onnx", text, weights))
    for method, operator in (
        ("int8-dynamic", "DynamicQuantizeLinear"),
        ("int8-static", "QuantizeLinear"),
    ):
        _, made = compress(model, method, tmp_path / method)  # type: ignore[arg-type]
        onnx.checker.check_model(onnx.load(made.path), full_check=True)
        assert operators(made).count(operator) == 1


def test_a_weight_that_half_precision_cannot_hold_stays_float32(tmp_path: Path) -> None:
    weight = normal(0, 32, 32)
    weight[0, 0] = 1e6
    text = "agraph (float[4,32] x) => (float[4,32] y) { y = MatMul(x, w) }"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"w": weight}))
    plan, made = compress(model, "float16", tmp_path)
    assert plan.choices == (Choice(weight="w", method="float32"),)
    assert made.path.read_bytes() == model.path.read_bytes()


@pytest.mark.parametrize("attributes", ["alpha=0.5", "beta=2.0", "transA=1"])
def test_a_gemm_that_does_more_than_multiply_keeps_its_arithmetic(
    tmp_path: Path, attributes: str
) -> None:
    text = f"agraph (float[32,32] x) => (float[32,32] y) {{ y = Gemm<{attributes}>(x, w, b) }}"
    weights = {"w": normal(0, 32, 32), "b": normal(1, 32)}
    model = describe(save_graph(tmp_path / "m.onnx", text, weights))
    plan, made = compress(model, "int8-dynamic", tmp_path)
    assert plan.choices[0].method == "int8-weights"
    feeds = draw(model, 4, 0)
    old, new = run_samples(model, feeds)[0], run_samples(made, feeds)[0]
    assert np.abs(new - old).max() < 0.03 * np.abs(old).max()


@pytest.mark.parametrize("count", [None, 0])
def test_reconstruction_without_samples_is_refused(tmp_path: Path, count: int | None) -> None:
    model = image_model(tmp_path)
    samples = None if count is None else {"pixels": np.zeros((0, 1, 3, 12, 12), np.float32)}
    choice = Choice(weight="head", method="int4-blocks", block=32, reconstruct=True)
    plan = Plan(name="x", choices=(choice,))
    with pytest.raises(ConfigError, match="no calibration samples"):
        apply_plan(model, plan, directory=tmp_path, samples=samples)


@pytest.mark.parametrize("count", [None, 0])
def test_static_ranges_of_no_samples_are_refused(tmp_path: Path, count: int | None) -> None:
    model = image_model(tmp_path)
    samples = None if count is None else {"pixels": np.zeros((0, 1, 3, 12, 12), np.float32)}
    with pytest.raises(ConfigError, match="no calibration samples"):
        make_plan(model, "int8-static", samples=samples, directory=tmp_path)


def test_ranges_of_zeros_do_more_harm_than_ranges_of_real_inputs(tmp_path: Path) -> None:
    model = image_model(tmp_path)
    feeds = draw(model, 8, 0)
    old = run_samples(model, feeds)[0]
    errors = []
    for samples in (draw(model, 16, 9), {"pixels": np.zeros((4, 1, 3, 12, 12), np.float32)}):
        plan = make_plan(model, "int8-static", samples=samples, directory=tmp_path)
        made = apply_plan(model, plan, directory=tmp_path)
        errors.append(np.abs(run_samples(made, feeds)[0] - old).max() / np.abs(old).max())
    assert errors[0] < 0.05 < errors[1]


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan(name="x", choices=(Choice(weight="gone", method="float16"),)), "no weight 'gone'"),
        (Plan(name="x", choices=(Choice(weight="mix", method="int8-rows"),)), "is no form of"),
        (Plan(name="x", choices=(Choice(weight="table", method="int8-static"),)), "is no form of"),
        (Plan(name="x", choices=(Choice(weight="mix", method="int8-static"),)), "no range for"),
        (
            Plan(name="x", choices=(Choice(weight="mix", method="int4-blocks", block=48),)),
            "blocks of 48 do not divide the 32 values of 'mix'",
        ),
        (
            Plan(
                name="x",
                choices=(Choice(weight="table", method="int4-blocks", block=32, reconstruct=True),),
            ),
            "cannot be reconstructed",
        ),
    ],
)
def test_a_plan_for_another_model_is_refused(tmp_path: Path, plan: Plan, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_plan(text_model(tmp_path), plan, directory=tmp_path)
    assert why in caught.value.why
