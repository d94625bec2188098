"""Which axes of a node's tensors hold the same units: what is cut of one is cut of all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from edgeopt.model.graph import attribute

#: The unit that each place of an axis belongs to; -1: none of this group.
Units: TypeAlias = npt.NDArray[np.int64]
#: Axes, by tensor, that hold the same units.
Tie: TypeAlias = Sequence[tuple[str, int]]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

#: Operators that compute every value of their output from one value of each input.
_POINTWISE = {
    "Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "Div", "Dropout", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mul", "Neg",
    "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt",
    "Sub", "Sum", "Tanh", "Where",
}  # fmt: skip
_POOLS = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare",
}  # fmt: skip
#: The same values in the same order, in another shape.
RESHAPES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class Label:
    """The units along one axis of a tensor."""

    axis: int
    units: Units

    def same(self, other: "Label") -> bool:
        """Tell whether another label says the same."""
        return self.axis == other.axis and np.array_equal(self.units, other.units)


class Blocked(Exception):
    """Units that cannot be cut: what reads them needs all of them."""


class Coarser(Exception):
    """Units that can only be cut together: those that are linked."""

    def __init__(self, links: Sequence[Units]) -> None:
        super().__init__()
        self.links = links

    def merge(self, units: Units) -> Units:
        """Return the new unit of each place of an axis, numbered in their order."""
        owner = np.arange(int(units.max()) + 1)
        for link in self.links:
            joined = np.isin(owner, owner[link])
            owner[joined] = owner[joined].min()
        _, found = np.unique(owner[units], return_inverse=True)
        return found.astype(np.int64)


def spread(
    node: NodeProto,
    known: Mapping[str, Label],
    shapes: Shapes,
    axes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, Label]]:
    """Say what the labels of a node's tensors mean for the others.

    axes are the stored integers, by name. Raises Blocked and Coarser.
    """
    names = dict.fromkeys((*node.input, *node.output))
    for name in (each for each in names if each in known):
        label = known[name]
        if node.op_type in RESHAPES:
            yield from _through_reshape(node, name, label, shapes)
            continue
        if _moves_pieces(node, label.axis, shapes):
            yield from _through_pieces(node, name, known, shapes)
            continue
        found = False
        for tie in _ties(node, shapes, axes):
            if (name, label.axis) in tie:
                found = True
                yield from ((other, Label(axis, label.units)) for other, axis in tie)
        if not found:
            raise Blocked(f"{node.op_type} needs all of {name!r}")


def _ties(node: NodeProto, shapes: Shapes, axes: Mapping[str, tuple[int, ...]]) -> list[Tie]:
    kind = node.op_type
    if kind in _POINTWISE:
        return _pointwise(node, shapes)
    if kind in _POOLS:
        return [[(node.input[0], at), (node.output[0], at)] for at in (0, 1)]
    if kind in _REDUCTIONS:
        return _reduced(node, shapes, axes)
    rule = _RULES.get(kind)
    return [] if rule is None else rule(node, shapes)


def _pointwise(node: NodeProto, shapes: Shapes) -> list[Tie]:
    output = node.output[0]
    rank = len(shapes[output])
    ties: list[Tie] = []
    for axis, size in enumerate(shapes[output]):
        tie = [(output, axis)]
        for name in dict.fromkeys(each for each in node.input if each):
            place = axis - rank + len(shapes[name])
            if place >= 0 and shapes[name][place] == size:
                tie.append((name, place))
        ties.append(tie)
    return ties


def _reduced(node: NodeProto, shapes: Shapes, stored: Mapping[str, tuple[int, ...]]) -> list[Tie]:
    x, output = node.input[0], node.output[0]
    rank = len(shapes[x])
    given = stored.get(node.input[1], ()) if len(node.input) > 1 else _integers(node, "axes")
    gone = {axis % rank for axis in given}
    kept = [axis for axis in range(rank) if axis not in gone]
    if not gone:
        return []
    if attribute(node, "keepdims", 1):
        return [[(x, axis), (output, axis)] for axis in kept]
    return [[(x, axis), (output, at)] for at, axis in enumerate(kept)]


def _integers(node: NodeProto, name: str) -> tuple[int, ...]:
    for each in node.attribute:
        if each.name == name:
            return tuple(helper.get_attribute_value(each))
    return ()


def _matmul(node: NodeProto, shapes: Shapes) -> list[Tie]:
    (a, b), output = node.input, node.output[0]
    ranks = {name: len(shapes[name]) for name in (a, b, output)}
    if min(ranks[a], ranks[b]) < 2:
        return []
    ties: list[Tie] = [
        [(a, ranks[a] - 1), (b, ranks[b] - 2)],
        [(a, ranks[a] - 2), (output, ranks[output] - 2)],
        [(b, ranks[b] - 1), (output, ranks[output] - 1)],
    ]
    for axis in range(ranks[output] - 2):
        tie = [(output, axis)]
        for name in (a, b):
            place = axis - ranks[output] + ranks[name]
            if place >= 0 and shapes[name][place] == shapes[output][axis]:
                tie.append((name, place))
        ties.append(tie)
    return ties


def _gemm(node: NodeProto, shapes: Shapes) -> list[Tie]:
    a, b, output = node.input[0], node.input[1], node.output[0]
    turned_a, turned_b = attribute(node, "transA", 0), attribute(node, "transB", 0)
    columns = [(b, 1 - turned_b), (output, 1)]
    if len(node.input) > 2 and node.input[2]:
        shape = shapes[node.input[2]]
        if shape and shape[-1] == shapes[output][1]:
            columns.append((node.input[2], len(shape) - 1))
    return [[(a, 1 - turned_a), (b, turned_b)], [(a, turned_a), (output, 0)], columns]


def is_depthwise(node: NodeProto, shapes: Shapes) -> bool:
    """Tell whether every channel of a convolution has a filter of its own, and only one."""
    groups = attribute(node, "group", 1)
    return groups > 1 and groups == shapes[node.input[0]][1] == shapes[node.output[0]][1]


def _conv(node: NodeProto, shapes: Shapes) -> list[Tie]:
    x, weight, output = node.input[0], node.input[1], node.output[0]
    made: list[tuple[str, int]] = [(weight, 0), (output, 1)]
    if len(node.input) > 2 and node.input[2]:
        made.append((node.input[2], 0))
    rows = [(x, 0), (output, 0)]
    if attribute(node, "group", 1) == 1:
        return [[(x, 1), (weight, 1)], made, rows]
    return [[(x, 1), *made], rows] if is_depthwise(node, shapes) else [rows]


def _batch_norm(node: NodeProto, _shapes: Shapes) -> list[Tie]:
    x, output = node.input[0], node.output[0]
    return [[(x, 1), (output, 1), *((name, 0) for name in node.input[1:])], [(x, 0), (output, 0)]]


def _before_axis(node: NodeProto, shapes: Shapes) -> list[Tie]:
    """Tie the axes that a Softmax or a LayerNormalization does not sum over."""
    x, output = node.input[0], node.output[0]
    rank = len(shapes[x])
    axis = attribute(node, "axis", -1) % rank
    first = range(axis) if node.op_type == "LayerNormalization" else range(rank)
    return [[(x, at), (output, at)] for at in first if at != axis]


def _transpose(node: NodeProto, shapes: Shapes) -> list[Tie]:
    x, output = node.input[0], node.output[0]
    order = _integers(node, "perm") or tuple(range(len(shapes[x])))[::-1]
    return [[(x, axis), (output, at)] for at, axis in enumerate(order)]


def _gather(node: NodeProto, shapes: Shapes) -> list[Tie]:
    x, places, output = node.input[0], node.input[1], node.output[0]
    axis = attribute(node, "axis", 0) % len(shapes[x])
    more = len(shapes[places]) - 1
    others = (at for at in range(len(shapes[x])) if at != axis)
    return [[(x, at), (output, at if at < axis else at + more)] for at in others]


def _other_axes(node: NodeProto, shapes: Shapes) -> list[Tie]:
    """Tie the axes along which a Concat or a Split leaves tensors whole."""
    tensors = [*node.input, *node.output] if node.op_type == "Concat" else [
        node.input[0], *node.output
    ]  # fmt: skip
    rank = len(shapes[node.output[0]])
    axis = attribute(node, "axis", 0) % rank
    return [[(name, at) for name in tensors] for at in range(rank) if at != axis]


_RULES: Mapping[str, Callable[[NodeProto, Shapes], list[Tie]]] = {
    "BatchNormalization": _batch_norm,
    "Concat": _other_axes,
    "Conv": _conv,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _before_axis,
    "LogSoftmax": _before_axis,
    "MatMul": _matmul,
    "Softmax": _before_axis,
    "Split": _other_axes,
    "Transpose": _transpose,
}


def _moves_pieces(node: NodeProto, axis: int, shapes: Shapes) -> bool:
    if node.op_type not in ("Concat", "Split"):
        return False
    return axis == attribute(node, "axis", 0) % len(shapes[node.output[0]])


def _through_pieces(
    node: NodeProto, name: str, known: Mapping[str, Label], shapes: Shapes
) -> Iterator[tuple[str, Label]]:
    """Follow units along the axis that a Concat joins or a Split cuts."""
    label = known[name]
    whole = node.output[0] if node.op_type == "Concat" else node.input[0]
    parts = node.input if node.op_type == "Concat" else node.output
    axis, start = label.axis, 0
    for part in parts:
        size = shapes[part][axis]
        if name == whole:
            piece = label.units[start : start + size]
            if (piece >= 0).any():
                yield part, Label(axis, piece)
        elif part == name:
            # Of the other pieces this one says nothing.
            units = np.full(shapes[whole][axis], -1)
            if whole in known and known[whole].axis == axis:
                units = known[whole].units.copy()
            units[start : start + size] = label.units
            yield whole, Label(axis, units)
        start += size


def _through_reshape(
    node: NodeProto, name: str, label: Label, shapes: Shapes
) -> Iterator[tuple[str, Label]]:
    x, output = node.input[0], node.output[0]
    if name == x:
        yield output, _reshaped(label, shapes[x], shapes[output])
    elif name == output:
        yield x, _reshaped(label, shapes[output], shapes[x])


def _reshaped(label: Label, before: Sequence[int], after: Sequence[int]) -> Label:
    """Return where units lie when the same values have another shape."""
    first, last, start, end = _segment(label.axis, before, after)
    inside = [1] * (last - first)
    inside[label.axis - first] = -1
    grid = np.broadcast_to(label.units.reshape(inside), before[first:last]).reshape(
        after[start:end]
    )
    wide = [axis for axis in range(grid.ndim) if grid.shape[axis] > 1]
    for axis in wide:
        rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            return Label(start + axis, rows[:, 0].copy())
    for axis in wide:
        rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
        if _are_apart(rows):
            raise Coarser([np.unique(row) for row in rows if row[0] >= 0])
    raise Blocked("a Reshape mixes the units")


def _segment(axis: int, before: Sequence[int], after: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the fewest axes around one, and those of the other shape that hold their values."""
    first = start = 0
    while first < len(before):
        last, end = first + 1, start + 1
        ours, theirs = before[first], after[start]
        while ours != theirs:
            if ours < theirs:
                ours *= before[last]
                last += 1
            else:
                theirs *= after[end]
                end += 1
        if first <= axis < last:
            return first, last, start, end
        first, start = last, end
    raise AssertionError("an axis is outside its shape")


def _are_apart(rows: Units) -> bool:
    """Tell whether units of different rows are different ones, and no row mixes in others."""
    found = [np.unique(row) for row in rows if (row >= 0).any()]
    mixed = any(row[0] < 0 for row in found)
    apart = len(np.unique(np.concatenate(found))) == sum(map(len, found))
    return not mixed and apart and len(found) > 1
