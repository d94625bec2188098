"""Lay out the example of images: Fashion-MNIST, and a small CNN that is trained on it."""

import gzip
import importlib.resources
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from edgeopt.errors import ConfigError
from edgeopt.example import layout
from edgeopt.example.layout import ExampleFacts
from edgeopt.store import Store, digest_file

if TYPE_CHECKING:
    from edgeopt.example.train_clothes import ImageRecipe

#: Where Debian's package dataset-fashion-mnist puts the files (Xiao et al. 2017, MIT licence).
DATA = Path("/usr/share/datasets/fashion-mnist")
#: The files as published by Zalando Research and packaged by Debian.
FILES: Mapping[str, str] = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}
INSTALL = "apt-get install dataset-fashion-mnist, or name the folder of its files: --data DIR"
#: Training images that the weights never see: plans are chosen on them.
VALIDATION = 2000
#: Training images that go into the project: calibration takes no more.
CALIBRATION = 4096
#: Bytes before the values of an idx file: magic number and count, of images height and width too.
_IMAGES, _LABELS = 16, 8

Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Images:
    """Standardized pixels [N, 1, 28, 28] and their classes [N]."""

    pixels: Floats
    labels: Classes

    def part(self, chosen: slice) -> "Images":
        """Return some of them."""
        return Images(self.pixels[chosen], self.labels[chosen])


class Trained(BaseModel):
    """Trained weights in a file, and the torch model's accuracy on the test images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    test_accuracy: float


def write_fashion(
    directory: Path,
    *,
    seed: int,
    store: Store,
    progress: Callable[[str], None],
    data: Path | None = None,
) -> ExampleFacts:
    """Write the project into directory, which is made; trains for some minutes on one core.

    The seed decides the weights and not the data. What it gave is kept in the store. Raises
    ConfigError when the data is not there or is not the published one.
    """
    train, test = read_images(data or DATA)
    validation, rest = train.part(slice(VALIDATION)), train.part(slice(VALIDATION, None))
    trained = train_once(rest, test, seed=seed, store=store, progress=progress)
    (directory / "data").mkdir(parents=True, exist_ok=True)
    package = importlib.resources.files("edgeopt.example")
    (directory / "clothes.py").write_bytes((package / "clothes.py").read_bytes())
    (directory / "edgeopt.toml").write_bytes((package / "fashion.toml").read_bytes())
    shutil.copyfile(trained.path, directory / "clothes.safetensors")
    calibration = rest.part(slice(CALIBRATION))
    parts = {"train": calibration, "validation": validation, "test": test}
    for name, part in parts.items():
        # One inference takes a batch of one.
        path = directory / "data" / f"{name}.npz"
        np.savez_compressed(path, pixels=part.pixels[:, None], labels=part.labels)
    return ExampleFacts(
        trained.test_accuracy,
        train=len(rest.labels),
        validation=len(validation.labels),
        test=len(test.labels),
    )


def read_images(folder: Path) -> tuple[Images, Images]:
    """Read training and test images; raises ConfigError when they are not the published ones."""
    from edgeopt.example.clothes import DEVIATION, MEAN

    layout.require_torch()
    for name, digest in FILES.items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(
                "the example's images are not installed", why=f"there is no {path}", fix=INSTALL
            )
        layout.check_digest(path, digest, INSTALL)

    def read(part: str) -> Images:
        grey = _values(folder / f"{part}-images-idx3-ubyte.gz", _IMAGES).reshape(-1, 1, 28, 28)
        pixels = (grey.astype(np.float32) / 255 - MEAN) / DEVIATION
        labels = _values(folder / f"{part}-labels-idx1-ubyte.gz", _LABELS)
        return Images(pixels.astype(np.float32), labels.astype(np.int64))

    return read("train"), read("t10k")


def _values(path: Path, start: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=start)


def train_once(
    train: Images,
    test: Images,
    *,
    seed: int,
    store: Store,
    progress: Callable[[str], None],
    recipe: "ImageRecipe | None" = None,
) -> Trained:
    """Return the weights that the recipe gives for a seed, trained at most once."""
    import torch

    from edgeopt.example import train_clothes

    recipe = recipe or train_clothes.ImageRecipe()
    pixels, labels, images, classes = map(
        torch.from_numpy, (train.pixels, train.labels, test.pixels, test.labels)
    )

    def run(folder: Path) -> Trained:
        made = train_clothes.fit_classifier(pixels, labels, recipe, seed=seed, progress=progress)
        path = folder / "clothes.safetensors"
        train_clothes.save_classifier(made, path)
        accuracy = train_clothes.measure_accuracy(made, images, classes)
        return Trained(path=path, test_accuracy=accuracy)

    key = [asdict(recipe), seed, dict(FILES), len(train.labels), len(test.labels)]
    # A change anywhere else in edgeopt is no reason to train again.
    here = Path(__file__)
    tools = {
        name: digest_file(here.with_name(name))
        for name in ("fashion.py", "clothes.py", "train_clothes.py")
    }
    tools["torch"] = metadata.version("torch")
    return store.stage("fashion", key, Trained, run, tools=tools).value
