"""A classifier of clothes: two convolutions and two matrices over 28 x 28 grey pixels.

What edgeopt.toml names is `build`: it returns the torch module and an example input, from which
edgeopt exports ONNX. The weights are read from a file beside this one.
"""
# mypy: disable-error-code="misc"

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
#: Mean and deviation of all pixels of the training images, from 0 to 1.
MEAN, DEVIATION = 0.2860, 0.3530


class Classifier(nn.Module):
    """Images [N, 1, 28, 28], standardized, to the scores of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * 7 * 7, 256)
        self.head = nn.Linear(256, len(LABELS))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return scores [N, 10]."""
        x = nn.functional.max_pool2d(self.first(pixels).relu(), 2)
        x = nn.functional.max_pool2d(self.second(x).relu(), 2)
        scores: Tensor = self.head(self.hidden(x.flatten(1)).relu())
        return scores


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the trained classifier, and one example of its input."""
    classifier = Classifier()
    classifier.load_state_dict(load_file(Path(__file__).with_name("clothes.safetensors")))
    return classifier.eval(), {"pixels": torch.zeros(1, 1, 28, 28)}
