"""The ledger says of each weight what was done, what it costs, and why."""

from pathlib import Path

from edgeopt.artifact import Footprint, Line, Method, Model, Recipe
from edgeopt.budget import Budget
from edgeopt.choice import Numbers
from edgeopt.compress import (
    Cost,
    Fit,
    Search,
    fit_plan,
    pace_of,
    predict_footprint,
    predict_latency,
)
from edgeopt.compress.ledger import write_ledger
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.pace import Clock, predict_nodes
from edgeopt.compress.sensitivity import Sensitivity, draw_calibration, measure_sensitivity
from edgeopt.target import load_target
from tests.graphs import deep_model, text_model

METHODS: tuple[Method, ...] = ("float32", "int8-weights", "int4-blocks")
TARGET = load_target("rpi4")


def cost(model: Model) -> Footprint:
    return predict_footprint(model, TARGET, runtime=0, program=0)


def fit(folder: Path, budget: Budget, methods: tuple[Method, ...] = METHODS) -> Fit:
    model = deep_model(folder, width=256)

    def harm() -> Sensitivity:
        choices = mixable_choices(model, methods, reconstruct=False)
        drawn = draw_calibration(model, None)
        return measure_sensitivity(model, choices, drawn, directory=folder / "harm")

    found = Search(harm) if len(methods) > 1 else Search()
    return fit_plan(
        model, methods, budget, None, cost=Cost(cost), directory=folder / "fit", search=found
    )


def ledger(folder: Path, found: Fit) -> dict[str, Line]:
    lines = write_ledger(found, deep_model(folder, width=256), Clock(pace_of(TARGET, threads=1)))
    return {each.weight: each for each in lines}


def test_bytes_of_the_ledger_are_those_that_the_file_loses(tmp_path: Path) -> None:
    found = fit(tmp_path, Budget(), ("int8-weights",))
    lines = ledger(tmp_path, found)
    saved = sum(each.before - each.after for each in lines.values())
    weights = cost(deep_model(tmp_path, width=256)).weights - cost(found.model).weights
    assert abs(saved - weights) <= 64 * len(lines)
    assert all(each.form == "int8-weights" for each in lines.values())
    assert "first plan of the profile that meets every limit" in lines["w0"].reason
    assert lines["w0"].measured is None


def test_a_mixture_says_what_the_next_larger_form_would_take(tmp_path: Path) -> None:
    whole = cost(deep_model(tmp_path, width=256)).flash
    found = fit(tmp_path, Budget(flash=whole // 6))
    assert found.plan.name == "mixed"
    lines = ledger(tmp_path, found)
    reasons = [each.reason for each in lines.values()]
    assert any("the next larger form takes" in each for each in reasons)
    assert all(each.harm is not None for each in lines.values())


def test_without_a_limit_nothing_is_made_smaller_and_the_ledger_says_so(tmp_path: Path) -> None:
    lines = ledger(tmp_path, fit(tmp_path, Budget()))
    assert {each.form for each in lines.values()} == {"float32"}
    assert all(each.before == each.after for each in lines.values())


def test_times_of_nodes_add_up_to_the_latency(tmp_path: Path) -> None:
    model, clock = deep_model(tmp_path), Clock(pace_of(TARGET, threads=1))
    nodes = list(predict_nodes(model, clock))
    assert sum(each.time for each in nodes) == predict_latency(model, clock)
    assert ("w0",) in {each.tensors for each in nodes}


def test_rows_that_a_profiles_numbers_decode_have_no_time_to_be_compared_with(
    tmp_path: Path,
) -> None:
    model = text_model(tmp_path)
    numbers = Numbers(granularity="tensor", zero_points=True)
    found = fit_plan(
        model,
        ("int8-rows",),
        Budget(),
        None,
        cost=Cost(cost),
        directory=tmp_path / "fit",
        search=Search(recipe=Recipe(numbers=numbers)),
    )
    lines = write_ledger(found, model, Clock(pace_of(TARGET, threads=1)))
    table = next(each for each in lines if each.weight == "table")
    assert table.form == "int8-rows, one scale, zero points"
    assert (table.before, table.predicted_before) == (500 * 32 * 4 + 112, 0)
    assert table.predicted_after > 0
    assert "slower" not in table.reason
