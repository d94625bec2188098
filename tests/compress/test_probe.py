"""Harm of replaced weights is that of the whole model with them, however little of it runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.artifact import Choice, Model
from edgeopt.compress.choices import possible_choices
from edgeopt.compress.decode import weigh_parts, weigh_rows
from edgeopt.compress.distance import measure_harm
from edgeopt.compress.learned import Learned
from edgeopt.compress.lookup import is_by_rows
from edgeopt.compress.part import Parts
from edgeopt.compress.probe import Judged, Probe
from edgeopt.model.graph import infer_types, weights
from edgeopt.model.oracle import Array, run_samples
from tests.graphs import deep_model, describe, normal, save_graph, text_model


def changed(model: Model, name: str, values: Array, folder: Path) -> Path:
    """Write the model with other values for one weight."""
    loaded = onnx.load(model.path)
    for tensor in loaded.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    path = folder / "changed.onnx"
    onnx.save(loaded, path)
    return path


@pytest.mark.parametrize("count", [2, 12])
def test_a_weight_is_replaced_from_its_first_reader_on(tmp_path: Path, count: int) -> None:
    model = deep_model(tmp_path)
    loaded = infer_types(onnx.load(model.path))
    names = [each.name for each in weights(loaded.graph)]
    (spec,) = model.inputs
    samples = {spec.name: normal(5, count, *spec.shape)}
    probe = Probe(loaded, names, Judged(samples, count, classes=False))
    plain = [probe.replace(name, _moved(loaded, name)) for name in names]
    probe.keep_starts()
    expected = run_samples(model, samples)
    for name, before in zip(names, plain, strict=True):
        path = changed(model, name, _moved(loaded, name), tmp_path)
        harm = measure_harm(run_samples(path, samples), expected, classes=False)
        assert harm > 0
        assert before == pytest.approx(harm, rel=1e-4)
        assert probe.replace(name, _moved(loaded, name)) == pytest.approx(harm, rel=1e-4)


def _moved(loaded: onnx.ModelProto, name: str) -> Array:
    (tensor,) = (each for each in loaded.graph.initializer if each.name == name)
    moved: Array = (numpy_helper.to_array(tensor) * 1.1).astype(np.float32)
    return moved


def test_rows_of_a_table_are_given_instead_of_the_table(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    loaded = infer_types(onnx.load(model.path))
    known = {each.name: each for each in weights(loaded.graph)}
    samples = {
        "input_ids": np.random.default_rng(0).integers(0, 500, (6, 1, 8)),
        "attention_mask": np.ones((6, 1, 8), np.int64),
    }
    probe = Probe(loaded, ["mix"], Judged(samples, 2, classes=False), tables=[known["table"]])
    assert probe.reads_rows_of("table")
    choice = Choice(weight="table", method="int8-rows")
    part = Parts(loaded).rewrite(known["table"], choice, Learned({}, {}))
    codes = {each.name: numpy_helper.to_array(each) for each in part.graph.initializer}
    values = codes["table.int8"].astype(np.float32) * codes["table.scale"]
    path = changed(model, "table", values, tmp_path)
    expected = run_samples(model, samples)
    harm = measure_harm(run_samples(path, samples), expected, classes=False)
    assert probe.read("table", part) == pytest.approx(harm, rel=1e-3)
    # What samples read of it is enough, and says how large the whole is.
    rows = probe.rows_of("table")
    assert set(np.unique(samples["input_ids"])) < set(rows) < set(range(500))
    for each in possible_choices(model)["table"]:
        if not is_by_rows(each):
            continue
        whole, few = (
            Parts(loaded).rewrite(known["table"], each, Learned({}, {}), given)
            for given in (None, rows)
        )
        assert probe.read("table", few, few=True) == probe.read("table", whole)
        assert weigh_rows(few, known["table"]) == weigh_parts(whole.graph, ["table"])["table"]
    assert not is_by_rows(choice.model_copy(update={"rows": 100}))


def test_rows_that_another_weight_chooses_are_not_given(tmp_path: Path) -> None:
    text = """
    g (float[1,32] x) => (float[1,1,32] y) {
        scores = MatMul(x, mix)
        best = ArgMax<axis=1>(scores)
        rows = Gather<axis=0>(table, best)
        y = Tanh(rows)
    }"""
    stored = {"mix": normal(0, 32, 64), "table": normal(1, 64, 32)}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    loaded = infer_types(onnx.load(model.path))
    known = {each.name: each for each in weights(loaded.graph)}
    judged = Judged({"x": normal(2, 4, 1, 32)}, 2, classes=False)
    probe = Probe(loaded, ["mix"], judged, tables=[known["table"]])
    assert not probe.reads_rows_of("table")
    assert probe.replace("mix", -stored["mix"]) > 0.1


COUNTED = """
import sys
from pathlib import Path
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.sensitivity import draw_calibration, measure_sensitivity
from tests.graphs import text_model

folder = Path(sys.argv[1])
model = text_model(folder)
choices = mixable_choices(model, tuple(sys.argv[2:]), reconstruct=False)
calibration = draw_calibration(model, None)
opened = []

def heard(event, arguments):
    if event == "open" and str(arguments[0]).startswith(str(folder)):
        opened.append(arguments[0])

sys.addaudithook(heard)
measure_sensitivity(model, choices, calibration, directory=folder / "harm")
print(sum(map(len, choices.values())), len(opened))
"""


def test_the_model_is_read_once_however_many_forms_are_measured(tmp_path: Path) -> None:
    found = []
    for methods in (("float16",), ("float16", "int8-weights", "int4-blocks", "int2-blocks")):
        done = subprocess.run(
            [sys.executable, "-c", COUNTED, str(tmp_path), *methods],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        found.append(tuple(map(int, done.stdout.split())))
    (few, first), (many, second) = found
    assert many > 2 * few
    # Nothing is written in between, either.
    assert first == second == 1


def test_fewer_starts_are_kept_where_all_of_them_take_too_much_memory(tmp_path: Path) -> None:
    model = deep_model(tmp_path)
    loaded = infer_types(onnx.load(model.path))
    names = [each.name for each in weights(loaded.graph)]
    (spec,) = model.inputs
    samples = {spec.name: normal(5, 3, *spec.shape)}
    starts, harms = [], []
    # Between layers there is one row of 64 numbers.
    for most in (4 * 3 * 64 * 4, 2 * 3 * 64 * 4, 0):
        probe = Probe(loaded, names, Judged(samples, 3, classes=False))
        probe.keep_starts(most)
        starts.append([probe.start_of(name) for name in names])
        harms.append([probe.replace(name, _moved(loaded, name)) for name in names])
    assert starts == [[0, 1, 2, 3, 4], [0, 0, 2, 2, 4], [0, 0, 0, 0, 0]]
    for each in harms[1:]:
        assert each == pytest.approx(harms[0], rel=1e-4)
