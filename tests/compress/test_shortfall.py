"""Where nothing fits: the least of each limit, which one binds, and a relaxation that works."""

import re
from pathlib import Path

import pytest

from edgeopt.artifact import Footprint, Method, Model
from edgeopt.budget import Budget
from edgeopt.compress import Cost, Fit, Infeasible, Search, fit_plan, predict_footprint
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.sensitivity import Sensitivity, draw_calibration, measure_sensitivity
from edgeopt.target import load_target
from edgeopt.units import parse_bytes
from tests.graphs import deep_model

METHODS: tuple[Method, ...] = ("float32", "float16", "int8-weights", "int4-blocks", "int2-blocks")


def cost(model: Model) -> Footprint:
    return predict_footprint(model, load_target("rpi4"), runtime=3_000_000, program=1_000_000)


def fit(folder: Path, budget: Budget) -> Fit:
    model = deep_model(folder, width=256)

    def harm() -> Sensitivity:
        choices = mixable_choices(model, METHODS, reconstruct=False)
        drawn = draw_calibration(model, None)
        return measure_sensitivity(model, choices, drawn, directory=folder / "harm")

    return fit_plan(
        model,
        METHODS,
        budget,
        None,
        cost=Cost(cost),
        directory=folder / "fit",
        search=Search(harm),
    )


def shortfall(folder: Path, budget: Budget) -> Infeasible:
    with pytest.raises(Infeasible) as caught:
        fit(folder, budget)
    assert caught.value.exit_code == 3
    return caught.value


def relaxed(error: Infeasible, budget: Budget) -> Budget:
    asked = dict(re.findall(r"--(flash|ram) (\S+B)", error.fix))
    assert asked
    return budget.model_copy(update={name: parse_bytes(size) for name, size in asked.items()})


def test_the_relaxation_that_is_named_is_enough_and_a_kilobyte_less_is_not(
    tmp_path: Path,
) -> None:
    budget = Budget(flash=1_050_000)
    error = shortfall(tmp_path, budget)
    assert "flash binds" in error.what
    assert "the least that any plan reaches" in error.why
    enough = relaxed(error, budget)
    found = fit(tmp_path, enough)
    assert found.chosen.footprint.flash <= (enough.flash or 0)
    shortfall(tmp_path, Budget(flash=(enough.flash or 0) - 2000))


def test_one_limit_is_relaxed_where_the_other_can_be_kept(tmp_path: Path) -> None:
    error = shortfall(tmp_path, Budget(flash=1_050_000, ram=20_000_000))
    assert "--flash" in error.fix
    assert "--ram" not in error.fix
    assert re.search(r"the least .*of flash, .*of ram", error.why)
    both = Budget(flash=1_050_000, ram=20_000_000)
    assert fit(tmp_path, relaxed(error, both)).chosen.broken == ()
