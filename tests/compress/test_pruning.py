"""The prune stage: which cuts are chosen for a share of the arithmetic."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.cuts import groups_by_name
from edgeopt.compress.flops import count_flops, find_products
from edgeopt.compress.groups import open_network
from edgeopt.compress.ladder import Ladders, Step, choose_cuts, levels_of
from edgeopt.compress.pruning import measure_units, prune_model
from edgeopt.errors import ConfigError, ModelError
from edgeopt.model.oracle import run_samples
from edgeopt.task import Arrays
from tests.compress.test_refit import deep, distance, draw
from tests.graphs import describe, normal, save_graph


def task_of(folder: Path, model: Model) -> Arrays:
    np.savez(folder / "train.npz", **draw(model, 300, 0))  # type: ignore[arg-type]
    return Arrays(kind="arrays", train=folder / "train.npz")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_share_of_the_arithmetic_goes_and_little_of_the_outputs(
    tmp_path: Path, share: float
) -> None:
    model = deep(tmp_path)
    task = task_of(tmp_path, model)
    ladders = measure_units(model, task)
    pruned = prune_model(model, task, ladders, share=share, directory=tmp_path / "out")
    facts, made = pruned.pruning, onnx.load(pruned.model.path)
    assert facts.flops_after <= (1 - share) * facts.flops_before
    assert count_flops(find_products(open_network(made), []), {}) == facts.flops_after
    assert facts.bytes_after < facts.bytes_before
    others = draw(model, 40, 5)
    error = distance(model, pruned.model, others)
    assert error < {0.2: 0.03, 0.5: 0.1, 0.8: 0.6}[share]
    # The same number of units, the first ones of each group, with the weights as they were.
    first = [
        each.cut.model_copy(update={"kept": tuple(range(len(each.cut.kept))), "refit": False})
        for each in facts.entries
    ]
    blind = apply_plan(
        model, Plan(name="x", choices=(), cuts=tuple(first)), directory=tmp_path / "blind"
    )
    assert error < 0.6 * distance(model, blind, others)
    assert pruned.model.inputs == model.inputs
    assert run_samples(pruned.model, others)[0].shape == (40, 4, 8)
    assert {each.cut.group for each in facts.entries} <= {"one", "two"}
    for entry in facts.entries:
        assert entry.after < entry.before
        assert len(entry.cut.kept) < entry.units
        assert entry.harm


def test_harm_chooses_and_not_chance(tmp_path: Path) -> None:
    model = deep(tmp_path)
    task = task_of(tmp_path, model)
    ladders = measure_units(model, task)
    upside_down = Ladders(
        steps={
            name: tuple(
                each.model_copy(
                    update={"kept": tuple(sorted({*range(48)} - {*each.kept}))[: len(each.kept)]}
                )
                if 24 >= len(each.kept) > 0
                else each
                for each in steps
            )
            for name, steps in ladders.steps.items()
        }
    )
    errors = [
        distance(
            model,
            prune_model(model, task, each, share=0.6, directory=tmp_path / "out").model,
            draw(model, 40, 5),
        )
        for each in (ladders, upside_down)
    ]
    assert errors[0] < errors[1]


def test_the_steps_chosen_are_near_the_best_of_all(tmp_path: Path) -> None:
    model = deep(tmp_path)
    loaded = onnx.load(model.path)
    groups = groups_by_name(loaded)
    random = np.random.default_rng(0)
    steps = {}
    for name, group in groups.items():
        levels = levels_of(group)
        harms = np.cumsum([0.0, *random.exponential(size=len(levels) - 1)])
        steps[name] = tuple(
            Step(kept=tuple(range(level)), harm=harm)
            for level, harm in zip(levels, harms, strict=True)
        )
    products = find_products(open_network(loaded), list(groups.values()))
    most = 0.5 * count_flops(products, {})
    best = min(
        sum(each.harm for each in chosen)
        for chosen in itertools.product(*steps.values())
        if count_flops(products, {n: 48 - len(s.kept) for n, s in zip(steps, chosen, strict=True)})
        <= most
    )
    found = choose_cuts(model, Ladders(steps=steps), share=0.5)
    removed = {each.group: 48 - len(each.kept) for each in found.cuts}
    assert count_flops(products, removed) <= most
    assert best <= sum(found.harms) <= 1.5 * best


def test_more_than_can_be_cut_is_refused_with_what_can(tmp_path: Path) -> None:
    model = deep(tmp_path)
    ladders = measure_units(model, task_of(tmp_path, model))
    with pytest.raises(ConfigError, match="cannot be pruned") as caught:
        choose_cuts(model, ladders, share=0.99)
    share = float(caught.value.fix.rpartition(" ")[2].rstrip("%")) / 100
    assert choose_cuts(model, ladders, share=share).cuts


def test_a_model_without_units_and_one_without_a_task_are_refused(tmp_path: Path) -> None:
    text = "g (float[4,8] x) => (float[4,8] y) { y = MatMul(x, w) }"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 8, 8)}))
    with pytest.raises(ModelError, match="cannot be pruned"):
        measure_units(model, task_of(tmp_path, model))
    with pytest.raises(ConfigError, match="needs a task"):
        measure_units(model, None)
