"""What a model is for: samples to calibrate with, labelled samples to score with."""

import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.artifact import TensorSpec
from edgeopt.errors import ConfigError
from edgeopt.units import Fraction

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

    Array = npt.NDArray[Any]

_Item = TypeVar("_Item")

#: The token id that fills up texts that are shorter than a task's length.
PADDING = 0


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextClassification(_Table):
    """Texts with one label each, as lines {"text": ..., "label": ...}."""

    kind: Literal["text-classification"]
    #: A tokenizer.json as the library tokenizers writes it.
    tokenizer: Path
    #: Tokens per text: longer ones are cut, shorter ones padded.
    length: int = Field(ge=1)
    #: In the order of the model's first output.
    labels: tuple[str, ...] = Field(min_length=2)
    #: Samples for calibration.
    train: Path
    #: Samples on which plans are compared; none of them may occur in train. Absent: the test's.
    validation: Path | None = None
    #: Samples for scores; none of them may occur in train.
    test: Path
    #: More texts of the application, as lines {"text": ...}; none of them may occur in test.
    unlabelled: Path | None = None
    #: Leave out the pieces that neither train nor unlabelled has, except what unseen words are
    #: cut into. The application must use the tokenizer that is written: its ids are others.
    trim_vocabulary: bool = False
    #: Share of the texts of train and unlabelled that have to fit whole: texts are then no longer
    #: than that takes, and the model's open dimensions follow. Absent: length as it is.
    trim_length: Fraction | None = Field(default=None, gt=0, le=1)
    metric: Literal["accuracy"] = "accuracy"


class Arrays(_Table):
    """Ready inputs, as arrays [N, *shape] in .npz files under the names of the inputs."""

    kind: Literal["arrays"]
    #: Samples for calibration.
    train: Path
    #: Samples on which plans are compared, with class indices as "labels". Absent: the test's.
    validation: Path | None = None
    #: Samples for scores, with class indices [N] as "labels"; absent: nothing is scored.
    test: Path | None = None
    metric: Literal["accuracy"] = "accuracy"


#: What labelled samples are for: plans are compared on the first, the result is known by the other.
Part = Literal["validation", "test"]

#: The [task] table of a project file.
Task = Annotated[TextClassification | Arrays, Field(discriminator="kind")]


def resolve_task(task: Task, folder: Path) -> Task:
    """Make the task's paths absolute; raises ConfigError for a file that is not there."""
    changed = {}
    for name, value in task:
        if not isinstance(value, Path):
            continue
        changed[name] = (folder / value).resolve()
        if not changed[name].is_file():
            raise ConfigError(
                f"task.{name} is not a file",
                why=f"{changed[name]} does not exist",
                fix="correct [task] in edgeopt.toml; paths are relative to it",
            )
    return task.model_copy(update=changed)


def has_classes(task: Task) -> bool:
    """Tell whether the first output of a task's model holds one score per class."""
    return isinstance(task, TextClassification) or task.test is not None


def samples(
    task: Task, count: int, *, inputs: Sequence[TensorSpec], seed: int = 0
) -> "dict[str, Array]":
    """Draw calibration samples: every input as [n, *shape], n at most count, in seeded order.

    Raises ConfigError when there are none, when they do not fit the inputs, or when a text is
    in the test set as well.
    """
    match task:
        case TextClassification():
            texts = [text for text, _ in read_texts(task.train, task.labels)]
            _refuse_leak(texts, task, task.train)
            return _encode(task, _draw(texts, count, seed), inputs)
        case Arrays():
            stored = _read_arrays(task.train, inputs)
            total = len(next(iter(stored.values())))
            chosen = _draw(range(total), count, seed)
            return {name: values[list(chosen)] for name, values in stored.items()}


def labelled(
    task: Task, count: int | None, *, inputs: Sequence[TensorSpec], part: Part = "test"
) -> "tuple[dict[str, Array], Array] | None":
    """Return the first count samples (None: all) of a part and their class indices [n].

    A task without samples for validation gives the test's. None when it has no labelled ones.
    """
    import numpy as np

    path = task.validation if part == "validation" and task.validation else task.test
    if path is None:
        return None
    match task:
        case TextClassification():
            pairs = read_texts(path, task.labels)[:count]
            indices = np.array([task.labels.index(label) for _, label in pairs])
            return _encode(task, [text for text, _ in pairs], inputs), indices
        case Arrays():
            stored = _read_arrays(path, inputs, extra="labels")
            classes = stored.pop("labels")[:count]
            return {name: values[:count] for name, values in stored.items()}, classes


def score(task: Task, outputs: "Sequence[Array]", labels: "Array") -> float:
    """Return the metric of outputs, each [n, *output shape], against class indices [n].

    accuracy: the share of samples whose largest value of the first output is at the label.
    NaN is never right.
    """
    import numpy as np

    assert task.metric == "accuracy"
    if not len(labels):
        raise ConfigError("there is nothing to score", why="no labelled samples were given")
    scores = np.asarray(outputs[0]).reshape(len(labels), -1).astype(np.float64)
    _check_classes(task, labels, scores.shape[1])
    valid = np.isfinite(scores).all(axis=1)
    return float(np.mean((scores.argmax(axis=1) == labels) & valid))


def _check_classes(task: Task, labels: "Array", classes: int) -> None:
    """Refuse labels that the model cannot give: a score of nothing right has nothing to lose."""
    named = len(task.labels) if isinstance(task, TextClassification) else classes
    if named != classes or labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(
            "the labels are not those of the model's first output",
            why=f"it has {classes} values a sample, and the task has "
            + (f"{named} labels" if named != classes else f"classes up to {labels.max()}"),
            fix="name one label per value in [task], in their order; class indices start at 0",
        )


def read_texts(path: Path, labels: Sequence[str] | None) -> list[tuple[str, str]]:
    """Read texts and labels, one JSON object a line; raises ConfigError with file and line.

    Where no labels are expected (None), they are empty.
    """
    pairs = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"cannot read {path}", why=f"it is not UTF-8: {error.reason}", fix="save it as UTF-8"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise _bad_line(path, number, str(error)) from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise _bad_line(path, number, "there is no text in it")
        label = "" if labels is None else str(record.get("label"))
        if labels is not None and label not in labels:
            raise _bad_line(path, number, f"the label {label!r} is not in task.labels")
        pairs.append((record["text"], label))
    if not pairs:
        raise ConfigError(
            f"{path} holds no samples",
            why="ranges calibrated on nothing, or scores of nothing, mean nothing",
            fix='add lines like {"text": "Who was Galileo ?", "label": "HUM"}',
        )
    return pairs


def _bad_line(path: Path, number: int, reason: str) -> ConfigError:
    return ConfigError(
        f"{path}:{number}: not a labelled text",
        why=reason,
        fix='write {"text": "Who was Galileo ?", "label": "HUM"}',
    )


def corpus(task: TextClassification) -> list[str]:
    """Return all texts that may decide what is kept of a model: none is for scores."""
    train = [text for text, _ in read_texts(task.train, task.labels)]
    _refuse_leak(train, task, task.train)
    if task.unlabelled is None:
        return train
    more = [text for text, _ in read_texts(task.unlabelled, None)]
    _refuse_leak(more, task, task.unlabelled)
    return train + more


def _refuse_leak(texts: Sequence[str], task: TextClassification, source: Path) -> None:
    """Refuse to learn anything from what will be scored: the score would be too good."""
    for path in filter(None, (task.validation, task.test)):
        scored = {" ".join(text.split()) for text, _ in read_texts(path, task.labels)}
        shared = [text for text in texts if " ".join(text.split()) in scored]
        if shared:
            raise ConfigError(
                f"{source.name} and {path.name} share {len(shared)} texts",
                why=f"a score on texts seen before is too good; one is {shared[0][:80]!r}",
                fix=f"remove them from {source.name}",
            )


def _draw(items: Sequence[_Item], count: int, seed: int) -> list[_Item]:
    """Draw count items, all of them when there are fewer, without repeats."""
    if count < 1:
        raise ConfigError("no calibration samples were asked for", fix="ask for at least one")
    generator = random.Random(seed)  # noqa: S311  (a sample, not a secret)
    return generator.sample(items, min(count, len(items)))


def _encode(
    task: TextClassification, texts: Sequence[str], inputs: Sequence[TensorSpec]
) -> "dict[str, Array]":
    """Turn texts into the token ids, masks and types that the inputs ask for by their names."""
    import numpy as np

    tokenizer = open_tokenizer(task.tokenizer)
    tokenizer.enable_truncation(task.length)
    tokenizer.enable_padding(length=task.length, pad_id=PADDING)
    encoded = tokenizer.encode_batch(list(texts))
    feeds = {}
    for spec in inputs:
        if spec.shape != (1, task.length):
            raise ConfigError(
                f"task.length is {task.length}, and the input {spec.name} is {spec.shape}",
                why="a text becomes one row of that many tokens",
                fix=f"set task.length, or add --shape {spec.name}=1x{task.length}; a model of one"
                " length cannot be trimmed to another",
            )
        rows = np.array([getattr(each, _part(spec.name)) for each in encoded])
        feeds[spec.name] = rows.reshape(-1, *spec.shape).astype(spec.dtype)
    return feeds


def open_tokenizer(path: Path) -> "Tokenizer":
    """Read a tokenizer.json; raises ConfigError."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(
            f"{path} is not a tokenizer",
            why=str(error),
            fix="save it with the library tokenizers, as tokenizer.json",
        ) from error


def name_ids(inputs: Sequence[TensorSpec]) -> str:
    """Return the one input that takes token ids; raises ConfigError."""
    found = [each.name for each in inputs if _part(each.name) == "ids"]
    if len(found) != 1:
        raise ConfigError(
            "the input that takes the token ids is not known",
            why=f"by their names these do: {', '.join(found) or 'none'}",
            fix="name the model's inputs input_ids, attention_mask and token_type_ids",
        )
    return found[0]


def _part(name: str) -> str:
    """Name the tokenizer's output for an input, from the names that exporters give."""
    if "mask" in name:
        return "attention_mask"
    if "type" in name or "segment" in name:
        return "type_ids"
    return "ids"


def _read_arrays(
    path: Path, inputs: Sequence[TensorSpec], *, extra: str | None = None
) -> "dict[str, Array]":
    """Read [N, *shape] for every input, and one more array [N]; raises ConfigError."""
    import numpy as np

    try:
        zipfile.ZipFile(path).close()  # np.load also takes a bare array and a pickle
        with np.load(path, allow_pickle=False) as file:
            stored: dict[str, Any] = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} is not an .npz file", why=str(error), fix="write it with numpy.savez"
        ) from error
    expected: Mapping[str, tuple[int, ...]] = {each.name: each.shape for each in inputs}
    expected = {**expected, extra: ()} if extra else expected
    lengths = set()
    for name, shape in expected.items():
        if name not in stored or stored[name].shape[1:] != shape:
            found = stored[name].shape if name in stored else "not there"
            raise ConfigError(
                f"{path} does not fit the model",
                why=f"{name!r} must be [N, {', '.join(map(str, shape))}] and is {found}",
                fix="store one array per input, under its name",
            )
        lengths.add(len(stored[name]))
    if len(lengths) != 1 or not lengths.pop():
        raise ConfigError(f"{path} holds no samples, or not as many of each input")
    types = {each.name: each.dtype for each in inputs}
    return {name: _cast(stored[name], types.get(name, "int64"), name, path) for name in expected}


def _cast(values: "Array", dtype: str, name: str, path: Path) -> "Array":
    """Change the width of an array's numbers, never their kind: 0.5 is no class, 7.0 no token."""
    import numpy as np

    reason = ""
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        reason = f"{name!r} must be {dtype} and is {values.dtype}"
    elif values.dtype.kind == "f" and not np.isfinite(values).all():
        reason = f"{name!r} holds values that are not finite numbers"
    if reason:
        raise ConfigError(
            f"{path} does not fit the model", why=reason, fix="store numbers that the model takes"
        )
    return values.astype(dtype)
