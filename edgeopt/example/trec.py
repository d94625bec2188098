"""Lay out the fine-tuned example: the same questions, and an encoder that was trained on them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from edgeopt.example import layout
from edgeopt.example.layout import ExampleFacts, Question
from edgeopt.store import Store, digest_file

if TYPE_CHECKING:
    from edgeopt.example.finetune import Recipe

#: Share of the training questions that the weights never see: plans are chosen on them.
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Parts:
    """The questions, each in one part."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]

    def __iter__(self) -> Iterator[list[Question]]:
        return iter((self.train, self.validation, self.test))


class Tuned(BaseModel):
    """Trained weights in a file, all but the word embeddings; accuracies of the torch model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    validation_accuracy: float
    test_accuracy: float


def write_trec(
    directory: Path, *, seed: int, store: Store, progress: Callable[[str], None]
) -> ExampleFacts:
    """Write the project into directory, which is made; trains for some minutes on one core.

    The seed decides the weights and not the data. What it gave is kept in the store. Raises
    ConfigError when a package is missing or is not the published one.
    """
    parts = split_parts(layout.published_questions())
    tuned = fine_tune(parts, seed=seed, store=store, progress=progress)
    return write_tuned(directory, parts, tuned)


def write_tuned(directory: Path, parts: Parts, tuned: Tuned) -> ExampleFacts:
    """Write the project of weights that are trained."""
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    layout.write_project(directory, "trec.toml", named)
    shutil.copyfile(tuned.path, directory / "tuned.safetensors")
    sizes = {name: len(part) for name, part in named.items()}
    return ExampleFacts(tuned.test_accuracy, **sizes)


def split_parts(questions: Sequence[Question]) -> Parts:
    """Split into train, validation and test; the test is that of the example questions."""
    rest, test = layout.split_questions(questions, seed=0)
    train, validation = layout.split_questions(rest, seed=0, share=VALIDATION_SHARE)
    return Parts(train, validation, test)


def fine_tune(
    parts: Parts,
    *,
    seed: int,
    store: Store,
    progress: Callable[[str], None],
    recipe: "Recipe | None" = None,
) -> Tuned:
    """Return the weights that the recipe gives for a seed, trained at most once."""
    layout.require_torch()
    from edgeopt.example import finetune

    tokenizer = layout.published_weights().with_name("tokenizer.json")
    recipe = recipe or finetune.Recipe()
    train, validation, test = (
        finetune.encode([(each.text, each.label) for each in part], tokenizer) for part in parts
    )

    def run(folder: Path) -> Tuned:
        classifier = finetune.fit_classifier(train, recipe, seed=seed, progress=progress)
        path = folder / "tuned.safetensors"
        finetune.save_tuned(classifier, path)
        return Tuned(
            path=path,
            validation_accuracy=finetune.measure_accuracy(classifier, validation),
            test_accuracy=finetune.measure_accuracy(classifier, test),
        )

    data = [[asdict(each) for each in part] for part in parts]
    key = [asdict(recipe), seed, layout.WEIGHTS_SHA256, data]
    # A change anywhere else in edgeopt is no reason to train again.
    here = Path(__file__)
    tools = {name: digest_file(here.with_name(name)) for name in ("finetune.py", "questions.py")}
    tools |= {name: metadata.version(name) for name in ("tokenizers", "torch")}
    return store.stage("trec", key, Tuned, run, tools=tools).value
