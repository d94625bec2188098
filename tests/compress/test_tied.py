"""One stored tensor for several layers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.tied import nearest_pairs
from edgeopt.errors import ConfigError
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import run_samples
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
    found = nearest_pairs(onnx.load(stacked(tmp_path).path))
    assert [each[:2] for each in found] == [("three", "one"), ("two", "one")]
    assert found[0][2] == pytest.approx(0.01, rel=0.3)
    assert found[1][2] == pytest.approx(2, rel=0.2)


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
