"""The trim stage: a model and a task in, both with the shorter vocabulary out."""

from pathlib import Path

from edgeopt.artifact import Fact, Model, Vocabulary
from edgeopt.store import digest_file
from edgeopt.task import PADDING, TextClassification, corpus, name_ids, open_tokenizer
from edgeopt.trim.table import trim_tables
from edgeopt.trim.tokenizer import trim_tokenizer


class Trimmed(Fact):
    """A model whose tables have only the rows of the pieces that are left, and its tokenizer."""

    model: Model
    vocabulary: Vocabulary


def trim_vocabulary(model: Model, task: TextClassification, *, directory: Path) -> Trimmed:
    """Write directory/tokenizer.json and directory/trimmed.onnx, for the task's own texts.

    No test text is read but to refuse those that occur in the others. Raises ConfigError for a
    tokenizer, and ModelError for a model, that cannot be trimmed.
    """
    tokenizer = open_tokenizer(task.tokenizer)
    short = trim_tokenizer(tokenizer, corpus(task), padding=PADDING)
    trimmed = trim_tables(model, name_ids(model.inputs), short.kept, directory=directory)
    path = directory.resolve() / "tokenizer.json"
    path.write_text(short.text, encoding="utf-8")
    return Trimmed(
        model=trimmed,
        vocabulary=Vocabulary(
            tokenizer=path,
            sha256=digest_file(path),
            size=path.stat().st_size,
            before=short.before,
            after=len(short.kept),
        ),
    )
