"""Forms that are slower than float32 on the device: refused where bytes leave room."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from edgeopt.artifact import Footprint, Model
from edgeopt.budget import Budget
from edgeopt.compress import Cost, Fit, fit_plan, make_plan
from tests.graphs import image_model


def fit_by_form(folder: Path, budget: Budget, slow: dict[str, float]) -> Fit:
    """Fit int8-weights; each weight takes 1 ms as it came, or what slow says, and 4 or 1 kB."""
    model = image_model(folder)
    names = [each.weight for each in make_plan(model, "float32", directory=folder).choices]

    def stored(made: Model) -> set[str]:
        return {each.name for each in onnx.load(made.path).graph.initializer}

    def parts(made: Model, wanted: Sequence[str]) -> dict[str, float]:
        return {name: 1.0 if name in stored(made) else slow.get(name, 1.0) for name in wanted}

    def cost(made: Model) -> Footprint:
        size = sum(4000 if name in stored(made) else 1000 for name in names)
        return Footprint(flash=size, weights=0, weights_resident=size, arena=0, runtime=0)

    return fit_plan(
        model,
        ("int8-weights",),
        budget,
        None,
        cost=Cost(cost, lambda made: sum(parts(made, names).values()), parts),
        directory=folder / "fit",
    )


def test_a_form_that_is_slower_is_refused_unless_bytes_demand_it(tmp_path: Path) -> None:
    first, second, *_ = found = [
        each.weight for each in make_plan(image_model(tmp_path), "int8-weights",
                                          directory=tmp_path).choices
        if each.method != "float32"
    ]  # fmt: skip
    slow = {first: 1.5, second: 3.0}
    free = fit_by_form(tmp_path, Budget(), slow)
    kept = {each.weight for each in free.plan.choices if each.method == "float32"}
    assert {first, second} <= kept
    assert set(found) - kept == set(found) - {first, second}
    assert free.slower == {first: 0.5, second: 2.0}
    # Room for one alone: that one which loses most.
    least = fit_by_form(tmp_path, Budget(), {}).chosen.footprint.flash
    tight = fit_by_form(tmp_path, Budget(flash=least + 3000), slow)
    assert tight.slower == {second: 2.0}
    assert tight.chosen.footprint.flash == least + 3000
    assert fit_by_form(tmp_path, Budget(flash=least), slow).slower == {}
    # What takes the same time stays as the method says.
    assert fit_by_form(tmp_path, Budget(), {first: 1.01}).slower == {}
