"""The fine-tuned example: what decides its weights, and that nothing is learned from the test."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from edgeopt.errors import ConfigError
from edgeopt.example import finetune, layout
from edgeopt.example.trec import fine_tune, split_parts, write_tuned
from edgeopt.model import load_model
from edgeopt.model.oracle import run_samples
from edgeopt.store import Store
from edgeopt.task import Task, labelled, resolve_task, samples, score

pytestmark = pytest.mark.host

TINY = finetune.Recipe(epochs=1, batch=4)


@pytest.fixture(scope="module")
def questions() -> list[layout.Question]:
    try:
        layout.published_weights()
        return layout.published_questions()
    except ConfigError as error:
        pytest.skip(f"the example's packages are absent; run: {error.fix}")


def trained(questions: Sequence[layout.Question], path: Path, *, seed: int) -> bytes:
    tokenizer = layout.published_weights().with_name("tokenizer.json")
    data = finetune.encode([(each.text, each.label) for each in questions[:12]], tokenizer)
    lines: list[str] = []
    made = finetune.fit_classifier(data, TINY, seed=seed, progress=lines.append)
    finetune.save_tuned(made, path)
    assert len(lines) == 1
    return path.read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    questions: list[layout.Question], tmp_path: Path
) -> None:
    first = trained(questions, tmp_path / "first.safetensors", seed=0)
    assert trained(questions, tmp_path / "again.safetensors", seed=0) == first
    assert trained(questions, tmp_path / "other.safetensors", seed=1) != first


def test_the_parts_are_disjoint_and_the_test_is_that_of_the_other_example(
    questions: list[layout.Question],
) -> None:
    train, validation, test = split_parts(questions)
    assert (len(train), len(validation), len(test)) == (3873, 431, 1077)
    assert len({each.text for each in (*train, *validation, *test)}) == 5381
    assert test == layout.split_questions(questions, seed=0)[1]


def test_a_seed_is_trained_once_and_its_project_is_laid_out_whole(
    questions: list[layout.Question], tmp_path: Path
) -> None:
    parts = split_parts(questions[:60])
    lines: list[str] = []
    store = Store(tmp_path / "cache")
    first, again, other = (
        fine_tune(parts, seed=seed, store=store, progress=lines.append, recipe=TINY)
        for seed in (3, 3, 4)
    )
    assert first == again != other
    assert len(lines) == 2
    folder = tmp_path / "project"
    facts = write_tuned(folder, parts, first)
    assert facts.train + facts.validation + facts.test == 60
    project = tomllib.loads((folder / "edgeopt.toml").read_text())
    task: Task = resolve_task(TypeAdapter(Task).validate_python(project["task"]), folder)
    model = load_model(project["model"], directory=tmp_path / "load", search=folder)
    feeds, classes = labelled(task, None, inputs=model.inputs) or ({}, np.empty(0))
    accuracy = score(task, run_samples(model, feeds), classes)
    assert accuracy == pytest.approx(facts.test_accuracy)
    found = labelled(task, None, inputs=model.inputs, part="validation")
    assert found is not None
    assert len(found[1]) == facts.validation
    assert len(samples(task, 100, inputs=model.inputs)["input_ids"]) == facts.train
