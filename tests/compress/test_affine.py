"""Codes of 8 bits whose scales and zero points are not the usual ones."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from edgeopt.artifact import Choice, Model, Plan, Recipe
from edgeopt.choice import Numbers
from edgeopt.compress import apply_plan, make_plan
from edgeopt.compress.affine import Affine, decode_affine, encode_affine
from edgeopt.compress.blocks import encode_blocks
from edgeopt.errors import ConfigError
from edgeopt.model.graph import Weight, weights
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.graphs import image_model, normal, text_model

EVERY = [
    Numbers(granularity=granularity, zero_points=zeros, power_of_two=powers)
    for granularity, zeros, powers in itertools.product(
        ("channel", "tensor"), (False, True), (False, True)
    )
]


def spread(encoded: Affine, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Scales and zero points of every value."""
    scales = np.repeat(encoded.scales, shape[1] // encoded.scales.shape[1], axis=1)
    zeros = np.zeros(1) if encoded.zeros is None else encoded.zeros.astype(np.float64)
    zeros = zeros if zeros.ndim == 1 else np.repeat(zeros, shape[1] // zeros.shape[1], axis=1)
    return np.broadcast_to(scales, shape).astype(np.float64), np.broadcast_to(zeros, shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [None, 16])
@pytest.mark.parametrize("zero_points", [False, True])
def test_scales_and_zero_points_are_those_of_the_formula(
    seed: int, block: int | None, zero_points: bool
) -> None:
    """Jacob et al. 2018, eq. 1: one value after the other, in Python's own numbers."""
    rows = normal(seed, 6, 32) + np.float32(seed)
    encoded = encode_affine(rows, Numbers(zero_points=zero_points), block=block)
    width = block or 32
    for row, part in itertools.product(range(6), range(32 // width)):
        values = [float(each) for each in rows[row, part * width : (part + 1) * width]]
        low, high = min(0.0, *values), max(0.0, *values)
        scale = (high - low) / 255 if zero_points else max(-low, high) / 127
        stored = float(encoded.scales[row, part])
        assert stored == pytest.approx(scale, rel=1e-6 if block is None else 2**-11)
        zero = 0 if encoded.zeros is None else int(encoded.zeros[row, part])
        assert zero == (round(-low / stored) if zero_points else 0)
        for place, value in enumerate(values):
            code = int(encoded.codes[row, part * width + place])
            lowest, highest = (0, 255) if zero_points else (-127, 127)
            assert code == min(max(round(value / stored) + zero, lowest), highest)
            assert abs(stored * (code - zero) - value) <= stored * (0.5 + 127 * 2**-11)


@pytest.mark.parametrize("numbers", EVERY, ids=lambda each: ", ".join(each.titles))
def test_what_is_decoded_is_codes_less_zero_points_times_scales(numbers: Numbers) -> None:
    rows = normal(3, 8, 48) + np.float32(0.3)
    encoded = encode_affine(rows, numbers)
    scales, zeros = spread(encoded, rows.shape)
    wanted = (encoded.codes.astype(np.float64) - zeros) * scales
    assert decode_affine(encoded) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert encoded.scales.shape == ((1, 1) if numbers.granularity == "tensor" else (8, 1))
    assert encoded.codes.dtype == (np.uint8 if numbers.zero_points else np.int8)
    assert np.abs(wanted - rows).max() <= scales.max() * 1.01


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_no_other_power_of_two_loses_less(seed: int, granularity: str) -> None:
    rows = normal(seed, 5, 64) * np.float32(0.37)
    numbers = Numbers.model_validate({"granularity": granularity, "power_of_two": True})
    encoded = encode_affine(rows, numbers)
    exponents = np.log2(encoded.scales)
    assert np.array_equal(exponents, np.rint(exponents))
    lost = np.square(rows - decode_affine(encoded).astype(np.float64))
    parts = [slice(None)] if granularity == "tensor" else [slice(at, at + 1) for at in range(5)]
    for part in parts:
        for exponent in range(-14, 3):
            step = 2.0**exponent
            other = np.clip(np.rint(rows[part] / step), -127, 127) * step
            assert lost[part].sum() <= np.square(rows[part] - other).sum() * (1 + 1e-6)


@pytest.mark.parametrize("bits", [4, 2])
def test_scales_of_blocks_are_powers_of_two_and_lose_for_it(bits: int) -> None:
    rows = normal(0, 20, 64)
    codes, scales = encode_blocks(rows, block=32, bits=bits, power_of_two=True)
    exponents = np.log2(np.abs(scales))
    assert np.array_equal(exponents, np.rint(exponents))
    assert np.array_equal(scales.astype(np.float16), scales)
    free = encode_blocks(rows, block=32, bits=bits)
    errors = [
        float(np.square(rows - each * np.repeat(scale, 32, axis=1)).sum())
        for each, scale in ((codes, scales), free)
    ]
    # The nearest power is off by a factor of 1.41 at most, which is not for nothing.
    assert errors[1] * 1.05 < errors[0] < 2 * errors[1]


def test_zero_points_pay_where_values_lie_on_one_side_and_blocks_where_rows_are_uneven() -> None:
    rows = np.abs(normal(0, 16, 64))
    lost = {
        zeros: np.square(rows - decode_affine(encode_affine(rows, Numbers(zero_points=zeros))))
        for zeros in (False, True)
    }
    assert lost[True].sum() < 0.3 * lost[False].sum()
    uneven = normal(1, 16, 64) * np.repeat(np.array([1, 10], np.float32), 32)
    whole, parts = (
        np.square(uneven - decode_affine(encode_affine(uneven, Numbers(), block=block))).sum()
        for block in (None, 32)
    )
    assert parts < 0.6 * whole


def choices_of(numbers: Numbers) -> tuple[Choice, ...]:
    return (
        Choice(weight="table", method="int8-rows", numbers=numbers),
        Choice(weight="mix", method="int8-weights", numbers=numbers),
    )


def in_floats(model: Model, made: Model, folder: Path) -> Model:
    """The model with what its weights decode to, by the formula, from what is stored."""
    loaded, stored = onnx.load(model.path), {}
    for each in onnx.load(made.path).graph.initializer:
        stored[each.name] = numpy_helper.to_array(each).astype(np.float64)
    for tensor in loaded.graph.initializer:
        name = tensor.name
        codes = stored.get(f"{name}.int8", stored.get(f"{name}.uint8"))
        if codes is None:
            continue
        weight = next(each for each in weights(loaded.graph) if each.name == name)
        scale = stored.get(f"{name}.scale", stored.get(f"{name}.scale.half"))
        zero = stored.get(f"{name}.zero", np.zeros(1))
        assert scale is not None
        values = (codes - _aligned(weight, zero, codes)) * _aligned(weight, scale, codes)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    path = folder / "decoded.onnx"
    onnx.save(loaded, path)
    return model.model_copy(update={"path": path})


def _aligned(weight: Weight, values: Array, codes: Array) -> Array:
    if values.size == 1:
        return values.reshape(())
    if values.ndim == codes.ndim:
        blocks = [size // own for size, own in zip(codes.shape, values.shape, strict=True)]
        return np.kron(values, np.ones(blocks))
    shape = [1] * codes.ndim
    shape[weight.axis] = -1
    return values.reshape(shape)


@pytest.mark.parametrize("numbers", EVERY[1:], ids=lambda each: ", ".join(each.titles))
def test_onnxruntime_computes_what_is_decoded(tmp_path: Path, numbers: Numbers) -> None:
    model = text_model(tmp_path)
    plan = Plan(name="x", choices=choices_of(numbers))
    made = apply_plan(model, plan, directory=tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    feeds = draw(model, 6, 1)
    found, whole = run_samples(made, feeds)[0], run_samples(model, feeds)[0]
    wanted = run_samples(in_floats(model, made, tmp_path), feeds)[0]
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()
    # Were the weights as they came, that would be seen.
    assert np.abs(found - whole).max() > 1e-3 * np.abs(whole).max()
    kinds = {each.name: each.data_type for each in onnx.load(made.path).graph.initializer}
    kind = onnx.TensorProto.UINT8 if numbers.zero_points else onnx.TensorProto.INT8
    assert kind in (kinds.get("mix.uint8"), kinds.get("mix.int8"))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_onnxruntime_computes_what_is_decoded_of_blocks(
    tmp_path: Path, zero_points: bool, power_of_two: bool
) -> None:
    model = text_model(tmp_path)
    numbers = Numbers(zero_points=zero_points, power_of_two=power_of_two)
    choices = tuple(
        Choice(weight=name, method="int8-blocks", block=16, numbers=numbers)
        for name in ("table", "mix")
    )
    made = apply_plan(model, Plan(name="x", choices=choices), directory=tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    feeds = draw(model, 6, 1)
    found, whole = run_samples(made, feeds)[0], run_samples(model, feeds)[0]
    wanted = run_samples(in_floats(model, made, tmp_path), feeds)[0]
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()
    assert 1e-3 < np.abs(found - whole).max() / np.abs(whole).max() < 3e-2


@pytest.mark.parametrize("numbers", EVERY[1:], ids=lambda each: ", ".join(each.titles))
def test_a_plan_with_numbers_replays_through_json_to_the_same_bytes(
    tmp_path: Path, numbers: Numbers
) -> None:
    model = text_model(tmp_path)
    plan = Plan(name="x", choices=choices_of(numbers))
    again = Plan.model_validate_json(plan.model_dump_json())
    one, two = (
        apply_plan(model, each, directory=tmp_path / name).path.read_bytes()
        for each, name in ((plan, "one"), (again, "two"))
    )
    assert again == plan
    assert one == two
    usual = apply_plan(model, Plan(name="x", choices=choices_of(Numbers())), directory=tmp_path)
    assert usual.path.read_bytes() != one


def test_a_recipe_gives_numbers_to_the_weights_whose_form_has_them(tmp_path: Path) -> None:
    numbers = Numbers(granularity="tensor", zero_points=True, levels="piecewise")
    recipe = Recipe(numbers=numbers)
    model = image_model(tmp_path)
    plan = make_plan(model, "int8-weights", directory=tmp_path, recipe=recipe)
    found = {each.weight: each.numbers for each in plan.choices}
    # There is no kernel of a convolution with zero points.
    assert found["kernel"] == Numbers(granularity="tensor")
    assert found["head"] == Numbers(granularity="tensor", zero_points=True)
    made = apply_plan(model, plan, directory=tmp_path / "out")
    feeds = draw(model, 4, 0)
    old, new = run_samples(model, feeds)[0], run_samples(made, feeds)[0]
    assert 0 < np.abs(new - old).max() < 3e-2 * np.abs(old).max()
    coded = make_plan(text_model(tmp_path), "int8-dynamic", directory=tmp_path, recipe=recipe)
    assert {each.weight: each.numbers.titles for each in coded.choices} == {
        "table": ("one scale", "zero points"),
        "mix": (),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "float16", "numbers": {"power_of_two": True}},
        {"method": "int8-static", "numbers": {"zero_points": True}},
        {"method": "int4-blocks", "block": 32, "numbers": {"zero_points": True}},
        {"method": "int8-blocks", "block": 32, "numbers": {"granularity": "tensor"}},
        {"method": "int8-blocks"},
        {"method": "int8-weights", "reconstruct": True, "numbers": {"power_of_two": True}},
        {"method": "int8-weights", "rank": 16, "numbers": {"power_of_two": True}},
        {"method": "int8-weights", "numbers": {"levels": "piecewise"}},
    ],
    ids=str,
)
def test_numbers_that_a_form_does_not_have_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Choice.model_validate({"weight": "w", **fields})


def test_a_convolution_with_zero_points_is_refused_with_the_reason(tmp_path: Path) -> None:
    choice = Choice(weight="kernel", method="int8-weights", numbers=Numbers(zero_points=True))
    with pytest.raises(ConfigError, match="'kernel', a conv weight, has no int8-weights, zero"):
        apply_plan(
            image_model(tmp_path), Plan(name="x", choices=(choice,)), directory=tmp_path / "out"
        )
