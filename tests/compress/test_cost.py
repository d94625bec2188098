from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Model
from edgeopt.compress.arena import peak_activations
from edgeopt.compress.cost import predict_footprint
from edgeopt.compress.plan import apply_plan, make_plan
from edgeopt.model.oracle import Array
from edgeopt.target import Cluster, Isa, MemoryFacts, Target
from tests.graphs import describe, normal, save_graph, text_model

RUNTIME, PROGRAM = 4_000_000, 2_700_000


def target(page: int = 4096) -> Target:
    return Target(
        name="test",
        title="Test",
        isa=Isa(machine="aarch64", features=()),
        cluster=(Cluster(core="cortex-a72", count=4),),
        memory=MemoryFacts(page=page),
    )


def resident(model: Model, *, page: int = 4096, ids: Array | None = None) -> int:
    samples = None if ids is None else {"input_ids": ids}
    return predict_footprint(
        model, target(page), runtime=RUNTIME, program=PROGRAM, samples=samples
    ).weights_resident


def lookup(folder: Path, *, rows: int, width: int) -> Model:
    text = (
        "agraph (int64[1,4] input_ids) => (float[1,4,W] y) { y = Gather<axis=0>(table, input_ids) }"
    )
    stored = {"table": normal(0, rows, width)}
    return describe(save_graph(folder / "m.onnx", text.replace("W", str(width)), stored))


def test_only_touched_pages_of_a_table_count(tmp_path: Path) -> None:
    # Rows of 4096 bytes: each is one page, and the table starts on a page of its own.
    model = lookup(tmp_path, rows=1000, width=1024)
    header = 4096
    assert resident(model, ids=np.array([[[1, 1, 1, 1]]])) == header + 4096
    assert resident(model, ids=np.array([[[1, 2, 3, 4]], [[4, 5, 6, 1]]])) == header + 6 * 4096


def test_a_row_across_two_pages_counts_both(tmp_path: Path) -> None:
    model = lookup(tmp_path, rows=1000, width=384)
    # Row 2 lies in bytes 3072 to 4607.
    one, two = (resident(model, ids=np.full((1, 1, 4), row)) for row in (0, 2))
    assert two - one == 4096


def test_unknown_rows_are_bounded_by_what_one_inference_reads_and_the_table(tmp_path: Path) -> None:
    large, small = (lookup(tmp_path, rows=rows, width=1024) for rows in (1000, 17))
    assert resident(large) == 4096 + 4 * 2 * 4096
    assert resident(small) <= 4096 + 17 * 4096


def test_larger_pages_hold_more_of_a_table(tmp_path: Path) -> None:
    model = lookup(tmp_path, rows=1000, width=1024)
    ids = np.array([[[0, 100, 200, 300]]])
    assert resident(model, page=16384, ids=ids) == 16384 + 4 * 16384


@pytest.mark.parametrize("method", ["float16", "int8-rows", "int8-weights"])
def test_a_smaller_plan_is_predicted_smaller(tmp_path: Path, method: str) -> None:
    model = text_model(tmp_path, vocabulary=5000)
    plan = make_plan(model, method, directory=tmp_path)  # type: ignore[arg-type]
    made = apply_plan(model, plan, directory=tmp_path / "out")
    before, after = (
        predict_footprint(each, target(), runtime=RUNTIME, program=PROGRAM)
        for each in (model, made)
    )
    assert after.weights < 0.6 * before.weights
    code = after.runtime - RUNTIME
    assert 0 < code < 100_000
    assert after.flash == after.weights + PROGRAM + code
    assert after.arena == before.arena
    assert after.peak == after.weights_resident + after.arena + RUNTIME + code


def peak(text: str, folder: Path, **stored: Array) -> int:
    path = save_graph(folder / "m.onnx", text, stored)
    return peak_activations(onnx.load(path).graph)


def test_the_arena_holds_what_lives_at_the_same_time(tmp_path: Path) -> None:
    weights = {"w": normal(0, 8, 100), "v": normal(1, 100, 8)}
    text = "agraph (float[1,8] x) => (float[1,8] y) { h = MatMul(x, w) y = MatMul(h, v) }"
    # 8 and 100 floats, then 100 and 8 of them.
    assert peak(text, tmp_path, **weights) == 4 * 108
    kept = text.replace("y = MatMul(h, v)", "g = MatMul(h, v) y = Add(g, x)")
    assert peak(kept, tmp_path, **weights) == 4 * 116


def test_elementwise_operators_and_views_take_no_bytes_of_their_own(tmp_path: Path) -> None:
    text = """
    agraph (float[4,25] x) => (float[100] y) {
        a = Relu(x)
        b = Add(a, one)
        c = Erf(b)
        y = Reshape(c, flat)
    }"""
    assert peak(text, tmp_path, one=normal(0, 25), flat=np.array([100])) == 400


def test_an_input_that_is_read_later_is_not_overwritten(tmp_path: Path) -> None:
    text = "agraph (float[100] x) => (float[100] y) { a = Relu(x) b = Erf(a) y = Add(b, x) }"
    assert peak(text, tmp_path) == 800


def test_a_view_keeps_its_bytes_alive(tmp_path: Path) -> None:
    text = """
    agraph (float[1,100] x) => (float[1,100] y) {
        a = MatMul(x, w)
        v = Flatten(a)
        b = MatMul(a, w)
        y = MatMul(b, u)
        z = Relu(v)
    }"""
    # v is a, and read last: at y there are a, b and y.
    assert peak(text, tmp_path, w=normal(0, 100, 100), u=normal(1, 100, 100)) == 1200


CONVOLUTION = """
    agraph (float[1,16,14,14] x) => (float[1,32,H,W] y) { y = Conv<ATTRIBUTES>(x, filters) }"""


@pytest.mark.parametrize(
    ("attributes", "size", "grown"),
    [
        ("pads=[1,1,1,1]", 14, 4),
        ("pads=[1,1,1,1], kernel_shape=[3,3], strides=[1,1], dilations=[1,1], group=1", 14, 4),
        ("pads=[1,1,1,1], strides=[2,2]", 7, 1),
        ("pads=[2,2,2,2], dilations=[2,2]", 14, 1),
    ],
)
def test_filters_that_are_stored_transformed_count_as_such(
    attributes: str, size: int, grown: int, tmp_path: Path
) -> None:
    text = CONVOLUTION.replace("ATTRIBUTES", attributes).replace("H,W", f"{size},{size}")
    filters = normal(0, 32, 16, 3, 3)
    model = describe(save_graph(tmp_path / "m.onnx", text, {"filters": filters}))
    need = predict_footprint(model, target(), runtime=RUNTIME, program=PROGRAM)
    assert need.weights == 128 + filters.nbytes * grown
    # In a form they stay as they are.
    half = apply_plan(model, make_plan(model, "float16", directory=tmp_path), directory=tmp_path)
    need = predict_footprint(half, target(), runtime=RUNTIME, program=PROGRAM)
    assert need.weights == 128 + filters.nbytes // 2


def test_filters_that_are_read_both_ways_are_stored_twice(tmp_path: Path) -> None:
    text = """
    agraph (float[1,16,14,14] x) => (float[1,32,14,14] y, float[1,32,7,7] z) {
        y = Conv<pads=[1,1,1,1]>(x, filters)
        z = Conv<pads=[1,1,1,1], strides=[2,2]>(x, filters)
    }"""
    filters = normal(0, 32, 16, 3, 3)
    model = describe(save_graph(tmp_path / "m.onnx", text, {"filters": filters}))
    need = predict_footprint(model, target(), runtime=RUNTIME, program=PROGRAM)
    assert need.weights == 128 + filters.nbytes * 5
