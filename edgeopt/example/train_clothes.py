"""Train the classifier of clothes: on one machine the same seed gives the same bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeopt.example.clothes import Classifier
from edgeopt.example.finetune import one_thread


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """What decides the trained weights, besides the data and the seed."""

    epochs: int = 6
    batch: int = 128
    #: Of Adam at its highest: one cycle, up for three tenths of the steps (Smith 2018).
    rate: float = 3e-3


def fit_classifier(
    pixels: Tensor,
    labels: Tensor,
    recipe: ImageRecipe,
    *,
    seed: int,
    progress: Callable[[str], None],
) -> Classifier:
    """Train on images [N, 1, 28, 28] and class indices [N]; half of them are mirrored."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier()
        search = torch.optim.Adam(classifier.parameters(), lr=recipe.rate)
        steps = recipe.epochs * -(-len(pixels) // recipe.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(search, recipe.rate, total_steps=steps)
        for epoch in range(1, recipe.epochs + 1):
            losses = []
            for chosen in torch.randperm(len(pixels)).split(recipe.batch):
                images = pixels[chosen]
                mirrored = torch.rand(len(chosen)) < 0.5
                images[mirrored] = images[mirrored].flip(-1)
                loss = nn.functional.cross_entropy(classifier(images), labels[chosen])
                search.zero_grad()
                loss.backward()
                search.step()
                schedule.step()
                losses.append(float(loss.detach()))
            progress(f"epoch {epoch} of {recipe.epochs}: loss {np.mean(losses):.3f}")
    classifier.eval()
    return classifier


def measure_accuracy(classifier: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class has the highest score."""
    with torch.no_grad(), one_thread():
        right = sum(
            int((classifier(images).argmax(dim=1) == classes).sum())
            for images, classes in zip(pixels.split(500), labels.split(500), strict=True)
        )
    return right / len(labels)


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write all weights."""
    save_file({name: each.contiguous() for name, each in classifier.state_dict().items()}, path)
