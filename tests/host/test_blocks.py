"""Weights in 4 and 2 bits as compress writes them: compiled to onnxruntime's outputs, packed."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Choice, Method, Model, Plan
from edgeopt.compile.lift import lift_constants
from edgeopt.compress import apply_plan
from edgeopt.compress.blocks import BITS
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.compile.kit import distance, lower_natively, run_natively
from tests.graphs import describe, normal, save_graph
from tests.host.arm_kit import run_on_arm

pytestmark = pytest.mark.host

ROWS, WIDTH, WIDE = 6000, 128, 256
FORMS: tuple[tuple[Method, int], ...] = (
    ("int4-blocks", 32),
    ("int4-blocks", 128),
    ("int2-blocks", 32),
    ("int2-blocks", 64),
    ("codebook16-blocks", 32),
    ("codebook4-blocks", 128),
    ("ternary-blocks", 32),
    ("binary-blocks", 64),
)


def save_text(folder: Path) -> Model:
    """Look up rows, multiply 8 of them by a matrix, their mean by another and a turned one."""
    text = f"""
    text (int64[1,8] ids) => (float[1,{WIDTH}] scores) {{
        rows = Gather<axis=0>(table, ids)
        hidden = MatMul(rows, widen)
        active = Relu(hidden)
        mean = ReduceMean<keepdims=0>(active, one)
        mixed = MatMul(mean, mix)
        bounded = Tanh(mixed)
        scores = Gemm<transB=1>(bounded, turned, bias)
    }}"""
    stored: dict[str, np.ndarray] = {
        "table": normal(0, ROWS, WIDTH),
        "widen": normal(1, WIDTH, WIDE) / 8,
        "mix": normal(2, WIDE, WIDE) / 16,
        "turned": normal(3, WIDTH, WIDE) / 16,
        "bias": normal(4, WIDTH),
        "one": np.array([1]),
    }
    return describe(save_graph(folder / "text.onnx", text, stored))


def compress(folder: Path, method: Method, block: int) -> Model:
    model = save_text(folder)
    # A table has no form of one bit a value.
    of_table: Method = "ternary-blocks" if method == "binary-blocks" else method
    choices = (
        Choice(weight="table", method=of_table, block=block),
        *(Choice(weight=name, method=method, block=block) for name in ("widen", "mix", "turned")),
    )
    return apply_plan(model, Plan(name=method, choices=choices), directory=folder / "out")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_compiled_blocks_give_onnxruntimes_outputs(
    form: tuple[Method, int], tmp_path: Path
) -> None:
    made = compress(tmp_path, *form)
    for seed in range(2):
        feeds = seeded_inputs(made, seed)
        found, wanted = run_natively(made.path, feeds)[0], run_model(made, feeds)[0]
        assert distance(found, wanted) < 4e-6
    # What is compared depends on the codes: those of another form are far away.
    other = run_model(save_text(tmp_path), feeds)[0]
    assert distance(found, other) > 1e-2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_blocks_stay_packed_and_scales_half_floats(
    form: tuple[Method, int], tmp_path: Path
) -> None:
    made = compress(tmp_path, *form)
    arrays = lift_constants(lower_natively(made.path)[0]).arrays
    # Panels of 24 columns are padded.
    table, rest = ROWS * WIDTH, WIDTH * 264 + WIDE * WIDE + WIDTH * WIDE
    bits = BITS[form[0]]
    packed = (table * max(bits, 2) + rest * bits) // 8 + (table + rest) // form[1] * 2
    assert sum(each.nbytes for each in arrays) <= packed + 4 * WIDTH


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_64_bit_arm_computes_blocks_in_the_memory_that_was_predicted(
    form: tuple[Method, int], tmp_path: Path
) -> None:
    made = compress(tmp_path, *form)
    seen = run_on_arm(made, tmp_path)
    assert seen.distance < 4e-6
    predicted, compiled = seen.predicted, seen.compiled
    assert predicted.weights == pytest.approx(compiled.weights, rel=0.01)
    assert predicted.flash == pytest.approx(compiled.flash, rel=0.01)
    assert predicted.peak == pytest.approx(compiled.peak, rel=0.03)
    assert predicted.weights_resident == pytest.approx(compiled.weights_resident, rel=0.15)
    size = made.path.stat().st_size
    assert compiled.weights < 1.15 * size
    assert onnx.load(made.path).opset_import[0].version == (21 if BITS[form[0]] == 4 else 25)


@pytest.mark.parametrize("operator", ["Add", "MatMul"])
def test_levels_that_no_kernel_takes_are_looked_up_one_by_one(
    operator: str, tmp_path: Path
) -> None:
    text = f"""
    levels (float[96,96] x) => (float[96,96] y) {{
        places = Cast<to=6>(codes)
        values = Gather<axis=0>(levels, places)
        y = {operator}(x, values)
    }}"""
    codes = np.random.default_rng(0).integers(0, 200, (96, 96)).astype(np.uint8)
    stored: dict[str, np.ndarray] = {"codes": codes, "levels": normal(1, 200)}
    made = describe(save_graph(tmp_path / "levels.onnx", text, stored))
    feeds = seeded_inputs(made, 0)
    found = run_natively(made.path, feeds)[0]
    values = stored["levels"][codes]
    wanted = feeds["x"] + values if operator == "Add" else feeds["x"] @ values
    assert distance(found, wanted) < 4e-6
    assert distance(found, run_model(made, feeds)[0]) < 4e-6
