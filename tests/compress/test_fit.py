from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.artifact import Footprint, Method, Model, Recipe
from edgeopt.budget import Budget
from edgeopt.compress import (
    Cost,
    Fit,
    Infeasible,
    Search,
    Sensitivity,
    Stopped,
    fit_plan,
    replay_plan,
)
from edgeopt.errors import ConfigError
from edgeopt.model.oracle import run_samples, seeded_inputs
from edgeopt.task import Arrays
from tests.graphs import image_model, text_model

METHODS: tuple[Method, ...] = ("float32", "float16", "int8-weights", "int8-static")


def costs(*peaks: int) -> Callable[[Model], Footprint]:
    """Answer with these peaks, one after the other; flash is half of each."""
    waiting = list(peaks)

    def cost(model: Model) -> Footprint:
        peak = waiting.pop(0)
        return Footprint(flash=peak // 2, weights=0, weights_resident=peak, arena=0, runtime=0)

    return cost


@pytest.fixture
def task(tmp_path: Path) -> Arrays:
    """Random images whose label is what the model itself answers, but for one in twenty."""
    model = image_model(tmp_path)
    tints = np.random.default_rng(1).normal(0, 3, (60, 1, 3, 1, 1)).astype(np.float32)
    pixels = tints + np.stack([seeded_inputs(model, seed)["pixels"] for seed in range(60)])
    labels = run_samples(model, {"pixels": pixels})[0].reshape(60, -1).argmax(axis=1)
    assert len(set(labels.tolist())) > 2
    labels[::20] = (labels[::20] + 1) % 10
    np.savez(tmp_path / "train.npz", pixels=pixels[:20])
    np.savez(tmp_path / "test.npz", pixels=pixels, labels=labels)
    return Arrays(kind="arrays", train=tmp_path / "train.npz", test=tmp_path / "test.npz")


def fit(
    folder: Path,
    budget: Budget,
    cost: Callable[[Model], Footprint],
    task: Arrays | None = None,
    methods: tuple[Method, ...] = METHODS,
) -> Fit:
    model = image_model(folder)
    return fit_plan(model, methods, budget, task, cost=Cost(cost), directory=folder / "fit")


def test_without_limits_the_least_harm_is_chosen(tmp_path: Path, task: Arrays) -> None:
    found = fit(tmp_path, Budget(), costs(100), task)
    assert found.plan.name == "float32"
    assert found.baseline == pytest.approx(0.95)
    assert found.chosen.drop == 0.0
    assert len(found.candidates) == 1


def test_the_first_plan_under_the_limit_is_chosen_and_no_further_one_tried(
    tmp_path: Path, task: Arrays
) -> None:
    found = fit(tmp_path, Budget(ram=60), costs(100, 60), task)
    assert [each.plan.name for each in found.candidates] == ["float32", "float16"]
    assert [each.harm for each in found.candidates] == [0, 1]
    assert found.plan.name == "float16"
    assert [each.name for each in found.candidates[0].broken] == ["ram"]
    assert not found.candidates[1].broken
    assert found.model.path.is_file()


def test_without_a_task_accuracy_is_not_known_and_refuses_nothing(tmp_path: Path) -> None:
    found = fit(tmp_path, Budget(accuracy_drop=0.0), costs(1))
    assert found.baseline is None
    assert found.chosen.accuracy is None
    assert found.chosen.drop is None


def test_a_plan_that_loses_too_much_is_passed_over(tmp_path: Path, task: Arrays) -> None:
    pixels = np.load(task.train)["pixels"]
    # Ranges of zeros make int8-static as good as blind.
    np.savez(task.train, pixels=np.zeros_like(pixels))
    with pytest.raises(Infeasible) as caught:
        fit(tmp_path, Budget(accuracy_drop=0.1), costs(9), task, methods=("int8-static",))
    (candidate,) = caught.value.candidates
    assert candidate.drop is not None
    assert candidate.drop > 0.1
    assert [each.name for each in candidate.broken] == ["accuracy drop"]
    assert "--max-drop" in caught.value.fix


def test_an_infeasible_budget_names_limit_best_and_smallest_relaxation(tmp_path: Path) -> None:
    with pytest.raises(Infeasible) as caught:
        fit(tmp_path, Budget(ram=20_000_000), costs(95_000_000, 52_000_001, 27_100_000, 30_000_000))
    error = caught.value
    assert error.exit_code == 3
    assert "ram binds" in error.what
    assert "int8-weights, needs 27.1 MB of ram, allowed is 20 MB" in error.why
    assert "is --ram 28MB" in error.fix
    assert len(error.candidates) == 3


def test_the_relaxation_named_is_enough(tmp_path: Path) -> None:
    costing = (95_000_000, 52_000_001, 27_100_000, 30_000_000)
    found = fit(tmp_path, Budget(ram=28_000_000), costs(*costing))
    assert found.plan.name == "int8-weights"


def test_every_broken_limit_of_the_best_plan_is_relaxed(tmp_path: Path) -> None:
    with pytest.raises(Infeasible) as caught:
        fit(tmp_path, Budget(ram=100, flash=90), costs(400, 300, 250, 200))
    assert "is --flash 1kB --ram 1kB" in caught.value.fix


def test_a_budget_of_zero_is_infeasible_and_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(Infeasible):
        fit(tmp_path, Budget(ram=0), costs(4, 3, 2, 1))


def test_fitting_twice_decides_the_same_to_the_byte(tmp_path: Path, task: Arrays) -> None:
    found = [
        fit_plan(
            image_model(tmp_path),
            ("int8-static",),
            Budget(),
            task,
            cost=Cost(costs(1)),
            directory=tmp_path / name,
        )
        for name in ("one", "two")
    ]
    assert found[0].plan == found[1].plan
    assert found[0].model.sha256 == found[1].model.sha256
    assert Fit.model_validate_json(found[0].model_dump_json()) == found[0]


def test_without_a_task_what_needs_samples_is_left_out_and_offered(tmp_path: Path) -> None:
    with pytest.raises(Infeasible) as caught:
        fit(tmp_path, Budget(ram=1), costs(9, 8, 7))
    assert [each.plan.name for each in caught.value.candidates] == list(METHODS[:3])
    assert "add a [task]: int8-static needs samples" in caught.value.fix
    with pytest.raises(ConfigError, match="no calibration samples"):
        fit(tmp_path, Budget(), costs(1), methods=("int8-static",))


def fit_in_time(folder: Path, limit: float, times: tuple[float, ...]) -> Fit:
    waiting = list(times)
    return fit_plan(
        image_model(folder),
        ("float32", "float16", "int8-weights"),
        Budget(latency=limit),
        None,
        cost=Cost(costs(*[1] * len(times)), lambda _: waiting.pop(0)),
        directory=folder / "fit",
    )


def test_a_plan_that_is_predicted_to_be_too_slow_is_passed_over(tmp_path: Path) -> None:
    found = fit_in_time(tmp_path, 20.0, (30.0, 20.0))
    assert found.plan.name == "float16"
    assert [each.latency for each in found.candidates] == [30.0, 20.0]
    assert [each.name for each in found.candidates[0].broken] == ["latency"]


def test_where_every_plan_is_too_slow_the_fastest_says_what_would_be_enough(
    tmp_path: Path,
) -> None:
    with pytest.raises(Infeasible, match="the limit on latency binds") as caught:
        fit_in_time(tmp_path, 10.0, (30.0, 20.01, 25.0))
    assert "float16, needs 20 ms of latency" in caught.value.why
    assert "--latency 20.1ms" in caught.value.fix


def test_a_search_that_is_stopped_gives_the_best_plan_that_was_verified(
    tmp_path: Path, task: Arrays
) -> None:
    def stop() -> Sensitivity:
        raise KeyboardInterrupt

    def answer(methods: tuple[Method, ...], budget: Budget, *peaks: int) -> None:
        fit_plan(
            image_model(tmp_path),
            methods,
            budget,
            task,
            cost=Cost(costs(*peaks)),
            directory=tmp_path / "fit",
            search=Search(stop),
            # Drops count from here: the plan loses, and a mixture would be looked for.
            baseline=1.0,
        )

    with pytest.raises(Stopped, match="float16 is the best plan") as caught:
        answer(("float32", "float16"), Budget(ram=80), 100, 80)
    assert caught.value.exit_code == 130
    assert not caught.value.fit.finished
    assert caught.value.fit.model.path.is_file()
    assert not caught.value.fit.chosen.broken
    # Without one, there is nothing to give.
    with pytest.raises(KeyboardInterrupt):
        answer(("float32", "float16"), Budget(ram=10), 100, 80)


@pytest.mark.parametrize(("method", "searched"), [("float16", False), ("int4-blocks", True)])
def test_a_whole_plan_that_moves_the_outputs_is_compared_with_mixtures(
    tmp_path: Path, method: Method, searched: bool
) -> None:
    def stop() -> Sensitivity:
        raise KeyboardInterrupt

    def answer() -> Fit:
        return fit_plan(
            text_model(tmp_path),
            ("float32", method),
            Budget(ram=80),
            None,
            cost=Cost(costs(100, 80)),
            directory=tmp_path / "fit",
            search=Search(stop),
        )

    if searched:
        with pytest.raises(Stopped, match=f"{method} is the best plan"):
            answer()
    else:
        assert answer().plan.name == method


def test_what_is_refused_for_its_bytes_is_never_made(tmp_path: Path) -> None:
    found = fit(tmp_path, Budget(ram=27), costs(100, 60, 27))
    assert found.plan.name == "int8-weights"
    assert not (tmp_path / "fit" / "float16" / "compressed.onnx").exists()


def test_a_recipe_is_part_of_what_is_chosen_and_made_again(tmp_path: Path, task: Arrays) -> None:
    model, recipe = image_model(tmp_path), Recipe(ranges="mse", equalize=True, correct_bias=True)
    plain, cooked = (
        fit_plan(
            model,
            ("int8-static",),
            Budget(),
            task,
            cost=Cost(costs(100, 100)),
            directory=tmp_path / name,
            search=Search(recipe=each),
        )
        for name, each in (("plain", Recipe()), ("cooked", recipe))
    )
    assert cooked.plan.recipe == recipe
    assert cooked.model.sha256 != plain.model.sha256
    again = replay_plan(
        model, cooked.plan, task, cost=Cost(costs(100, 100)), directory=tmp_path / "again"
    )
    assert again.model.sha256 == cooked.model.sha256
    # Without samples only what needs none is done.
    bare = fit_plan(
        model,
        ("int8-weights",),
        Budget(),
        None,
        cost=Cost(costs(100, 100)),
        directory=tmp_path / "bare",
        search=Search(recipe=recipe),
    )
    assert bare.plan.recipe == Recipe(ranges="mse", equalize=True)
