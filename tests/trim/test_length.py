"""Texts as long as the corpus needs: counted by the tokenizer, and the model's shapes follow."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.cli.request import Request, make_order
from edgeopt.errors import ConfigError
from edgeopt.job import Run
from edgeopt.model.oracle import run_samples
from edgeopt.prepare import prepare_model
from edgeopt.store import Store
from edgeopt.task import TextClassification, labelled
from edgeopt.trim import trim_length
from edgeopt.trim.length import count_tokens, shortest
from tests.graphs import normal, save_graph
from tests.trim.test_vocabulary import task, write

__all__ = ["task"]


@pytest.mark.parametrize(
    ("share", "length"), [(0.01, 1), (0.25, 1), (0.26, 3), (0.5, 3), (0.75, 7), (0.9, 9), (1.0, 9)]
)
def test_the_shortest_length_holds_the_share_of_the_texts(share: float, length: int) -> None:
    lengths = [7, 3, 9, 1]
    assert shortest(lengths, share) == length
    # By the definition: so many are within, and of the next shorter one fewer than asked for.
    assert sum(each <= length for each in lengths) >= share * 4
    assert sum(each < length for each in lengths) < share * 4 or length == 1


def test_a_share_that_is_a_decimal_asks_for_no_text_more() -> None:
    # 0.07 * 100 is 7.000000000000001.
    assert shortest(list(range(1, 101)), 0.07) == 7


def test_tokens_are_those_of_the_corpus_with_what_the_tokenizer_adds(
    task: TextClassification, tmp_path: Path
) -> None:
    # [CLS], words of one piece each, [SEP]; the longest test text chooses nothing.
    assert count_tokens(task) == [4, 3, 4]
    more = write(tmp_path / "more.jsonl", ["ab ab ab ab ab"])
    assert count_tokens(task.model_copy(update={"unlabelled": more})) == [4, 3, 4, 7]


def test_a_task_is_shortened_and_shapes_that_said_its_length_follow(
    task: TextClassification,
) -> None:
    made = trim_length(
        task.model_copy(update={"trim_length": 1.0}),
        {"input_ids": (1, 8), "mask": (1, 8), "state": (2, 8), "other": (1, 9)},
    )
    assert (made.task.length, made.task.trim_length) == (4, None)
    assert made.shapes == {"input_ids": (1, 4), "mask": (1, 4), "state": (2, 8), "other": (1, 9)}
    assert made.remark == "length 8 -> 4 tokens: 3 of 3 texts fit whole"
    third = trim_length(task.model_copy(update={"trim_length": 0.3}), {})
    assert third.remark == "length 8 -> 3 tokens: 1 of 3 texts fit whole"


def test_no_text_makes_the_length_longer_than_it_was(task: TextClassification) -> None:
    short = task.model_copy(update={"trim_length": 1.0, "length": 3})
    assert trim_length(short, {}).task.length == 3


def test_a_text_of_the_test_that_chooses_is_refused(
    task: TextClassification, tmp_path: Path
) -> None:
    leak = write(tmp_path / "leak.jsonl", ["ab ef"])
    with pytest.raises(ConfigError, match="share 1 texts"):
        trim_length(task.model_copy(update={"trim_length": 1.0, "unlabelled": leak}), {})


@pytest.mark.parametrize("share", ["0%", "101%", 0, 2])
def test_a_share_that_means_nothing_is_refused(task: TextClassification, share: object) -> None:
    with pytest.raises(ValidationError):
        TextClassification.model_validate({**task.model_dump(), "trim_length": share})


PROJECT = """
app = "words"
model = "words.onnx"
profile = "float32"

[task]
kind = "text-classification"
tokenizer = "tokenizer.json"
length = 8
labels = ["A", "B", "C", "D"]
train = "train.jsonl"
test = "test.jsonl"
"""


def write_project(folder: Path, task: TextClassification, more: str) -> Path:
    """Write a model that leaves its length open, and says beside its scores what it saw."""
    text = """
    words (int64[batch,tokens] input_ids) => (float[batch,4] scores, float[batch,tokens,16] rows) {
        rows = Gather<axis=0>(table, input_ids)
        hidden = MatMul(rows, mix)
        scores = ReduceSum<keepdims=0>(hidden, one)
    }"""
    stored = {"table": normal(0, 200, 16), "mix": normal(1, 16, 4), "one": np.array([1])}
    save_graph(folder / "words.onnx", text, stored)
    (folder / "edgeopt.toml").write_text(PROJECT + more)
    assert task.train.parent == folder
    return folder


def prepare(folder: Path) -> tuple[Run, list[str]]:
    request = Request(target="rpi4", project=folder, on_board=False)
    told: list[str] = []
    run = Run(
        make_order(request).job,
        Store(folder / "cache"),
        lambda record: told.append(record.detail),
    )
    return run, told


def test_a_model_of_open_length_takes_that_of_the_corpus(
    task: TextClassification, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_project(tmp_path, task, 'trim_length = "100%"\n')
    run, told = prepare(folder)
    assert "length 8 -> 4 tokens: 3 of 3 texts fit whole" in capsys.readouterr().err
    model = prepare_model(run)
    assert model.inputs[0].shape == (1, 4)
    assert any('outputs = ["scores"] leaves that out' in each for each in told)
    assert isinstance(run.job.task, TextClassification)
    found = labelled(run.job.task, None, inputs=model.inputs)
    assert found is not None
    assert run_samples(model, found[0])[0].shape == (4, 1, 4)
    # Without it, padding is computed too: the model is the longer one.
    plain, _ = prepare(write_project(tmp_path, task, ""))
    assert prepare_model(plain).inputs[0].shape == (1, 8)


def test_outputs_that_nobody_reads_go_with_what_computed_them(
    task: TextClassification, tmp_path: Path
) -> None:
    folder = write_project(tmp_path, task, "")
    text = (folder / "edgeopt.toml").read_text()
    (folder / "edgeopt.toml").write_text(text.replace("\n[task]", 'outputs = ["scores"]\n[task]'))
    run, told = prepare(folder)
    model = prepare_model(run)
    assert [each.name for each in model.outputs] == ["scores"]
    assert told == ["words.onnx", ""]
    wrong = text.replace("\n[task]", 'outputs = ["score"]\n[task]')
    (folder / "edgeopt.toml").write_text(wrong)
    with pytest.raises(ConfigError, match="no output named score") as caught:
        prepare_model(prepare(folder)[0])
    assert caught.value.why == "its outputs are scores, rows"
