"""Torch counterparts of ONNX operators that move values, and of those that reduce axes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.model.torch_operators import Call, Compute, Operand


def _reshape(call: Call, x: Tensor, _shape: Tensor) -> Tensor:
    wanted = call.integers(1) or ()
    if not call.get("allowzero", 0):
        wanted = tuple(x.shape[at] if each == 0 else each for at, each in enumerate(wanted))
    return x.reshape(wanted)


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", list(range(x.ndim))[::-1]))


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, x.numel() // rows)


def _squeeze(call: Call, x: Tensor, *_axes: Tensor) -> Tensor:
    axes = call.integers(1, "axes")
    if axes is None:
        axes = tuple(at for at, size in enumerate(x.shape) if size == 1)
    return x.squeeze(tuple(axes))


def _unsqueeze(call: Call, x: Tensor, *_axes: Tensor) -> Tensor:
    axes = call.integers(1, "axes") or ()
    rank = x.ndim + len(axes)
    for axis in sorted(each % rank for each in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(call: Call, x: Tensor, _shape: Tensor) -> Tensor:
    return x.broadcast_to(torch.broadcast_shapes(x.shape, call.integers(1) or ()))


def _concat(call: Call, *given: Tensor) -> Tensor:
    return torch.cat(given, call.attributes["axis"])


def _split(call: Call, x: Tensor, *_sizes: Tensor) -> tuple[Tensor, ...]:
    axis = call.get("axis", 0)
    sizes = call.integers(1, "split")
    if sizes is None:
        count = len(call.node.output)
        # The last piece is the smaller one where they cannot be equal.
        return tuple(torch.split(x, -(-x.shape[axis] // count), axis))
    return tuple(torch.split(x, list(sizes), axis))


def _slice(call: Call, x: Tensor, *_ranges: Tensor) -> Tensor:
    starts, ends = call.integers(1) or (), call.integers(2) or ()
    axes = call.integers(3) or tuple(range(len(starts)))
    steps = call.integers(4) or (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = range(x.shape[axis])[slice_of(start, end, step)]
        if step == 1:
            x = x.narrow(axis, chosen.start if len(chosen) else 0, len(chosen))
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


def slice_of(start: int, end: int, step: int) -> slice:
    """Return Python's slice for ONNX's: going backwards, an end before the first is no end."""
    return slice(start, None if step < 0 and end <= -(2**31) + 1 else end, step)


def _gather(call: Call, x: Tensor, places: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    return x[(slice(None),) * axis + (places,)]


def _pad(call: Call, x: Tensor, _pads: Tensor, value: Operand = None, *_axes: Tensor) -> Tensor:
    if call.text("mode", "constant") != "constant":
        raise call.refusal("it repeats values of the tensor instead of a constant")
    given = call.integers(1, "pads") or ()
    axes = call.integers(3) or tuple(range(x.ndim))
    pads = [0] * (2 * x.ndim)
    for at, axis in enumerate(axes):
        # Torch begins with the last axis.
        place = 2 * (x.ndim - 1 - axis % x.ndim)
        pads[place], pads[place + 1] = given[at], given[at + len(axes)]
    stored = call.stored.get(2)
    if value is not None and stored is None:
        raise call.refusal("what it fills with is computed")
    return functional.pad(x, pads, value=0 if stored is None else stored.item())


def _reduced(function: Any) -> Compute:
    """Return the counterpart of a reduction of axes, none of which means all or nothing."""

    def compute(call: Call, x: Tensor, *_axes: Tensor) -> Tensor:
        axes = call.integers(1, "axes")
        if not axes:
            if call.get("noop_with_empty_axes", 0):
                return x
            axes = tuple(range(x.ndim))
        return function(x, axes, bool(call.get("keepdims", 1)))

    return compute


def _norm_of_squares(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.square().sum(axes, keep).sqrt()


SHAPES: Mapping[str, Compute] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "ReduceL1": _reduced(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduced(_norm_of_squares),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSum": _reduced(torch.sum),
    "ReduceSumSquare": _reduced(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
