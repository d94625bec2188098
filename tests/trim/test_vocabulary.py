import json
from pathlib import Path

import pytest

from edgeopt.artifact import TensorSpec
from edgeopt.budget import Budget
from edgeopt.compress import Cost, fit_plan
from edgeopt.errors import ConfigError
from edgeopt.model.oracle import run_samples
from edgeopt.task import TextClassification, corpus, labelled, name_ids, score
from edgeopt.trim import trim_vocabulary
from tests.compress.test_fit import costs
from tests.graphs import text_model
from tests.trim.kit import word_piece

LETTERS = "abcdefghij"
LABELS = ("A", "B", "C", "D")


def write(path: Path, texts: list[str]) -> Path:
    records = ({"text": text, "label": LABELS[len(text) % 4]} for text in texts)
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


@pytest.fixture
def task(tmp_path: Path) -> TextClassification:
    words = [first + second for first in LETTERS for second in LETTERS]
    pieces = [*LETTERS, *(f"##{each}" for each in LETTERS), *words]
    word_piece(pieces).save(str(tmp_path / "tokenizer.json"))
    return TextClassification(
        kind="text-classification",
        tokenizer=tmp_path / "tokenizer.json",
        length=8,
        labels=LABELS,
        train=write(tmp_path / "train.jsonl", ["ab cd", "ef", "gh ab"]),
        test=write(tmp_path / "test.jsonl", ["ab ef", "gh", "ij ij", "cd"]),
        trim_vocabulary=True,
    )


def test_only_pieces_of_the_texts_given_for_it_are_kept(
    task: TextClassification, tmp_path: Path
) -> None:
    made = trim_vocabulary(text_model(tmp_path), task, directory=tmp_path / "trim")
    kept = json.loads(made.vocabulary.tokenizer.read_text())["model"]["vocab"]
    assert {"ab", "cd", "ef", "gh"} <= set(kept)
    assert "ij" not in kept, "a test text chose it"
    assert str(made.vocabulary) == "vocabulary 124 -> 28 pieces"
    wider = task.model_copy(update={"unlabelled": write(tmp_path / "more.jsonl", ["ij"])})
    made = trim_vocabulary(text_model(tmp_path), wider, directory=tmp_path / "wider")
    assert made.vocabulary.after == 29


def test_test_texts_among_the_others_are_refused(task: TextClassification, tmp_path: Path) -> None:
    leaking = task.model_copy(update={"unlabelled": write(tmp_path / "more.jsonl", ["gh"])})
    with pytest.raises(ConfigError, match=r"more\.jsonl and test\.jsonl share 1 texts"):
        corpus(leaking)


def test_answers_on_texts_of_the_corpus_are_the_same_to_the_bit(
    task: TextClassification, tmp_path: Path
) -> None:
    model = text_model(tmp_path)
    made = trim_vocabulary(model, task, directory=tmp_path / "trim")
    short = task.model_copy(update={"tokenizer": made.vocabulary.tokenizer})
    outputs = []
    for each, taken in ((model, task), (made.model, short)):
        found = labelled(taken.model_copy(update={"test": task.train}), None, inputs=each.inputs)
        assert found is not None
        outputs.append(run_samples(each, found[0])[0])
    assert outputs[0].tobytes() == outputs[1].tobytes()


def test_a_drop_counts_from_the_model_as_it_was(task: TextClassification, tmp_path: Path) -> None:
    made = trim_vocabulary(text_model(tmp_path), task, directory=tmp_path / "trim")
    short = task.model_copy(update={"tokenizer": made.vocabulary.tokenizer})
    found = labelled(short, None, inputs=made.model.inputs)
    assert found is not None
    own = score(short, run_samples(made.model, found[0]), found[1])
    fit = fit_plan(
        made.model,
        ("float32",),
        Budget(),
        short,
        cost=Cost(costs(1)),
        directory=tmp_path / "fit",
        baseline=0.9,
    )
    assert fit.baseline == 0.9
    assert fit.chosen.accuracy == own
    assert fit.chosen.drop == pytest.approx(0.9 - own)


@pytest.mark.parametrize("names", [["pixels", "tokens"], ["attention_mask"]])
def test_an_input_of_ids_that_is_not_known_by_its_name_is_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="token ids is not known"):
        name_ids([TensorSpec(name=each, dtype="int64", shape=(1, 8)) for each in names])
