"""Ranges of activations, seen on calibration samples."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import onnx

from edgeopt.artifact import Range
from edgeopt.choice import RangeRule
from edgeopt.errors import ConfigError, ModelError
from edgeopt.model.oracle import Array, open_session

#: Share of the values of a tensor that its range must hold. On the example, mean accuracy of three
#: calibrations: all of them 0.843, this 0.845, 0.9999 0.843, 0.999 0.783 (float32: 0.849).
KEPT = 0.99999
_BINS = 4096
#: Samples that are looked at, at most.
MOST_SAMPLES = 128
#: Steps in which a range is shortened from either side, and the largest code.
_TRIES, _CODES = 20, 255


def calibrate(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    samples: Mapping[str, Array],
    directory: Path,
    rule: RangeRule = "percentile",
) -> tuple[Range, ...]:
    """Return the range of each tensor over all samples, inputs as [S, *shape], by a rule.

    percentile: the range is cut on both sides so that it holds a share of KEPT of the values.
    """
    count = min(len(next(iter(samples.values()), ())), MOST_SAMPLES)
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
    return tuple(
        _range(name, *choose_range(limits[place], counts[place], rule))
        for place, name in enumerate(tensors)
    )


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


def choose_range(limits: Array, counts: Array, rule: RangeRule) -> tuple[float, float]:
    """Return the ends of a range for values that lie between limits in a histogram of counts."""
    edges = np.linspace(float(limits[0]), float(limits[1]), len(counts) + 1)
    match rule:
        case "minmax":
            return float(limits[0]), float(limits[1])
        case "percentile":
            return _cut(edges, counts)
        case "mse":
            return _search(edges, counts, _squared_error)
        case "entropy":
            return _search(edges, counts, _divergence)
        case _:
            assert_never(rule)


def _range(name: str, low: float, high: float) -> Range:
    # float32: what the model's own arithmetic can tell apart.
    return Range(tensor=name, low=float(np.float32(low)), high=float(np.float32(high)))


def _cut(edges: Array, counts: Array) -> tuple[float, float]:
    """Cut both tails of a histogram where they hold (1 - KEPT) / 2 of the values each."""
    share = np.cumsum(counts) / counts.sum()
    tail = (1 - KEPT) / 2
    first = int(np.searchsorted(share, tail, side="right"))
    last = int(np.searchsorted(share, 1 - tail, side="left"))
    return float(edges[min(first, len(counts) - 1)]), float(edges[min(last, len(counts) - 1) + 1])


def _search(
    edges: Array, counts: Array, cost: Callable[[Array, Array, float, float], float]
) -> tuple[float, float]:
    """Shorten the range from either side, in steps of 1 / _TRIES, while that lowers a cost."""
    low, high = float(edges[0]), float(edges[-1])
    centres, best = (edges[1:] + edges[:-1]) / 2, np.inf
    found = low, high
    # Zero is always in the range: it is cut towards it, or not at all on the side without values.
    for up in range(_TRIES):
        for down in range(_TRIES):
            ends = low * (1 - down / _TRIES), high * (1 - up / _TRIES)
            if (low >= 0 and down) or (high <= 0 and up) or ends[1] <= ends[0]:
                continue
            now = cost(centres, counts, *ends)
            if now < best:
                best, found = now, ends
    return found


def _coded(centres: Array, low: float, high: float) -> Array:
    """Return what 8 bits make of values: their codes' numbers."""
    scale = (max(high, 0.0) - min(low, 0.0)) / _CODES
    zero = np.rint(-min(low, 0.0) / scale)
    coded: Array = (np.clip(np.rint(centres / scale) + zero, 0, _CODES) - zero) * scale
    return coded


def _squared_error(centres: Array, counts: Array, low: float, high: float) -> float:
    return float((counts * np.square(centres - _coded(centres, low, high))).sum())


def _divergence(centres: Array, counts: Array, low: float, high: float) -> float:
    """Return the divergence of codes' histogram from that of the values, clipped ones at its ends.

    As TensorRT does (Migacz 2017, 8-bit inference with TensorRT, GTC): each code's count is spread
    evenly over the bins that it stands for and that hold values.
    """
    inside = (centres >= low) & (centres <= high)
    if not counts[inside].any():
        return np.inf
    wanted = np.where(inside, counts, 0.0)
    places = np.flatnonzero(inside)
    wanted[places[0]] += counts[: places[0]].sum()
    wanted[places[-1]] += counts[places[-1] + 1 :].sum()
    _, code = np.unique(_coded(centres[inside], low, high), return_inverse=True)
    filled = counts[inside] > 0
    share = np.bincount(code, counts[inside]) / np.maximum(np.bincount(code, filled), 1)
    spread = np.where(filled, share[code], 0.0)
    p, q = wanted[inside] / wanted.sum(), spread / spread.sum()
    # A clipped value that no code's bin holds costs as much as one in a million.
    return float((p[p > 0] * np.log(p[p > 0] / np.maximum(q[p > 0], 1e-6))).sum())
