"""Fine-tune the question classifier: on one machine the same seed gives the same bytes."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgeopt.example.questions import LABELS, LENGTH, Classifier, load_encoder

#: Batches among which texts are sorted by length: enough to pad little, few enough to stay mixed.
BUCKET = 16


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the trained weights, besides the data, the first weights and the seed."""

    epochs: int = 3
    batch: int = 32
    #: Of AdamW: rises over the first tenth of the steps, then falls in a line to zero.
    rate: float = 1.5e-4
    decay: float = 0.01


@dataclass(frozen=True, slots=True)
class Encoded:
    """Labelled texts as token ids of their own lengths, and class indices."""

    rows: list[list[int]]
    classes: list[int]

    def batch(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids and mask [N, longest], and classes [N]; the token [PAD] has the id 0."""
        rows = [self.rows[index] for index in chosen]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids, mask, torch.tensor([self.classes[index] for index in chosen])


def encode(texts: Sequence[tuple[str, str]], tokenizer: Path) -> Encoded:
    """Turn (text, label) pairs into ids and class indices."""
    loaded = Tokenizer.from_file(str(tokenizer))
    loaded.no_padding()
    loaded.enable_truncation(LENGTH)
    rows = [each.ids for each in loaded.encode_batch([text for text, _ in texts])]
    return Encoded(rows, [LABELS.index(label) for _, label in texts])


def fit_classifier(
    data: Encoded, recipe: Recipe, *, seed: int, progress: Callable[[str], None]
) -> Classifier:
    """Train all weights but the word embeddings.

    Those are half of the model, and only the few words that occur here would learn.
    """
    classifier = start_classifier(seed)
    trained = [each for each in classifier.parameters() if each.requires_grad]
    search = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=recipe.decay)
    steps = recipe.epochs * -(-len(data.rows) // recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(search, lambda step: share_of_rate(step, steps))
    order = random.Random(seed)  # noqa: S311  (an order, not a secret)
    with one_thread():
        for epoch in range(1, recipe.epochs + 1):
            losses = []
            for chosen in draw_batches(list(map(len, data.rows)), recipe.batch, order):
                ids, mask, classes = data.batch(chosen)
                loss = nn.functional.cross_entropy(classifier(ids, mask), classes)
                search.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                search.step()
                schedule.step()
                losses.append(float(loss.detach()))
            progress(f"epoch {epoch} of {recipe.epochs}: loss {sum(losses) / len(losses):.3f}")
    classifier.eval()
    return classifier


def start_classifier(seed: int) -> Classifier:
    """Join the published encoder, its word embeddings frozen, and a head of random weights."""
    classifier = Classifier()
    classifier.encoder = load_encoder()
    classifier.encoder.words.weight.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(classifier.head.weight, std=0.02, generator=generator)
    classifier.train()
    return classifier


def draw_batches(lengths: Sequence[int], size: int, order: random.Random) -> list[list[int]]:
    """Part the indices into batches of about equal length, in random order, each index once."""
    indices = list(range(len(lengths)))
    order.shuffle(indices)
    pool = size * BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(indices), pool):
        near = sorted(indices[start : start + pool], key=lambda index: lengths[index])
        batches.extend(near[at : at + size] for at in range(0, len(near), size))
    order.shuffle(batches)
    return batches


def share_of_rate(step: int, steps: int) -> float:
    """Return what share of the learning rate a step has.

    >>> [share_of_rate(step, 100) for step in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.011111111111111112]
    """
    warmup = max(1, steps // 10)
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def measure_accuracy(classifier: Classifier, data: Encoded) -> float:
    """Return the share of texts whose class has the highest score."""
    indices = sorted(range(len(data.rows)), key=lambda index: len(data.rows[index]))
    right = 0
    with torch.no_grad(), one_thread():
        for start in range(0, len(indices), 64):
            ids, mask, classes = data.batch(indices[start : start + 64])
            right += int((classifier(ids, mask).argmax(dim=1) == classes).sum())
    return right / len(indices)


def save_tuned(classifier: Classifier, path: Path) -> None:
    """Write all weights but the word embeddings, which are those that are installed."""
    frozen = {name for name, each in classifier.named_parameters() if not each.requires_grad}
    state = classifier.state_dict()
    save_file({name: state[name].contiguous() for name in state if name not in frozen}, path)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: how sums are parted among threads changes their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
