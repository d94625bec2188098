from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress import apply_plan, possible_choices
from edgeopt.compress.blocks import encode_blocks
from edgeopt.compress.codebook import (
    VECTORS,
    decode_groups,
    encode_groups,
    find_centres,
    nearest_centres,
    possible_groups,
)
from edgeopt.compress.distance import measure_distance
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.reads import count_reads
from edgeopt.compress.sensitivity import draw_calibration, measure_sensitivity
from edgeopt.errors import ConfigError
from edgeopt.model.graph import Weight, weights
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_lowrank import value, weight, with_values
from tests.compress.test_plan import draw
from tests.graphs import describe, normal, save_graph

ROWS, WIDTH = 3000, 48


def table_model(folder: Path, *, seed: int = 0, rows: int = ROWS) -> Model:
    """Look up words and their places, hide what a mask excludes, classify the mean."""
    text = """
    words (int64[1,8] input_ids, int64[1,8] attention_mask) => (float[1,6] scores) {
        rows = Gather<axis=0>(table, input_ids)
        where = Cast<to=7>(numbers)
        places = Gather<axis=0>(positions, where)
        sum = Add(rows, places)
        number = Cast<to=1>(attention_mask)
        column = Unsqueeze(number, two)
        kept = Mul(sum, column)
        mean = ReduceSum<keepdims=0>(kept, one)
        scores = MatMul(mean, head)
    }"""
    stored: dict[str, Array] = {
        "table": normal(seed, rows, WIDTH),
        "positions": normal(seed + 1, 64, WIDTH),
        "numbers": np.arange(8, dtype=np.int32),
        "two": np.array([2]),
        "one": np.array([1]),
        "head": normal(seed + 2, WIDTH, 6),
    }
    return describe(save_graph(folder / "words.onnx", text, stored))


def grouped(group: int, *, fitted: bool = False) -> Choice:
    return Choice(weight="table", method="codebook-rows", group=group, reconstruct=fitted)


def lloyd(points: Array, weights: Array, centres: Array, steps: int) -> Array:
    """Move each centre to the mean of the points that are nearest to it, as the formula stands."""
    centres = centres.astype(np.float64)
    for _ in range(steps):
        distances = np.linalg.norm(points[:, None] - centres[None], axis=2)
        nearest = distances.argmin(axis=1)
        for place in range(len(centres)):
            mine = nearest == place
            if mine.any():
                centres[place] = np.average(points[mine], axis=0, weights=weights[mine])
    return centres


@pytest.mark.parametrize("seed", range(5))
def test_centres_are_those_of_lloyds_steps(seed: int) -> None:
    points, weights = normal(seed, 400, 3), np.abs(normal(seed + 9, 400)) + np.float32(0.1)
    shares = weights / weights.sum(dtype=np.float64)
    first = points[np.random.default_rng(0).choice(400, 8, replace=False, p=shares)]
    found = find_centres(points, weights, 8)
    assert np.allclose(found, lloyd(points, weights, first, 12), atol=1e-4)
    assert not np.allclose(found, lloyd(points, np.ones(400), first, 12), atol=1e-4)


def test_each_point_belongs_to_the_nearest_centre() -> None:
    points, centres = normal(0, 500, 4), normal(1, VECTORS, 4)
    distances = np.linalg.norm(points[:, None] - centres[None], axis=2)
    assert np.array_equal(nearest_centres(points, centres), distances.argmin(axis=1))


@pytest.mark.parametrize("rows", [100, 3000, 20000])
def test_groups_of_four_lose_less_than_blocks_of_two_bits(rows: int) -> None:
    values = normal(0, rows, 64)
    found = encode_groups(values, group=4)
    assert found.codes.shape == (rows, 16)
    assert found.codes.dtype == np.uint8
    assert found.vectors.shape == (16, VECTORS, 4)
    codes, scales = encode_blocks(values, block=64, bits=2)
    blocked = np.linalg.norm(values - codes * scales)
    assert np.linalg.norm(values - decode_groups(found)) < 0.9 * blocked
    if rows < VECTORS:
        assert np.allclose(values, decode_groups(found), atol=2e-3)


@pytest.mark.parametrize("rows", [3000, 20000])
def test_rows_that_count_more_lose_less(rows: int) -> None:
    values, importance = normal(0, rows, 16), np.full(rows, 0.1, np.float32)
    often = slice(0, rows, 20)
    importance[often] = 50
    plain, weighted = (
        values - decode_groups(encode_groups(values, group=8, importance=each))
        for each in (None, importance)
    )
    assert np.linalg.norm(weighted[often]) < 0.8 * np.linalg.norm(plain[often])
    assert np.linalg.norm(weighted) > np.linalg.norm(plain)


@pytest.mark.parametrize("group", [4, 8, 16])
def test_a_table_in_groups_computes_what_its_vectors_stand_for(tmp_path: Path, group: int) -> None:
    model = table_model(tmp_path)
    feeds = draw(model, 8, 0)
    plan = Plan(name="x", choices=(grouped(group),))
    made = apply_plan(model, plan, directory=tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    assert (made.inputs, made.outputs) == (model.inputs, model.outputs)
    decoded = decode_groups(encode_groups(value(model, "table"), group=group))
    wanted = run_samples(with_values(model, "table", decoded, tmp_path), feeds)[0]
    found, whole = run_samples(made, feeds)[0], run_samples(model, feeds)[0]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(whole - wanted).max() > 1e-2 * np.abs(wanted).max()
    again = apply_plan(
        model, Plan.model_validate_json(plan.model_dump_json()), directory=tmp_path / "again"
    )
    assert again.sha256 == made.sha256


def test_indices_of_other_ranks_keep_their_axes(tmp_path: Path) -> None:
    for shape in ("8", "1,8", "2,3,4"):
        text = f"""
        agraph (int64[{shape}] ids) => (float[{shape},{WIDTH}] y) {{
            y = Gather<axis=0>(table, ids)
        }}"""
        model = describe(save_graph(tmp_path / "m.onnx", text, {"table": normal(0, ROWS, WIDTH)}))
        plan = Plan(name="x", choices=(grouped(8),))
        made = apply_plan(model, plan, directory=tmp_path / "out")
        feeds = draw(model, 2, 0)
        assert run_samples(made, feeds)[0].shape == run_samples(model, feeds)[0].shape


def test_a_table_of_huge_numbers_keeps_vectors_in_single_precision(tmp_path: Path) -> None:
    model = table_model(tmp_path)
    huge = with_values(model, "table", value(model, "table") * 1e5, tmp_path)
    made = apply_plan(huge, Plan(name="x", choices=(grouped(8),)), directory=tmp_path / "out")
    kinds = {each.name: each.data_type for each in onnx.load(made.path).graph.initializer}
    assert kinds["table.vectors"] == onnx.TensorProto.FLOAT
    assert np.isfinite(run_samples(made, draw(huge, 2, 0))[0]).all()


def test_reads_are_counted_without_what_a_mask_hides(tmp_path: Path) -> None:
    model = table_model(tmp_path)
    loaded = onnx.load(model.path)
    tables = [each for each in weights(loaded.graph) if each.role == "table"]
    ids = np.array([[[5, 5, 7, 9, 0, 0, 0, 0]], [[5, 8, 0, 0, 0, 0, 0, 0]]])
    mask = np.array([[[1, 1, 1, 1, 0, 0, 0, 0]], [[1, 1, 0, 0, 0, 0, 0, 0]]])
    found = count_reads(loaded, tables, {"input_ids": ids, "attention_mask": mask})
    table = found["table"]
    assert {row: float(table[row]) for row in (5, 7, 8, 9)} == {5: 3, 7: 1, 8: 1, 9: 1}
    # Three rows were read once: that much is expected of all the others together.
    assert np.delete(table, [5, 7, 8, 9]) == pytest.approx(3 / (ROWS - 4))
    # Places come from a stored tensor.
    assert found["positions"][:5].tolist() == pytest.approx([2, 2, 1, 1, 2 / 60])


def test_rows_that_samples_read_move_the_outputs_less(tmp_path: Path) -> None:
    model = table_model(tmp_path)
    random = np.random.default_rng(0)
    often = random.choice(ROWS, 40, replace=False)
    ids = random.choice(often, (64, 1, 8))
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    unseen = {name: values[::-1][:, :, ::-1] for name, values in samples.items()}
    wanted = run_samples(model, unseen)[0]
    errors = []
    for fitted in (False, True):
        plan = Plan(name="x", choices=(grouped(8, fitted=fitted),))
        made = apply_plan(model, plan, directory=tmp_path / "out", samples=samples)
        errors.append(np.linalg.norm(run_samples(made, unseen)[0] - wanted))
    assert errors[1] < 0.5 * errors[0]


def test_weighing_rows_without_samples_is_refused(tmp_path: Path) -> None:
    plan = Plan(name="x", choices=(grouped(8, fitted=True),))
    with pytest.raises(ConfigError, match="no calibration samples"):
        apply_plan(table_model(tmp_path), plan, directory=tmp_path)


def test_only_groups_that_save_bytes_are_tried(tmp_path: Path) -> None:
    model = table_model(tmp_path, rows=6000)
    assert possible_groups(weight(model, "table")) == (4, 6, 8, 12, 16, 24)
    # 64 rows take less than their vectors would.
    assert possible_groups(weight(model, "positions")) == ()
    found = [each.group for each in possible_choices(model)["table"] if each.group]
    assert found == [4, 6, 8, 12, 16, 24]
    matrix = Weight("mix", "matmul", (6000, 48), 1)
    assert possible_groups(matrix) == ()


def test_harm_and_bytes_of_groups_are_those_of_their_plan(tmp_path: Path) -> None:
    model = table_model(tmp_path)
    calibration = draw_calibration(model, None)
    choices = mixable_choices(model, ("codebook-rows",), reconstruct=False)
    found = measure_sensitivity(model, choices, calibration, directory=tmp_path / "harm")
    expected = run_samples(model, calibration.judged.samples)
    layers = {layer[0].choice.weight: layer for layer in found.layers}
    assert len(layers["table"]) > 3
    for option in layers["table"][1:]:
        plan = Plan(name="one", choices=(option.choice,))
        made = apply_plan(model, plan, directory=tmp_path / "one")
        outputs = run_samples(made, calibration.judged.samples)
        assert option.harm == pytest.approx(measure_distance(outputs, expected, classes=False))
        assert option.choice.group is not None
        groups = WIDTH // option.choice.group
        parts = (ROWS * groups, VECTORS * WIDTH * 2, groups * 4)
        # Each has a record of 112 bytes in the weights file, and begins at a multiple of 64.
        assert option.size == sum(112 + -(-part // 64) * 64 for part in parts)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "codebook-rows"},
        {"method": "codebook-rows", "group": 1},
        {"method": "int8-rows", "group": 8},
        {"method": "codebook-rows", "group": 8, "rank": 32},
    ],
    ids=str,
)
def test_groups_that_mean_nothing_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Choice.model_validate({"weight": "w", **fields})


def test_groups_that_do_not_divide_a_row_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_plan(
            table_model(tmp_path), Plan(name="x", choices=(grouped(32),)), directory=tmp_path
        )
    assert "groups of 32 do not divide the rows of 'table'" in caught.value.why
