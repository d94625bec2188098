"""Matrices without blocks of zeros as compress writes them: compiled to onnxruntime's outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.artifact import Choice, Method, Model, Plan
from edgeopt.compile.kernels.rule import RULE, sorted_functions
from edgeopt.compile.kernels.sparse import KIND, pack_sparse
from edgeopt.compile.lift import lift_constants
from edgeopt.compile.sparse import is_sparse
from edgeopt.compress import apply_plan, make_plan
from edgeopt.compress.sparse import SPARSE
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.compile.kit import distance, lower_natively, run_natively
from tests.graphs import describe, normal, save_graph
from tests.host.arm_kit import run_on_arm

pytestmark = pytest.mark.host

DEPTH, WIDE, NARROW = 256, 512, 64
NAMES = ("widen", "mix", "turned")
FORMS: tuple[tuple[Method, int], ...] = (
    ("float32-sparse", 4),
    ("float32-sparse", 8),
    ("float32-sparse", 16),
    ("float16-sparse", 8),
    ("float16-sparse", 16),
    ("int8-sparse", 4),
    ("int8-sparse", 16),
)


def with_zeros(seed: int, shape: tuple[int, int], *, width: int, share: float) -> np.ndarray:
    """Draw a matrix [K, N] of which a share of the blocks is zero; one panel of it altogether."""
    values = normal(seed, *shape).reshape(shape[0], -1, width) / 8
    gone = np.random.default_rng(seed).random(values.shape[:2]) < share
    gone[:, 1] = True
    values[gone] = 0
    return values.reshape(shape)


def save_sparse(folder: Path, *, width: int = 16, share: float = 0.6, rows: int = 13) -> Model:
    """Multiply rows by a matrix, their mean by another and by a turned one."""
    text = f"""
    sparse (float[1,{rows},{DEPTH}] x) => (float[1,{NARROW}] scores) {{
        hidden = MatMul(x, widen)
        active = Relu(hidden)
        mean = ReduceMean<keepdims=0>(active, one)
        mixed = MatMul(mean, mix)
        bounded = Tanh(mixed)
        scores = Gemm<transB=1>(bounded, turned, bias)
    }}"""
    shapes = {"widen": (DEPTH, WIDE), "mix": (WIDE, WIDE), "turned": (WIDE, NARROW)}
    stored = {
        name: with_zeros(seed, shape, width=width, share=share)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    stored["turned"] = np.ascontiguousarray(stored["turned"].T)
    stored |= {"bias": normal(4, NARROW), "one": np.array([1])}
    return describe(save_graph(folder / "sparse.onnx", text, stored))


def compress(model: Model, folder: Path, method: Method, width: int) -> Model:
    choices = tuple(Choice(weight=name, method=method, width=width) for name in NAMES)
    return apply_plan(model, Plan(name=method, choices=choices), directory=folder / "out")


def kinds_of(model: Model) -> list[str]:
    module, refusals = lower_natively(model.path)
    assert refusals == ()
    functions = (function for _, function in sorted_functions(module))
    return [str((each.attrs or {}).get(RULE, "")) for each in functions]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("rows", [1, 13])
def test_compiled_blocks_give_onnxruntimes_outputs(
    form: tuple[Method, int], rows: int, tmp_path: Path
) -> None:
    model = save_sparse(tmp_path, width=form[1], rows=rows)
    made = compress(model, tmp_path, *form)
    # All three products, and nothing that makes a whole matrix first.
    assert kinds_of(made).count(KIND) == len(NAMES)
    for seed in range(2):
        feeds = seeded_inputs(made, seed)
        found, wanted = run_natively(made.path, feeds)[0], run_model(made, feeds)[0]
        assert distance(found, wanted) < 4e-6
        if form[0] == "float32-sparse":
            # Nothing is lost.
            assert distance(found, run_model(model, feeds)[0]) < 4e-6
    other = run_model(save_sparse(tmp_path, width=form[1], rows=rows, share=0.3), feeds)[0]
    assert distance(found, other) > 1e-2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_pushed_has_no_block_of_zeros(form: tuple[Method, int], tmp_path: Path) -> None:
    model, item = save_sparse(tmp_path, width=form[1]), SPARSE[form[0]][0]
    stored = initializers(onnx.load(model.path).graph)
    values = {name: numpy_helper.to_array(stored[name]) for name in NAMES}
    values["turned"] = values["turned"].T
    wanted = 4 * NARROW
    for each in values.values():
        kept = int(each.reshape(len(each), -1, form[1]).any(axis=2).sum())
        wanted += kept * (form[1] * item + 2)
        wanted += 4 * each.shape[1] if item == 1 else 0
    made = compress(model, tmp_path, *form)
    arrays = lift_constants(lower_natively(made.path)[0]).arrays
    # Where panels begin is so little that it may be part of the code.
    assert sum(each.nbytes for each in arrays if each.dtype != np.int32) == wanted


@pytest.mark.parametrize(
    ("machine", "form"),
    [
        ("aarch64", ("float32-sparse", 4)),
        ("aarch64", ("float16-sparse", 16)),
        ("aarch64", ("int8-sparse", 16)),
        ("arm", ("float32-sparse", 8)),
        ("arm", ("float16-sparse", 16)),
        ("arm", ("int8-sparse", 4)),
    ],
    ids=str,
)
def test_arm_computes_blocks_in_the_memory_that_was_predicted(
    machine: str, form: tuple[Method, int], tmp_path: Path
) -> None:
    model = save_sparse(tmp_path, width=form[1])
    made = compress(model, tmp_path, *form)
    seen = run_on_arm(made, tmp_path, machine=machine)
    assert seen.distance < 4e-6
    assert seen.predicted.weights == pytest.approx(seen.compiled.weights, rel=0.01)


def test_a_matrix_without_any_value_is_multiplied_too(tmp_path: Path) -> None:
    text = "g (float[3,64] x) => (float[3,64] y) { z = MatMul(x, w)  y = Add(z, x) }"
    stored = {"w": np.zeros((64, 64), np.float32)}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    plan = make_plan(model, "float32", directory=tmp_path / "plan")
    assert plan.choices[0].method == "float32-sparse"
    made = apply_plan(model, plan, directory=tmp_path / "out")
    feeds = seeded_inputs(made, 0)
    assert np.array_equal(run_natively(made.path, feeds)[0], feeds["x"])


def test_rows_are_sorted_by_panel_with_their_places() -> None:
    rows = np.concatenate([np.zeros((1, 4), np.float32), normal(0, 3, 4)])
    places = np.array([[1, 0], [0, 2], [3, 0]])
    found = pack_sparse(rows, places)
    assert np.array_equal(found.values, rows[[1, 3, 2]])
    assert found.rows.tolist() == [0, 2, 1]
    assert found.starts.tolist() == [0, 2, 3]


def test_a_lookup_that_is_no_sparse_matrix_stays_one(tmp_path: Path) -> None:
    rows = np.concatenate([np.zeros((1, 16), np.float32), normal(0, 3, 16)])
    places = np.array([[1, 0], [0, 2], [3, 0]])
    assert is_sparse(rows, places)
    # A row twice, rows out of order, a first row that stands for something.
    assert not is_sparse(rows, np.where(places == 2, 1, places))
    assert not is_sparse(rows, places[::-1])
    assert not is_sparse(rows + 1, places)
    text = "g (float[2,40] x) => (float[2,64] y) { s = Gather<axis=0>(rows, places)\n"
    text += "w = Reshape(s, shape)\n y = MatMul(x, w) }"
    drawn = np.random.default_rng(0).integers(0, 200, (40, 4)).astype(np.int32)
    stored = {"rows": normal(1, 200, 16), "places": drawn, "shape": np.array([40, 64])}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    feeds = seeded_inputs(model, 0)
    assert KIND not in kinds_of(model)
    assert distance(run_natively(model.path, feeds)[0], run_model(model, feeds)[0]) < 4e-6
