"""What is left is fitted so that products keep their results, and what that is worth."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.artifact import Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.cuts import groups_by_name
from edgeopt.compress.refit import refit_readers
from edgeopt.compress.surgeon import damped
from edgeopt.cut import Cut
from edgeopt.errors import ConfigError
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_groups import build
from tests.graphs import describe, normal, save_graph

DEEP = """
deep (float[4,16] x) => (float[4,8] y) {
    a = MatMul(x, one)
    b = Relu(a)
    c = MatMul(b, two)
    d = Relu(c)
    y = MatMul(d, three)
}"""


def deep(folder: Path) -> Model:
    stored = {
        "one": normal(0, 16, 48) / 4,
        "two": normal(1, 48, 48) / 7,
        "three": normal(2, 48, 8) / 7,
    }
    return describe(save_graph(folder / "deep.onnx", DEEP, stored))


def draw(model: Model, count: int, seed: int) -> dict[str, Array]:
    """Samples that depend on a few numbers, as real ones do: then units can stand in for others."""
    random = np.random.default_rng(seed)
    found = {}
    for spec in model.inputs:
        size = int(np.prod(spec.shape))
        mix = np.random.default_rng(99).standard_normal((6, size))
        values = random.standard_normal((count, 6)) @ mix
        found[spec.name] = values.reshape(count, *spec.shape).astype(np.float32)
    return found


def cut_half(model: Model, *, refit: bool) -> Plan:
    groups = groups_by_name(onnx.load(model.path)).values()
    cuts = tuple(
        Cut(group=each.name, kept=tuple(range(0, each.units, 2)), refit=refit) for each in groups
    )
    return Plan(name="half", choices=(), cuts=cuts)


def distance(model: Model, made: Model, samples: dict[str, Array]) -> float:
    whole, less = (run_samples(each, samples)[0] for each in (model, made))
    return float(np.square(whole - less).sum() / np.square(whole).sum())


@pytest.mark.parametrize("name", ["mlp", "attention", "residual", "branches", "deep"])
def test_what_is_fitted_is_nearer_on_samples_that_it_was_not_fitted_on(
    tmp_path: Path, name: str
) -> None:
    model = deep(tmp_path) if name == "deep" else build(tmp_path, name)[0]
    fitted_on, others = draw(model, 96, 0), draw(model, 40, 1)
    plain = apply_plan(model, cut_half(model, refit=False), directory=tmp_path / "plain")
    refit = apply_plan(
        model, cut_half(model, refit=True), directory=tmp_path / "refit", samples=fitted_on
    )
    before, after = distance(model, plain, others), distance(model, refit, others)
    # Two heads of random numbers can hardly stand in for two others.
    assert after < (0.95 if name == "attention" else 0.7) * before
    assert after > 0
    shapes = [
        {each.name: tuple(each.dims) for each in onnx.load(made.path).graph.initializer}
        for made in (plain, refit)
    ]
    assert shapes[0] == shapes[1]


def test_weights_are_those_of_least_squares(tmp_path: Path) -> None:
    model = deep(tmp_path)
    loaded = onnx.load(model.path)
    groups = groups_by_name(loaded)
    samples = draw(model, 64, 0)
    cut = Cut(group="one", kept=tuple(range(0, 48, 3)), refit=True)
    refit_readers(loaded, [cut], groups, samples)
    stored = initializers(onnx.load(model.path).graph)
    x = samples["x"].reshape(-1, 16)
    one, two = (numpy_helper.to_array(stored[name]) for name in ("one", "two"))
    hidden = np.maximum(x @ one, 0)
    # A row that no unit of the last layer passes on has no gradient, and is left out.
    passed = ((hidden @ two) > 0).any(axis=1)
    hidden = hidden[passed].astype(np.float64)
    left = hidden[:, list(cut.kept)]
    moment = damped(left.T @ left)
    ridge = (moment - left.T @ left)[0, 0]
    wanted = np.linalg.solve(moment, left.T @ (hidden @ two) + ridge * two[list(cut.kept)])
    found = numpy_helper.to_array(initializers(loaded.graph)["two"])
    np.testing.assert_allclose(found[list(cut.kept)], wanted, rtol=1e-3, atol=1e-4)
    assert (np.delete(found, list(cut.kept), axis=0) == 0).all()


def test_later_layers_make_up_for_earlier_ones(tmp_path: Path) -> None:
    model = deep(tmp_path)
    samples, others = draw(model, 128, 0), draw(model, 40, 1)
    plan = cut_half(model, refit=True)
    both = apply_plan(model, plan, directory=tmp_path / "both", samples=samples)
    loaded = onnx.load(model.path)
    groups = groups_by_name(loaded)
    # Each by itself, on what the whole model gives it.
    for cut in plan.cuts:
        alone = onnx.load(model.path)
        refit_readers(alone, [cut], groups, samples)
        for name in groups[cut.group].readers:
            initializers(loaded.graph)[name].CopyFrom(initializers(alone.graph)[name])
    path = tmp_path / "apart.onnx"
    onnx.save(loaded, path)
    apart = describe(path)
    assert distance(model, both, others) < distance(model, apart, others)


def test_a_cut_replays_with_quantization_to_the_same_bytes(tmp_path: Path) -> None:
    model = deep(tmp_path)
    samples = draw(model, 64, 0)
    plan = cut_half(model, refit=True)
    choices = [
        {"weight": "two", "method": "int8-weights"},
        {"weight": "three", "method": "float16"},
    ]
    whole = Plan.model_validate({**plan.model_dump(), "choices": choices})
    again = Plan.model_validate_json(whole.model_dump_json())
    first, second = (
        apply_plan(model, each, directory=tmp_path / str(at), samples=samples)
        for at, each in enumerate((whole, again))
    )
    assert first.path.read_bytes() == second.path.read_bytes()
    stored = {each.name: each for each in onnx.load(first.path).graph.initializer}
    assert tuple(stored["two.int8"].dims) == (24, 24)
    assert stored["two.int8"].data_type == onnx.TensorProto.INT8
    onnx.checker.check_model(onnx.load(first.path), full_check=True)


def test_fitting_without_samples_is_refused(tmp_path: Path) -> None:
    model = deep(tmp_path)
    with pytest.raises(ConfigError, match="no calibration samples") as caught:
        apply_plan(model, cut_half(model, refit=True), directory=tmp_path)
    assert "refitted" in caught.value.why
