import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers

from edgeopt.artifact import TensorSpec
from edgeopt.errors import ConfigError
from edgeopt.task import Arrays, Task, TextClassification, labelled, resolve_task, samples, score

IDS = TensorSpec(name="input_ids", dtype="int64", shape=(1, 6))
MASK = TensorSpec(name="attention_mask", dtype="int32", shape=(1, 6))


def lines(path: Path, pairs: list[tuple[str, str]]) -> None:
    records = [json.dumps({"text": text, "label": label}) for text, label in pairs]
    path.write_text("\n".join(records) + "\n")


@pytest.fixture
def task(tmp_path: Path) -> TextClassification:
    vocabulary = {"[PAD]": 0, "?": 1, **{f"w{index}": index + 2 for index in range(20)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lines(tmp_path / "train.jsonl", [(f"w{index} w1", "AB"[index % 2]) for index in range(10)])
    lines(tmp_path / "test.jsonl", [(f"w{index} w2 w3 w4 w5 w6 w7", "B") for index in range(4)])
    table = {
        "kind": "text-classification",
        "tokenizer": "tokenizer.json",
        "length": 6,
        "labels": ["A", "B"],
        "train": "train.jsonl",
        "test": "test.jsonl",
    }
    decoded = resolve_task(TypeAdapter(Task).validate_python(table), tmp_path)
    assert isinstance(decoded, TextClassification)
    return decoded


def test_texts_become_rows_of_ids_and_masks_of_the_models_types(task: TextClassification) -> None:
    feeds = samples(task, 3, inputs=(IDS, MASK))
    assert feeds["input_ids"].shape == feeds["attention_mask"].shape == (3, 1, 6)
    assert feeds["input_ids"].dtype == np.int64
    assert feeds["attention_mask"].dtype == np.int32
    assert feeds["attention_mask"][0].tolist() == [[1, 1, 0, 0, 0, 0]]
    assert (feeds["input_ids"][:, 0, 1] == 3).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_samples_are_drawn_without_repeats_and_repeat_with_the_seed(
    task: TextClassification, seed: int
) -> None:
    first = samples(task, 10, inputs=(IDS,), seed=seed)["input_ids"]
    assert len({row.tobytes() for row in first}) == 10
    assert np.array_equal(first, samples(task, 10, inputs=(IDS,), seed=seed)["input_ids"])
    assert not np.array_equal(first, samples(task, 10, inputs=(IDS,), seed=seed + 1)["input_ids"])


def test_more_samples_than_there_are_gives_all(task: TextClassification) -> None:
    assert len(samples(task, 1000, inputs=(IDS,))["input_ids"]) == 10


def test_labelled_texts_are_cut_and_carry_class_indices(task: TextClassification) -> None:
    found = labelled(task, 3, inputs=(IDS, MASK))
    assert found is not None
    feeds, labels = found
    assert labels.tolist() == [1, 1, 1]
    assert feeds["attention_mask"].min() == 1


def test_accuracy_counts_the_largest_score_and_never_nan(task: TextClassification) -> None:
    outputs = np.array([[[0.1, 0.9]], [[0.9, 0.1]], [[np.nan, np.nan]], [[0.0, np.inf]]])
    assert score(task, [outputs], np.array([1, 1, 0, 1])) == 0.25
    assert score(task, [outputs[:2]], np.array([1, 0])) == 1.0


def test_a_score_of_nothing_is_refused(task: TextClassification) -> None:
    with pytest.raises(ConfigError, match="nothing to score"):
        score(task, [np.zeros((0, 1, 2))], np.zeros(0))


def test_an_empty_calibration_set_is_refused(task: TextClassification) -> None:
    task.train.write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no samples"):
        samples(task, 4, inputs=(IDS,))


def test_no_samples_asked_for_is_refused(task: TextClassification) -> None:
    with pytest.raises(ConfigError, match="no calibration samples"):
        samples(task, 0, inputs=(IDS,))


def test_a_text_in_train_and_test_is_refused_whatever_its_spaces(task: TextClassification) -> None:
    lines(task.train, [("w9", "A"), ("w2  w2 w3 w4 w5 w6 w7", "A")])
    with pytest.raises(ConfigError, match="share 1 texts"):
        samples(task, 1, inputs=(IDS,))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "w1", "label": "C"}', "label 'C' is not in"),
        ('{"text": 5, "label": "A"}', "no text"),
        ("[1]", "no text"),
        ("{", "Expecting"),
    ],
)
def test_a_bad_line_is_named_by_its_number(
    task: TextClassification, line: str, reason: str
) -> None:
    task.test.write_text('{"text": "w1", "label": "A"}\n' + line)
    with pytest.raises(ConfigError, match=r"test\.jsonl:2: not a labelled text") as caught:
        labelled(task, None, inputs=(IDS,))
    assert reason in caught.value.why


def test_an_input_of_another_length_is_refused(task: TextClassification) -> None:
    other = IDS.model_copy(update={"shape": (1, 8)})
    with pytest.raises(ConfigError, match=r"task\.length is 6"):
        samples(task, 1, inputs=(other,))


def test_a_missing_file_is_named_with_its_key(task: TextClassification, tmp_path: Path) -> None:
    task.train.unlink()
    with pytest.raises(ConfigError, match=r"task\.train is not a file"):
        resolve_task(task, tmp_path)


def test_unknown_keys_and_kinds_are_refused() -> None:
    adapter: TypeAdapter[Task] = TypeAdapter(Task)
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "arrays", "train": "a.npz", "tset": "b.npz"})
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "poetry", "train": "a.npz"})


@pytest.fixture
def arrays(tmp_path: Path) -> Arrays:
    pixels = np.arange(2 * 1 * 3 * 4, dtype=np.float64).reshape(2, 1, 3, 4)
    np.savez(tmp_path / "train.npz", pixels=pixels)
    np.savez(tmp_path / "test.npz", pixels=pixels, labels=np.array([2, 0]))
    return Arrays(kind="arrays", train=tmp_path / "train.npz", test=tmp_path / "test.npz")


PIXELS = TensorSpec(name="pixels", dtype="float32", shape=(1, 3, 4))


def test_arrays_are_taken_under_the_names_of_the_inputs(arrays: Arrays) -> None:
    assert samples(arrays, 1, inputs=(PIXELS,))["pixels"].shape == (1, 1, 3, 4)
    found = labelled(arrays, None, inputs=(PIXELS,))
    assert found is not None
    assert found[0]["pixels"].dtype == np.float32
    assert found[1].tolist() == [2, 0]


def test_arrays_without_a_test_set_have_no_labels(arrays: Arrays) -> None:
    assert labelled(arrays.model_copy(update={"test": None}), 4, inputs=(PIXELS,)) is None


@pytest.mark.parametrize("shape", [(1, 3, 5), (3, 4)])
def test_arrays_of_another_shape_are_refused(arrays: Arrays, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="does not fit the model"):
        samples(arrays, 1, inputs=(PIXELS.model_copy(update={"shape": shape}),))


def test_arrays_with_no_samples_or_pickles_are_refused(arrays: Arrays) -> None:
    np.savez(arrays.train, pixels=np.zeros((0, 1, 3, 4)))
    with pytest.raises(ConfigError, match="holds no samples"):
        samples(arrays, 1, inputs=(PIXELS,))
    np.savez(arrays.train, pixels=np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match=r"not an \.npz file"):
        samples(arrays, 1, inputs=(PIXELS,))
    arrays.train.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ConfigError, match=r"not an \.npz file"):
        samples(arrays, 1, inputs=(PIXELS,))


def test_a_bare_array_is_no_npz_file(arrays: Arrays) -> None:
    with arrays.train.open("wb") as file:
        np.save(file, np.zeros((2, 1, 3, 4)))
    with pytest.raises(ConfigError, match=r"not an \.npz file"):
        samples(arrays, 1, inputs=(PIXELS,))


@pytest.mark.parametrize("content", ["", "{}", "[]", "\0"])
def test_what_is_no_tokenizer_is_refused(task: TextClassification, content: str) -> None:
    task.tokenizer.write_text(content)
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        samples(task, 1, inputs=(IDS,))


def test_a_tokenizer_that_the_library_refuses_is_refused(task: TextClassification) -> None:
    task.tokenizer.write_text('{"model": 5}')
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        samples(task, 2, inputs=(IDS,))


def test_texts_that_are_not_utf8_are_refused(task: TextClassification) -> None:
    task.test.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        labelled(task, 2, inputs=(IDS,))


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0], [100, 101]])
def test_classes_that_the_model_does_not_have_are_refused(labels: list[int]) -> None:
    # Otherwise nothing is ever right, and so no plan loses anything.
    arrays = Arrays(kind="arrays", train=Path("t.npz"))
    with pytest.raises(ConfigError, match="first output"):
        score(arrays, [np.zeros((2, 1, 2))], np.array(labels))


def test_a_task_with_other_labels_than_the_model_is_refused(task: TextClassification) -> None:
    with pytest.raises(ConfigError, match="it has 3 values a sample, and the task has 2 labels"):
        score(task, [np.zeros((2, 1, 3))], np.array([0, 1]))


@pytest.mark.parametrize(
    "wrong", [np.array([[[0.5, 1]]]), np.array([[["a", "b"]]]), np.array([[[np.nan, 1]]])]
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, wrong: npt.NDArray[Any]) -> None:
    np.savez(tmp_path / "a.npz", ids=wrong)
    arrays = Arrays(kind="arrays", train=tmp_path / "a.npz")
    dtype = "float32" if wrong.dtype.kind == "f" and np.isnan(wrong).any() else "int64"
    with pytest.raises(ConfigError, match="does not fit the model"):
        samples(arrays, 1, inputs=(TensorSpec(name="ids", dtype=dtype, shape=(1, 2)),))


def classes(found: "tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]] | None") -> list[int]:
    assert found is not None
    return [int(each) for each in found[1]]


def test_plans_are_compared_on_samples_for_validation_where_there_are_any(
    task: TextClassification, tmp_path: Path
) -> None:
    path = tmp_path / "validation.jsonl"
    lines(path, [("w11 w12", "A"), ("w13 w14", "A")])
    both = task.model_copy(update={"validation": path})
    assert classes(labelled(task, None, inputs=(IDS,), part="validation")) == [1, 1, 1, 1]
    assert classes(labelled(both, None, inputs=(IDS,), part="validation")) == [0, 0]
    assert classes(labelled(both, None, inputs=(IDS,))) == [1, 1, 1, 1]


def test_a_text_for_validation_is_refused_for_calibration(
    task: TextClassification, tmp_path: Path
) -> None:
    path = tmp_path / "validation.jsonl"
    lines(path, [("w3   w1", "A")])
    with pytest.raises(ConfigError, match=r"train.jsonl and validation.jsonl share 1 texts"):
        samples(task.model_copy(update={"validation": path}), 3, inputs=(IDS,))


def test_arrays_may_have_a_file_for_validation(tmp_path: Path) -> None:
    for name, label in (("validation", 1), ("test", 0)):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((3, 2), np.float32), labels=np.full(3, label))
    arrays = Arrays(
        kind="arrays",
        train=tmp_path / "test.npz",
        validation=tmp_path / "validation.npz",
        test=tmp_path / "test.npz",
    )
    inputs = (TensorSpec(name="x", dtype="float32", shape=(2,)),)
    assert classes(labelled(arrays, 2, inputs=inputs, part="validation")) == [1, 1]
