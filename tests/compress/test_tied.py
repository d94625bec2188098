"""One stored tensor for several layers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.budget import Budget
from edgeopt.compress import apply_plan, predict_footprint
from edgeopt.compress.distance import measure_harm
from edgeopt.compress.forecast import Timer
from edgeopt.compress.mix import Mixer
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.repair import repair_choice
from edgeopt.compress.sensitivity import draw_calibration, measure_sensitivity
from edgeopt.compress.tied import near_ties, nearest_pairs
from edgeopt.errors import ConfigError
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import run_samples
from edgeopt.target import load_target
from tests.compress.test_plan import draw
from tests.graphs import describe, normal, save_graph


def stacked(folder: Path) -> Model:
    text = """
    g (float[4,32] x) => (float[4,32] y) {
        a = MatMul(x, one)
        b = Relu(a)
        c = MatMul(b, two)
        d = Relu(c)
        y = MatMul(d, three)
    }"""
    one = normal(0, 32, 32)
    stored = {"one": one, "two": normal(1, 32, 32), "three": one + 0.1 * normal(2, 32, 32)}
    return describe(save_graph(folder / "stacked.onnx", text, stored))


def tied(*pairs: tuple[str, str], form: Choice | None = None) -> Plan:
    choices = [Choice(weight=name, method="float32", like=like) for name, like in pairs]
    return Plan(name="tied", choices=(*choices, *([form] if form else [])))


def test_pairs_are_listed_the_nearest_first(tmp_path: Path) -> None:
    found = nearest_pairs(onnx.load(stacked(tmp_path).path), ["one", "two", "three"])
    assert [each[:2] for each in found] == [("three", "one"), ("two", "one")]
    assert found[0][2] == pytest.approx(0.01, rel=0.3)
    assert found[1][2] == pytest.approx(2, rel=0.2)


def test_only_what_is_much_alike_is_tied_and_never_to_what_is_tied_itself(tmp_path: Path) -> None:
    one, noise = normal(0, 32, 32), normal(1, 32, 32)
    text = """
    g (float[4,32] x) => (float[4,32] y) {
        a = MatMul(x, one)
        b = MatMul(a, far)
        c = MatMul(b, near)
        y = MatMul(c, nearer)
    }"""
    # What is nearer is nearest to near, and near to one: both read one in the end, or only near.
    stored = {"one": one, "far": noise, "near": one + 0.2 * noise, "nearer": one + 0.25 * noise}
    loaded = onnx.load(save_graph(tmp_path / "near.onnx", text, stored))
    found = near_ties(loaded, list(stored))
    assert [(each.weight, each.like) for each in found] == [("nearer", "near")]
    assert near_ties(loaded, ["one", "far"]) == ()


def test_a_mixture_ties_what_harms_less_than_fewer_bits(tmp_path: Path) -> None:
    model = stacked(tmp_path)
    calibration = draw_calibration(model, None)
    choices = mixable_choices(model, ("float32", "int4-blocks"), reconstruct=False)
    found = measure_sensitivity(model, choices, calibration, directory=tmp_path / "harm")
    (tie,) = (each for layer in found.layers for each in layer if each.choice.like)
    assert (tie.choice.weight, tie.choice.like, tie.size) == ("three", "one", 0)
    made = apply_plan(model, tied(("three", "one")), directory=tmp_path / "alone")
    feeds = calibration.judged.samples
    moved = measure_harm(run_samples(made, feeds), run_samples(model, feeds), classes=False)
    assert tie.harm == pytest.approx(moved, rel=1e-3)

    target = load_target("rpi4")
    timer = Timer(lambda _: 1.0, lambda _, names: dict.fromkeys(names, 1.0))
    mixer = Mixer(
        model,
        found,
        lambda each: predict_footprint(each, target, runtime=0, program=0),
        samples=None,
        plain=True,
        timer=timer,
    )
    whole = mixer.cost(model).flash
    budget = Budget(flash=whole - 4000, latency=1.0)
    selection = mixer.choose(budget, tmp_path / "mixed")
    assert selection is not None
    mixture = mixer.make(selection.places, tmp_path / "mixed")
    assert [(each.weight, each.like) for each in mixture.plan.choices if each.like] == [
        ("three", "one")
    ]
    # To the byte: the file has no tensor of that name any more.
    assert mixture.footprint.flash == mixer.cost(made).flash <= whole - 4000
    repaired = repair_choice(mixer, selection, calibration, tries=4, directory=tmp_path / "repair")
    assert repaired == selection.places


@pytest.mark.parametrize("coded", [False, True])
def test_a_tied_layer_computes_with_the_other_ones_weight(tmp_path: Path, coded: bool) -> None:
    model = stacked(tmp_path)
    form = Choice(weight="one", method="int8-weights") if coded else None
    made = apply_plan(model, tied(("three", "one"), form=form), directory=tmp_path / "out")
    loaded = onnx.load(made.path)
    onnx.checker.check_model(loaded, full_check=True)
    names = {each.name for each in loaded.graph.initializer}
    assert not [name for name in names if name.startswith("three")]
    # The reference: the other values written where its own were.
    whole = onnx.load(model.path)
    stored = initializers(whole.graph)
    stored["three"].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored["one"]), "three"))
    onnx.save(whole, tmp_path / "reference.onnx")
    feeds = draw(model, 6, 3)
    wanted = run_samples(model.model_copy(update={"path": tmp_path / "reference.onnx"}), feeds)[0]
    found = run_samples(made, feeds)[0]
    assert np.abs(found - wanted).max() < (0.05 if coded else 1e-6) * np.abs(wanted).max()
    original = run_samples(model, feeds)[0]
    assert np.abs(found - original).max() > 1e-2 * np.abs(original).max()


@pytest.mark.parametrize(
    "pairs",
    [[("three", "absent")], [("three", "two"), ("two", "one")], [("three", "small")]],
    ids=["absent", "chained", "shape"],
)
def test_what_is_no_weight_of_its_own_of_that_shape_is_refused(
    tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    with pytest.raises(ConfigError, match="does not fit the model"):
        apply_plan(stacked(tmp_path), tied(*pairs), directory=tmp_path / "out")


@pytest.mark.parametrize(
    "fields", [{"method": "float16"}, {"method": "float32", "like": "w"}], ids=["form", "itself"]
)
def test_a_tied_weight_has_no_form_and_is_not_its_own(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Choice.model_validate({"weight": "w", "like": "v", **fields})
