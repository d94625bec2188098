from pathlib import Path

import pytest

from edgeopt.artifact import Footprint, Method, Model
from edgeopt.budget import Budget
from edgeopt.compress import Cost, fit_plan, predict_footprint
from edgeopt.compress.record import (
    CutDifference,
    FitRecord,
    compare_cuts,
    compare_records,
    read_record,
    record_fit,
)
from edgeopt.cut import Cut
from edgeopt.errors import ConfigError
from edgeopt.target import load_target
from tests.graphs import image_model, text_model


def record(model: Model, method: Method, folder: Path) -> FitRecord:
    target = load_target("rpi4")

    def footprint(made: Model) -> Footprint:
        return predict_footprint(made, target, runtime=0, program=0)

    found = fit_plan(
        model, (method,), Budget(), None, cost=Cost(footprint), directory=folder / method
    )
    return record_fit(found, model, "rpi4")


def test_two_plans_differ_in_the_weights_that_have_another_form(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    half, codes = (record(model, each, tmp_path) for each in ("float16", "int8-rows"))
    found = compare_records(half, codes)
    # int8-rows stores tables in codes, and the rest as float16 does.
    assert [each.weight for each in found] == ["table"]
    (table,) = found
    assert (table.first_bytes, table.second_bytes) == (500 * 32 * 2, 500 * 32 + 500 * 4)
    assert compare_records(half, half) == ()


def test_what_is_stored_for_every_weight_is_all_that_a_plan_stores(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    plain, codes = (record(model, each, tmp_path) for each in ("float32", "int8-weights"))
    assert plain.sizes == {"table": 500 * 32 * 4, "mix": 32 * 64 * 4}
    assert codes.sizes["mix"] == 32 * 64 + 64 * 4 + 64
    assert codes.flash < plain.flash


def test_a_record_is_read_from_its_folder_or_file_as_it_was_written(tmp_path: Path) -> None:
    made = record(text_model(tmp_path), "float16", tmp_path)
    (tmp_path / "fit.json").write_text(made.model_dump_json())
    assert read_record(tmp_path) == read_record(tmp_path / "fit.json") == made


@pytest.mark.parametrize("text", ["", "{}", "[1]", "\x00"])
def test_what_is_no_record_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"fit\.json cannot be read"):
        read_record(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_record(tmp_path / "missing")


def test_plans_of_two_models_are_not_compared(tmp_path: Path) -> None:
    one = record(text_model(tmp_path), "float16", tmp_path)
    other = record(image_model(tmp_path), "float16", tmp_path)
    with pytest.raises(ConfigError, match="not of one model"):
        compare_records(one, other)


def test_groups_that_two_plans_cut_differently_are_listed_with_the_units_left(
    tmp_path: Path,
) -> None:
    made = record(text_model(tmp_path), "float16", tmp_path)

    def cut(**kept: tuple[int, ...]) -> FitRecord:
        cuts = tuple(Cut(group=name, kept=units) for name, units in kept.items())
        return made.model_copy(update={"plan": made.plan.model_copy(update={"cuts": cuts})})

    one, other = cut(a=(0, 1, 5), b=(2,)), cut(a=(1, 5, 7, 8), b=(2,), c=(0,))
    assert compare_cuts(one, other) == (
        CutDifference(group="a", first=3, second=4, both=2),
        CutDifference(group="c", first=None, second=1, both=None),
    )
    assert compare_cuts(one, one) == ()
    assert [each.first for each in compare_cuts(other, made)] == [4, 1, 1]
