import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from edgeopt.artifact import Choice, Method, Plan
from edgeopt.compress import apply_plan, possible_choices
from edgeopt.compress.share import choose_rows, nearest_rows, possible_shares
from edgeopt.errors import ConfigError
from edgeopt.model.graph import Weight
from edgeopt.model.oracle import run_samples
from tests.compress.test_codebook import ROWS, WIDTH, table_model
from tests.compress.test_lowrank import value, with_values
from tests.compress.test_plan import draw
from tests.graphs import normal


def shared(rows: int, method: Method = "float32", **fields: object) -> Choice:
    given = {"weight": "table", "method": method, "rows": rows, **fields}
    return Choice.model_validate(given)


def test_rows_that_are_read_most_are_kept_and_then_the_first_ones() -> None:
    values = normal(0, 50, 8)
    reads = np.full(50, 0.1, np.float32)
    reads[[40, 7, 22]] = (9, 3, 5)
    kept, places = choose_rows(values, 5, reads)
    assert kept.tolist() == [0, 1, 7, 22, 40]
    assert places[kept].tolist() == [0, 1, 2, 3, 4]
    kept, _ = choose_rows(values, 5, None)
    assert kept.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("width", [8, 100])
def test_other_ids_get_the_nearest_row(width: int) -> None:
    values = normal(0, 400, width)
    # Each of the others lies beside one of the kept.
    values[100:] = values[np.arange(300) % 100] + 0.01 * normal(1, 300, width)
    rows, among = np.arange(100, 400), np.arange(100)
    assert nearest_rows(values, rows, among).tolist() == (np.arange(300) % 100).tolist()


def test_distances_of_all_rows_are_never_held_at_once() -> None:
    values, count = normal(0, 12_000, 16), 6000
    tracemalloc.start()
    try:
        choose_rows(values, count, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6000 * count * 4 / 3


def test_shared_rows_compute_what_copies_of_them_do(tmp_path: Path) -> None:
    model = table_model(tmp_path)
    feeds = draw(model, 8, 0)
    values = value(model, "table")
    kept, places = choose_rows(values, 1000, None)
    made = apply_plan(model, Plan(name="x", choices=(shared(1000),)), directory=tmp_path / "out")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    kinds = {
        each.name: (onnx.helper.tensor_dtype_to_np_dtype(each.data_type).name, tuple(each.dims))
        for each in onnx.load(made.path).graph.initializer
    }
    assert kinds["table.rows"] == ("float32", (1000, WIDTH))
    assert kinds["table.places"] == ("uint16", (ROWS,))
    assert "table" not in kinds
    copies = with_values(model, "table", values[kept][places], tmp_path)
    wanted = run_samples(copies, feeds)[0]
    found, whole = run_samples(made, feeds)[0], run_samples(model, feeds)[0]
    assert np.array_equal(found, wanted)
    assert np.abs(whole - wanted).max() > 1e-2 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("float16", {}),
        ("int8-rows", {}),
        ("int4-blocks", {"block": 16}),
        ("codebook-rows", {"group": 8}),
    ],
)
def test_rows_that_are_left_have_any_form_of_a_table(
    tmp_path: Path, method: Method, fields: dict[str, object]
) -> None:
    model = table_model(tmp_path)
    plan = Plan(name="x", choices=(shared(1000, method, **fields),))
    made = apply_plan(model, plan, directory=tmp_path / "out")
    exact = apply_plan(model, Plan(name="x", choices=(shared(1000),)), directory=tmp_path / "exact")
    feeds = draw(model, 4, 0)
    found, wanted = run_samples(made, feeds)[0], run_samples(exact, feeds)[0]
    assert 0 < np.abs(found - wanted).max() < 0.8 * np.abs(wanted).max()
    again = apply_plan(
        model, Plan.model_validate_json(plan.model_dump_json()), directory=tmp_path / "again"
    )
    assert again.sha256 == made.sha256


def test_samples_say_which_rows_are_kept_and_what_these_weigh(tmp_path: Path) -> None:
    model = table_model(tmp_path)
    random = np.random.default_rng(0)
    often = random.choice(np.arange(1500, ROWS), 40, replace=False)
    ids = random.choice(often, (64, 1, 8))
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    wanted = run_samples(model, samples)[0]
    errors = []
    for fitted in (False, True):
        choice = shared(600, "codebook-rows", group=8, reconstruct=fitted)
        plan = Plan(name="x", choices=(choice,))
        made = apply_plan(model, plan, directory=tmp_path / "out", samples=samples)
        errors.append(np.linalg.norm(run_samples(made, samples)[0] - wanted))
    assert errors[1] < 0.3 * errors[0]


def test_sharing_is_tried_where_a_table_has_rows_to_spare(tmp_path: Path) -> None:
    assert possible_shares(Weight("w", "table", (30522, 384), 0)) == (4096, 8192, 16384)
    assert possible_shares(Weight("w", "table", (8192, 384), 0)) == (4096,)
    assert possible_shares(Weight("w", "matmul", (30522, 384), 0)) == ()
    model = table_model(tmp_path, rows=7000)
    found = [(each.rows, each.group) for each in possible_choices(model)["table"] if each.rows]
    assert found == [(4096, 4), (4096, 6), (4096, 8), (4096, 12)]


@pytest.mark.parametrize(
    "choice",
    [
        shared(ROWS),
        Choice(weight="head", method="float16", rows=4),
    ],
    ids=["as many rows as there are", "no table"],
)
def test_rows_that_a_weight_cannot_share_are_refused(tmp_path: Path, choice: Choice) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_plan(table_model(tmp_path), Plan(name="x", choices=(choice,)), directory=tmp_path)
    assert "ids cannot share" in caught.value.why


def test_shared_rows_have_no_rank() -> None:
    with pytest.raises(ValidationError):
        shared(100, rank=32)
