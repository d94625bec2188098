"""A model without the values of its weights: what it would need, at the cost of no rounding."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.artifact import Model
from edgeopt.model.skim import skim_model
from edgeopt.store import digest_file


def hollow_model(
    model: Model,
    names: Sequence[str],
    directory: Path,
    *,
    values: bool = False,
    kept: Collection[str] = (),
) -> Model:
    """Write a model without the values of some weights, for no size depends on them.

    With values these are zeros, and the model can be compiled. kept: weights that keep their
    values, as where their zeros are decides what storing them without takes.
    """
    loaded = onnx.load(model.path) if values or kept else skim_model(model.path)
    for tensor in loaded.graph.initializer:
        if tensor.name in kept:
            continue
        if tensor.name in names and values:
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
        elif tensor.name in names:
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / "hollow.onnx"
    onnx.save_model(loaded, path)
    return model.model_copy(update={"path": path, "sha256": digest_file(path)})
