"""On a graph of few weights every mixture can be made: the search finds the best of them."""

import random
from itertools import product
from pathlib import Path

import pytest

from edgeopt.artifact import MIXED, Footprint, Method, Model, Plan
from edgeopt.budget import Budget
from edgeopt.compress import predict_footprint
from edgeopt.compress.mix import Mixer
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.sensitivity import draw_calibration, measure_sensitivity
from edgeopt.target import load_target
from tests.graphs import text_model

METHODS: tuple[Method, ...] = ("float32", "float16", "int8-weights", "int4-blocks", "int2-blocks")
BUDGETS = 40


def cost(model: Model) -> Footprint:
    return predict_footprint(model, load_target("rpi4"), runtime=1000, program=1000)


@pytest.fixture
def mixer(tmp_path: Path) -> Mixer:
    model = text_model(tmp_path, vocabulary=3000)
    choices = mixable_choices(model, METHODS, reconstruct=False)
    calibration = draw_calibration(model, None)
    found = measure_sensitivity(model, choices, calibration, directory=tmp_path / "harm")
    return Mixer(model, found, cost, samples=None, plain=True)


def test_a_budget_is_called_infeasible_if_and_only_if_no_mixture_meets_it(
    mixer: Mixer, tmp_path: Path
) -> None:
    every: dict[tuple[int, ...], tuple[Footprint, float]] = {}
    for places in product(*(range(len(layer)) for layer in mixer.layers)):
        options = [layer[at] for layer, at in zip(mixer.layers, places, strict=True)]
        plan = Plan(name=MIXED, choices=tuple(each.choice for each in options))
        made = apply_plan(mixer.model, plan, directory=tmp_path / "one")
        every[places] = (cost(made), sum(each.harm for each in options))
    flashes = [need.flash for need, _ in every.values()]
    peaks = [need.peak for need, _ in every.values()]
    draw = random.Random(0)
    infeasible = 0
    for _ in range(BUDGETS):
        flash = round(draw.uniform(0.95 * min(flashes), max(flashes)))
        peak = round(draw.uniform(0.99 * min(peaks), max(peaks)))
        budget = Budget(flash=flash, ram=peak)
        allowed = [
            harm for need, harm in every.values() if need.flash <= flash and need.peak <= peak
        ]
        chosen = mixer.choose(budget, tmp_path / "mixed")
        infeasible += not allowed
        assert (chosen is None) == (not allowed), budget
        if chosen is not None:
            need, harm = every[chosen.places]
            assert need.flash <= flash
            assert need.peak <= peak
            # Alignment to pages may hide a choice that is a little better.
            assert harm <= 1.5 * min(allowed) + 1e-12
    assert 0 < infeasible < BUDGETS


def test_the_least_of_each_limit_is_that_of_all_mixtures(mixer: Mixer, tmp_path: Path) -> None:
    needs = []
    for places in product(*(range(len(layer)) for layer in mixer.layers)):
        chosen = tuple(layer[at].choice for layer, at in zip(mixer.layers, places, strict=True))
        plan = Plan(name=MIXED, choices=chosen)
        needs.append(cost(apply_plan(mixer.model, plan, directory=tmp_path / "one")))
    flash = mixer.least("flash", Budget(), tmp_path / "least")
    ram = mixer.least("ram", Budget(), tmp_path / "least")
    assert flash == min(each.flash for each in needs)
    assert ram == min(each.peak for each in needs)
