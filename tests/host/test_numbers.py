"""Codes with zero points, one scale, powers of two, and codebooks: compiled to what they mean."""

from pathlib import Path

import numpy as np
import pytest

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.choice import Numbers
from edgeopt.compile.lift import lift_constants
from edgeopt.compress import apply_plan
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.compile.kit import distance, lower_natively, run_natively
from tests.compress.test_affine import in_floats
from tests.graphs import describe, image_model, normal, save_graph
from tests.host.arm_kit import run_on_arm
from tests.host.test_blocks import ROWS, WIDE, WIDTH, save_text

pytestmark = pytest.mark.host

#: What a matrix has, and the bytes of its scales, zero points and numbers for [K, N].
AFFINE: dict[str, Choice] = {
    "one scale": Choice(weight="", method="int8-weights", numbers=Numbers(granularity="tensor")),
    "zero points": Choice(weight="", method="int8-weights", numbers=Numbers(zero_points=True)),
    "powers of two": Choice(weight="", method="int8-weights", numbers=Numbers(power_of_two=True)),
    "one zero point": Choice(
        weight="",
        method="int8-weights",
        numbers=Numbers(granularity="tensor", zero_points=True, power_of_two=True),
    ),
    "blocks": Choice(weight="", method="int8-blocks", block=32),
    "zero points of blocks": Choice(
        weight="", method="int8-blocks", block=64, numbers=Numbers(zero_points=True)
    ),
}
LOOKED_UP: dict[str, Choice] = {
    "256 numbers": Choice(weight="", method="codebook-weights", entries=256),
    "100 numbers of 50 channels": Choice(
        weight="", method="codebook-weights", entries=100, channels=50
    ),
    "16 numbers of 48 channels": Choice(
        weight="", method="codebook-weights", entries=16, channels=48
    ),
    "256 numbers of 16 channels": Choice(
        weight="", method="codebook-weights", entries=256, channels=16
    ),
    "4 numbers": Choice(weight="", method="codebook-weights", entries=4),
}
FORMS = AFFINE | LOOKED_UP
#: Other numbers in what test_blocks has the bytes of.
USUAL: dict[str, Choice] = {
    "piecewise": Choice(
        weight="", method="codebook16-blocks", block=32, numbers=Numbers(levels="piecewise")
    ),
    "powers of two of 4 bits": Choice(
        weight="", method="int4-blocks", block=32, numbers=Numbers(power_of_two=True)
    ),
}


def compress(folder: Path, form: Choice) -> Model:
    """Store three matrices and a table in one form; a table has one codebook, and rows."""
    model = save_text(folder)
    of_table = form.model_copy(update={"weight": "table", "channels": None})
    if form.method == "int8-weights":
        of_table = of_table.model_copy(update={"method": "int8-rows"})
    names = ("widen", "mix", "turned")
    choices = (of_table, *(form.model_copy(update={"weight": name}) for name in names))
    return apply_plan(model, Plan(name="numbers", choices=choices), directory=folder / "out")


@pytest.mark.parametrize("name", FORMS | USUAL)
def test_compiled_numbers_give_onnxruntimes_outputs(name: str, tmp_path: Path) -> None:
    made = compress(tmp_path, (FORMS | USUAL)[name])
    for seed in range(2):
        feeds = seeded_inputs(made, seed)
        found, wanted = run_natively(made.path, feeds)[0], run_model(made, feeds)[0]
        assert distance(found, wanted) < 4e-6
        if name in AFFINE:
            # And those of the model with what the formula says that its weights are.
            floats = in_floats(save_text(tmp_path), made, tmp_path)
            assert distance(found, run_model(floats, feeds)[0]) < 4e-6
    # What is compared depends on the codes: those of another form are far away.
    other = run_model(save_text(tmp_path), feeds)[0]
    assert distance(found, other) > 1e-3


@pytest.mark.parametrize("name", FORMS)
def test_codes_stay_as_they_are_stored(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    arrays = lift_constants(lower_natively(compress(tmp_path, form).path)[0]).arrays
    # Panels of 24 columns are padded.
    table, rest = ROWS * WIDTH, WIDTH * 264 + WIDE * 264 + WIDE * WIDTH
    rows, columns = ROWS, 264 + 264 + 144
    bits = {4: 2, 16: 4}.get(form.entries or 256, 8)
    extra = 4 * (rows + columns)
    if form.numbers.granularity == "tensor":
        extra = 64
    if form.block:
        extra = (table + rest) // form.block * 2
    if form.entries:
        extra = 4 * (4 + WIDE * 2 // (form.channels or WIDE) + 4) * form.entries
    if form.numbers.zero_points:
        extra = extra * 3 // 2
    packed = (table + rest) * bits // 8 + extra
    assert sum(each.nbytes for each in arrays) <= packed + 4 * WIDTH


@pytest.mark.parametrize("name", FORMS)
def test_64_bit_arm_computes_numbers_in_the_memory_that_was_predicted(
    name: str, tmp_path: Path
) -> None:
    seen = run_on_arm(compress(tmp_path, FORMS[name]), tmp_path)
    assert seen.distance < 4e-6
    predicted, compiled = seen.predicted, seen.compiled
    assert predicted.weights == pytest.approx(compiled.weights, rel=0.015)
    assert predicted.flash == pytest.approx(compiled.flash, rel=0.01)
    assert predicted.peak == pytest.approx(compiled.peak, rel=0.03)


@pytest.mark.parametrize("name", ["zero points", "one zero point", "100 numbers of 50 channels"])
def test_32_bit_arm_computes_numbers_too(name: str, tmp_path: Path) -> None:
    assert run_on_arm(compress(tmp_path, FORMS[name]), tmp_path, machine="arm").distance < 4e-6


@pytest.mark.parametrize("numbers", [Numbers(granularity="tensor"), Numbers(power_of_two=True)])
def test_convolutions_have_one_scale_or_powers_of_two(numbers: Numbers, tmp_path: Path) -> None:
    model = image_model(tmp_path)
    names = ("kernel", "depthwise", "head")
    choices = tuple(Choice(weight=name, method="int8-weights", numbers=numbers) for name in names)
    made = apply_plan(model, Plan(name="numbers", choices=choices), directory=tmp_path / "out")
    feeds = seeded_inputs(made, 0)
    found = run_natively(made.path, feeds)[0]
    assert distance(found, run_model(made, feeds)[0]) < 4e-6
    assert distance(found, run_model(model, feeds)[0]) > 1e-4


def test_zero_points_along_the_sum_are_decoded_before_it(tmp_path: Path) -> None:
    """No kernel takes scales of the rows of K: the compiler must not take them for columns."""
    text = """
    rows (float[4,96] x) => (float[4,96] y) {
        w = DequantizeLinear<axis=0>(codes, scales, zeros)
        y = MatMul(x, w)
    }"""
    random = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        "codes": random.integers(0, 256, (96, 96)).astype(np.uint8),
        "scales": np.abs(normal(1, 96)) / 100,
        "zeros": random.integers(1, 256, 96).astype(np.uint8),
    }
    made = describe(save_graph(tmp_path / "rows.onnx", text, stored))
    feeds = seeded_inputs(made, 0)
    assert distance(run_natively(made.path, feeds)[0], run_model(made, feeds)[0]) < 4e-6
