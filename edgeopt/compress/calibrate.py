"""Ranges of activations, seen on calibration samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from edgeopt.artifact import Range
from edgeopt.errors import ConfigError, ModelError
from edgeopt.model.oracle import Array, open_session

#: Share of the values of a tensor that its range must hold. On the example, mean accuracy of three
#: calibrations: all of them 0.843, this 0.845, 0.9999 0.843, 0.999 0.783 (float32: 0.849).
KEPT = 0.99999
_BINS = 4096


def calibrate(
    model: onnx.ModelProto, tensors: Sequence[str], samples: Mapping[str, Array], directory: Path
) -> tuple[Range, ...]:
    """Return the range of each tensor over all samples, inputs as [S, *shape].

    The range is cut on both sides so that it holds a share of KEPT of the values.
    """
    count = len(next(iter(samples.values()), ()))
    if not count:
        raise ConfigError(
            "there are no calibration samples",
            why="int8-static needs the ranges of activations on real inputs",
            fix="name some in [task], or use a profile without int8-static",
        )
    path = directory / "calibrate.onnx"
    _expose(model, tensors, path)
    session = open_session(path)
    limits = np.array([[np.inf, -np.inf]] * len(tensors))
    counts = np.zeros((len(tensors), _BINS))
    for first_pass in (True, False):
        for index in range(count):
            feeds = {name: values[index] for name, values in samples.items()}
            for place, values in enumerate(session.run(list(tensors), feeds)):
                if first_pass:
                    limits[place] = _widened(limits[place], values, tensors[place])
                else:
                    counts[place] += np.histogram(values, _BINS, tuple(limits[place]))[0]
    path.unlink()
    return tuple(_cut(name, limits[place], counts[place]) for place, name in enumerate(tensors))


def _expose(model: onnx.ModelProto, tensors: Sequence[str], path: Path) -> None:
    """Write a copy of the model whose outputs are the given tensors."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    for name in tensors:
        exposed.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    onnx.save_model(exposed, path)


def _widened(limits: Array, values: Array, name: str) -> Array:
    """Return the limits that hold the values as well."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise ModelError(
            f"the activation {name!r} is not finite on a calibration sample",
            why="a range with infinity or NaN quantizes everything to one value",
            fix="check the model and the samples in onnxruntime",
        )
    return np.array([min(limits[0], low), max(limits[1], high)])


def _cut(name: str, limits: Array, counts: Array) -> Range:
    """Cut both tails of a histogram where they hold (1 - KEPT) / 2 of the values each."""
    low, high = float(limits[0]), float(limits[1])
    share = np.cumsum(counts) / counts.sum()
    edges = np.linspace(low, high, _BINS + 1)
    tail = (1 - KEPT) / 2
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1 - tail, side="left"))
    # float32: what the model's own arithmetic can tell apart.
    return Range(
        tensor=name,
        low=float(np.float32(edges[min(first, _BINS - 1)])),
        high=float(np.float32(edges[min(last, _BINS - 1) + 1])),
    )
