"""The length of texts that a task's corpus needs: every token of padding costs a row of work."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgeopt.task import TextClassification, corpus, open_tokenizer


@dataclass(frozen=True, slots=True)
class Shortened:
    """A task whose texts are as long as its corpus needs, and what that is in a sentence."""

    task: TextClassification
    #: Shapes of inputs that said the length before.
    shapes: Mapping[str, tuple[int, ...]]
    remark: str


def trim_length(task: TextClassification, shapes: Mapping[str, tuple[int, ...]]) -> Shortened:
    """Shorten texts to the fewest tokens that hold a share of the corpus whole.

    shapes are those given for inputs: [1, tokens] follow the length. Texts that are scored choose
    nothing; longer ones are cut, as they are at any length.
    """
    assert task.trim_length is not None
    lengths = count_tokens(task)
    length = min(shortest(lengths, task.trim_length), task.length)
    whole = sum(each <= length for each in lengths)
    remark = (
        f"length {task.length} -> {length} tokens: {whole:,} of {len(lengths):,} texts fit whole"
    )
    moved = {
        name: (1, length) if shape == (1, task.length) else shape for name, shape in shapes.items()
    }
    made = task.model_copy(update={"length": length, "trim_length": None})
    return Shortened(made, moved, remark)


def count_tokens(task: TextClassification) -> list[int]:
    """Count the tokens of each text of the corpus, those that the tokenizer adds included."""
    tokenizer = open_tokenizer(task.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(each.ids) for each in tokenizer.encode_batch(corpus(task))]


def shortest(lengths: list[int], share: float) -> int:
    """Return the least length that at least a share of the texts is within; 1 at least.

    >>> shortest([3, 9, 4, 5], 0.75), shortest([3, 9, 4, 5], 1.0)
    (5, 9)
    """
    # A share is a decimal number: what rounding adds to a product must not ask for one more text.
    wanted = math.ceil(share * len(lengths) - 1e-9)
    return max(sorted(lengths)[max(wanted, 1) - 1], 1)
