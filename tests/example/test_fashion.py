"""The example of images: published data or a refusal, and weights that a seed decides."""

from pathlib import Path

import pytest
import torch

from edgeopt.errors import ConfigError
from edgeopt.example.fashion import FILES, read_images
from edgeopt.example.train_clothes import ImageRecipe, fit_classifier, save_classifier


def test_images_that_are_not_there_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"apt-get install dataset-fashion-mnist"):
        read_images(tmp_path)


def test_images_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(ConfigError, match="is not the published file"):
        read_images(tmp_path)


def trained(folder: Path, seed: int) -> bytes:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(64, 1, 28, 28, generator=generator)
    labels = torch.arange(64) % 10
    recipe = ImageRecipe(epochs=1, batch=16)
    lines: list[str] = []
    made = fit_classifier(pixels, labels, recipe, seed=seed, progress=lines.append)
    assert len(lines) == 1
    save_classifier(made, folder / f"{seed}.safetensors")
    return (folder / f"{seed}.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first = trained(tmp_path, 0)
    assert trained(tmp_path, 0) == first
    assert trained(tmp_path, 1) != first
