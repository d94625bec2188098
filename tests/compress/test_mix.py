from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import MIXED, Choice, Footprint, Method, Model, Plan
from edgeopt.budget import Budget
from edgeopt.compress import Cost, fit_plan, make_plan, predict_footprint
from edgeopt.compress.choices import possible_choices
from edgeopt.compress.distance import measure_distance, measure_harm
from edgeopt.compress.forecast import Timer
from edgeopt.compress.hollow import hollow_model
from edgeopt.compress.mix import Mixer
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.sensitivity import Option, Sensitivity, draw_calibration, measure_sensitivity
from edgeopt.model.oracle import run_samples
from edgeopt.target import Target, load_target
from edgeopt.task import Arrays
from tests.graphs import describe, normal, save_graph, text_model

METHODS: tuple[Method, ...] = (
    "float32",
    "float16",
    "int8-rows",
    "int8-weights",
    "int4-blocks",
    "int2-blocks",
)
PROGRAM = 1_000_000


@pytest.fixture
def target() -> Target:
    return load_target("rpi4")


def cost(target: Target, model: Model) -> Footprint:
    return predict_footprint(model, target, runtime=3_000_000, program=PROGRAM)


def measured(model: Model, folder: Path) -> Sensitivity:
    calibration = draw_calibration(model, None)
    choices = mixable_choices(model, METHODS, reconstruct=False)
    return measure_sensitivity(model, choices, calibration, directory=folder)


def options(sensitivity: Sensitivity) -> Mapping[str, list[Option]]:
    return {layer[0].choice.weight: list(layer) for layer in sensitivity.layers}


def test_harm_is_that_of_the_plan_which_changes_one_weight_only(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    sensitivity = measured(model, tmp_path / "harm")
    calibration = draw_calibration(model, None)
    expected = run_samples(model, calibration.judged.samples)
    for layer in options(sensitivity).values():
        assert layer[0].choice.method == "float32"
        assert layer[0].harm == 0.0
        for option in layer[1:]:
            plan = _plan(option.choice)
            made = apply_plan(model, plan, directory=tmp_path / "one")
            found = run_samples(made, calibration.judged.samples)
            distance = measure_distance(found, expected, classes=False)
            assert option.harm == pytest.approx(distance, rel=0.02, abs=1e-13)
            assert option.harm > 0


def _plan(choice: Choice) -> Plan:
    return Plan(name="one", choices=(choice,))


def test_fewer_bits_harm_more_and_take_less(tmp_path: Path) -> None:
    for layer in options(measured(text_model(tmp_path), tmp_path / "harm")).values():
        by_method = {each.choice.method: each for each in layer if each.choice.block in (None, 32)}
        four, two = by_method.get("int4-blocks"), by_method.get("int2-blocks")
        if four is None or two is None:
            continue
        assert by_method["float16"].harm < four.harm < two.harm
        assert by_method["float16"].size > four.size > two.size


def test_nothing_is_left_behind_by_measuring(tmp_path: Path) -> None:
    measured(text_model(tmp_path), tmp_path / "harm")
    assert not list((tmp_path / "harm").iterdir())


def test_a_mixture_meets_its_limits_and_harms_less_than_a_method_of_the_same_size(
    tmp_path: Path, target: Target
) -> None:
    model = text_model(tmp_path)
    mixer = Mixer(
        model,
        measured(model, tmp_path / "harm"),
        lambda made: cost(target, made),
        samples=None,
        plain=True,
    )
    whole = fit_plan(
        model,
        ("int4-blocks",),
        Budget(),
        None,
        cost=Cost(lambda made: cost(target, made)),
        directory=tmp_path / "whole",
    )
    limit = whole.chosen.footprint.flash
    mixture = mixer.mix(Budget(flash=limit), tmp_path / "mixed")
    assert mixture is not None
    assert mixture.plan.name == MIXED
    assert mixture.footprint.flash <= limit
    calibration = draw_calibration(model, None)
    expected = run_samples(model, calibration.judged.samples)
    harms = [
        measure_distance(run_samples(each, calibration.judged.samples), expected, classes=False)
        for each in (mixture.model, whole.model)
    ]
    assert harms[0] <= harms[1] * 1.001
    assert sum(each.after for each in mixture.entries) < sum(
        each.before for each in mixture.entries
    )


def test_without_a_limit_nothing_is_changed(tmp_path: Path, target: Target) -> None:
    model = text_model(tmp_path)
    sensitivity = measured(model, tmp_path / "harm")
    mixer = Mixer(model, sensitivity, lambda made: cost(target, made), samples=None, plain=True)
    mixture = mixer.mix(Budget(), tmp_path / "mixed")
    assert mixture is not None
    assert mixture.model.sha256 == model.sha256


def test_below_the_smallest_mixture_no_limit_can_be_met(tmp_path: Path, target: Target) -> None:
    model = text_model(tmp_path)
    sensitivity = measured(model, tmp_path / "harm")
    mixer = Mixer(model, sensitivity, lambda made: cost(target, made), samples=None, plain=True)
    least = mixer.smallest(tmp_path / "least").footprint.flash
    assert mixer.mix(Budget(flash=least - 1), tmp_path / "mixed") is None
    assert mixer.mix(Budget(flash=least), tmp_path / "mixed") is not None


def test_filters_that_grow_as_they_came_are_weighed_as_they_are_pushed(
    tmp_path: Path, target: Target
) -> None:
    text = """
    agraph (float[1,16,14,14] x) => (float[1,4] y) {
        image = Conv<pads=[1,1,1,1]>(x, filters)
        flat = Flatten(image)
        y = MatMul(flat, head)
    }"""
    stored = {"filters": normal(0, 32, 16, 3, 3), "head": normal(1, 32 * 14 * 14, 4)}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    sensitivity = measured(model, tmp_path / "harm")
    mixer = Mixer(model, sensitivity, lambda made: cost(target, made), samples=None, plain=True)
    before = cost(target, model)
    # float32 filters take 74 kB, as codes at most 9 kB; float16 spares the head 50 kB.
    chosen = mixer.choose(Budget(flash=before.flash - 64_000), tmp_path / "mixed")
    assert chosen is not None
    (limit,) = chosen.limits
    for place in range(len(mixer.layers[0])):
        places = (place, *chosen.places[1:])
        made = mixer.make(places, tmp_path / "made")
        spent = made.footprint.flash - before.flash
        assert limit.spent(places) == pytest.approx(spent, abs=128)
    # All is met by what harms less: 16 bits for the filters, nothing for the head.
    kept = {each.weight: each.method for each in mixer.make(chosen.places, tmp_path).plan.choices}
    assert kept["head"] == "float32"
    assert kept["filters"] != "float32"


def test_divergence_of_classes_is_zero_for_equal_scores_and_grows_with_their_distance() -> None:
    random = np.random.default_rng(0)
    scores = random.standard_normal((16, 1, 6)).astype(np.float32)
    near, far = scores + np.float32(0.01) * scores, scores + scores
    distances = [measure_distance([each], [scores], classes=True) for each in (scores, near, far)]
    assert distances[0] == 0.0
    assert 0 < distances[1] < distances[2]
    # Probabilities do not change when the same number is added to all scores.
    assert measure_distance([scores + 3], [scores], classes=True) == pytest.approx(0, abs=1e-6)


def test_nothing_is_fitted_to_the_samples_that_harm_is_measured_on(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    for count, fitted in ((1000, 808), (40, 10), (1, 1)):
        ids = np.arange(count * 8).reshape(count, 1, 8)
        np.savez(tmp_path / "train.npz", input_ids=ids, attention_mask=np.ones_like(ids))
        task = Arrays(kind="arrays", train=tmp_path / "train.npz")
        drawn = draw_calibration(model, task)
        assert drawn.fitted is not None
        parts = [
            set(each["input_ids"].reshape(-1).tolist())
            for each in (drawn.judged.samples, drawn.fitted, drawn.held)
        ]
        assert len(parts[1]) == 8 * fitted
        if count > 1:
            assert all(parts)
            assert sum(map(len, parts)) == len(set().union(*parts))


def test_harms_of_layers_that_know_nothing_of_each_other_add_up() -> None:
    random = np.random.default_rng(0)
    # A model that is sure of its answers, and two errors of its scores.
    scores = np.eye(6)[random.integers(0, 6, 400)] * 8 + 0.5 * random.standard_normal((400, 6))
    errors = 1.5 * random.standard_normal((2, 400, 6))

    def both(measure: Callable[..., float]) -> tuple[float, float]:
        apart = [measure([scores + each], [scores], classes=True) for each in errors]
        return sum(apart), measure([scores + errors.sum(axis=0)], [scores], classes=True)

    apart, together = both(measure_harm)
    assert together == pytest.approx(apart, rel=0.05)
    # Of the divergence there is more together than apart.
    apart, together = both(measure_distance)
    assert together > 1.5 * apart


def test_harm_is_the_squared_error_of_scores_whatever_is_added_to_all() -> None:
    scores = np.random.default_rng(0).standard_normal((16, 1, 6)).astype(np.float32)
    middle = scores.mean(axis=-1, keepdims=True)
    moved = 1.1 * (scores - middle) + 5
    assert measure_harm([moved], [scores], classes=True) == pytest.approx(0.01, rel=1e-3)
    assert measure_harm([scores + 3], [scores], classes=True) == pytest.approx(0, abs=1e-10)
    zeros, one = np.zeros((4, 6)), np.eye(4, 6)
    assert measure_harm([zeros + 2 * one], [one], classes=False) == pytest.approx(1)


def test_what_a_choice_needs_is_predicted_without_its_values(
    tmp_path: Path, target: Target
) -> None:
    model = text_model(tmp_path, vocabulary=9000)
    seen: list[tuple[Model, Footprint]] = []

    def watched(made: Model) -> Footprint:
        seen.append((made, cost(target, made)))
        return seen[-1][1]

    sensitivity = measured(model, tmp_path / "harm")
    mixer = Mixer(model, sensitivity, watched, samples=None, plain=True)
    whole, least = cost(target, model).flash, mixer.smallest(tmp_path / "least").footprint.flash
    for share in (0.5, 0.2, 0.05):
        limit = least + int(share * (whole - least))
        mixture = mixer.mix(Budget(flash=limit), tmp_path / f"{share}")
        assert mixture is not None
        # The last prediction was of this plan on zeros; its own model needs the same.
        assert seen[-2][1] == seen[-1][1] == mixture.footprint


def test_what_forms_make_of_weights_without_values_has_none_and_needs_the_same(
    tmp_path: Path, target: Target
) -> None:
    model = text_model(tmp_path, vocabulary=9000)
    every = possible_choices(model)
    hollow = hollow_model(model, list(every), tmp_path / "hollow")
    assert hollow.path.stat().st_size < 10_000
    for choice in (each for given in every.values() for each in given):
        # Ranges need samples; and without a zero among the codes, zeros have a scale of their own.
        if choice.method in ("int8-static", "binary-blocks"):
            continue
        plan = _plan(choice)
        made, whole = (
            apply_plan(each, plan, directory=tmp_path / name)
            for each, name in ((hollow, "made"), (model, "whole"))
        )
        assert made.path.stat().st_size < 20_000
        assert cost(target, made) == cost(target, whole)


def timer_of(model: Model, *, slow: float) -> Timer:
    """Predict 1 ms for each weight as it came, and so many for one in a form of fewer bits."""

    def parts(made: Model, names: Sequence[str]) -> Mapping[str, float]:
        stored = {each.name for each in onnx.load(made.path).graph.initializer}
        return {name: 1.0 if name in stored else slow for name in names}

    names = [each.weight for each in make_plan(model, "float32", directory=model.path).choices]
    return Timer(lambda made: sum(parts(made, names).values()), parts)


@pytest.mark.parametrize("depth", [48, 96])
def test_no_plan_made_from_a_name_takes_fewer_bytes_than_a_mixture(
    tmp_path: Path, target: Target, depth: int
) -> None:
    text = f"agraph (float[2,{depth}] x) => (float[2,64] y) {{ y = MatMul(x, w) }}"
    stored = {"w": normal(1, depth, 64)}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    choices = mixable_choices(model, ("float32", "int8-weights", "int4-blocks"), reconstruct=False)
    sensitivity = measure_sensitivity(
        model, choices, draw_calibration(model, None), directory=tmp_path / "harm"
    )
    mixer = Mixer(model, sensitivity, partial(cost, target), samples=None, plain=True)
    plan = make_plan(model, "int4-blocks", directory=tmp_path)
    uniform = cost(target, apply_plan(model, plan, directory=tmp_path / "uniform"))
    least = mixer.least("flash", Budget(), tmp_path / "least")
    assert least is not None
    assert least <= uniform.flash


def test_a_limit_on_latency_is_one_of_the_program(tmp_path: Path, target: Target) -> None:
    model = text_model(tmp_path)
    sensitivity = measured(model, tmp_path / "harm")

    def mixer(timer: Timer | None) -> Mixer:
        predict = partial(cost, target)
        return Mixer(model, sensitivity, predict, samples=None, plain=True, timer=timer)

    count = len(sensitivity.layers)
    fast = mixer(timer_of(model, slow=0.5))
    limit = count - 1.0
    found = fast.mix(Budget(latency=limit), tmp_path / "mixed")
    assert found is not None
    # Two weights in a faster form are enough, and those harm least.
    assert sum(each.method != "float32" for each in found.plan.choices) == 2
    assert fast.least("latency", Budget(), tmp_path / "least") == count * 0.5
    assert fast.mix(Budget(latency=count * 0.5 - 0.1), tmp_path / "mixed") is None
    # Nothing is known of times: they refuse nothing.
    unknown = mixer(None).mix(Budget(latency=0.1), tmp_path / "mixed")
    assert unknown is not None
    assert unknown.model.sha256 == model.sha256


def test_bytes_and_time_are_met_together_or_not_at_all(tmp_path: Path, target: Target) -> None:
    model = text_model(tmp_path)
    sensitivity = measured(model, tmp_path / "harm")
    timer = timer_of(model, slow=2.0)
    predict = partial(cost, target)
    mixer = Mixer(model, sensitivity, predict, samples=None, plain=True, timer=timer)
    count = len(sensitivity.layers)
    small = mixer.mix(Budget(flash=cost(target, model).flash - 1), tmp_path / "mixed")
    assert small is not None
    changed = sum(each.method != "float32" for each in small.plan.choices)
    assert changed == 1
    limit = small.footprint.flash
    both = mixer.mix(Budget(flash=limit, latency=count + 1.0), tmp_path / "both")
    assert both is not None
    assert both.plan.choices == small.plan.choices
    assert mixer.mix(Budget(flash=limit, latency=count + 0.5), tmp_path / "none") is None


def test_the_least_that_is_reachable_is_reached_to_the_byte(tmp_path: Path, target: Target) -> None:
    # More choices that exceed the limit by little than are ruled out one by one, and a last tensor
    # that does not fill its place in the file.
    count, width, last = 24, 33, 48
    nodes = " ".join(f"h{at + 1} = Conv(h{at}, w{at})" for at in range(count))
    text = f"g (float[1,{width},2,2] h0) => (float[1,{last},2,2] h{count}) {{ {nodes} }}"
    stored = {f"w{at}": normal(at, width, width, 1, 1) / 6 for at in range(count - 1)}
    stored[f"w{count - 1}"] = normal(count, last, width, 1, 1) / 6
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    calibration = draw_calibration(model, None)
    choices = mixable_choices(model, ("float32", "float16", "int8-weights"), reconstruct=False)
    sensitivity = measure_sensitivity(model, choices, calibration, directory=tmp_path / "harm")
    mixer = Mixer(model, sensitivity, partial(cost, target), samples=None, plain=True)
    plan = make_plan(model, "int8-weights", directory=tmp_path)
    uniform = cost(target, apply_plan(model, plan, directory=tmp_path / "uniform"))
    found = mixer.mix(Budget(flash=uniform.flash), tmp_path / "mixed")
    assert found is not None
    assert found.footprint.flash <= uniform.flash
