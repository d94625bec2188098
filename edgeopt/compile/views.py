"""Reshapes and transposes as index arithmetic, so that kernels read through them without a copy."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import tvm
from tvm import relax, tirx

Index: TypeAlias = tirx.Expr
#: Finds what a variable is bound to; None for a parameter.
Lookup = Callable[[relax.Var], relax.Expr | None]

RESHAPES = ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten")


@dataclass(frozen=True, slots=True)
class Permute:
    """Axis i of the result is axis axes[i] of the source."""

    axes: tuple[int, ...]

    def source(self, index: Sequence[Index]) -> list[Index]:
        """Find the source's index of an element."""
        found = dict(zip(self.axes, index, strict=True))
        return [found[axis] for axis in range(len(self.axes))]


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements in the same order under another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def source(self, index: Sequence[Index]) -> list[Index]:
        """Find the source's index of an element, with as little division as the shapes allow."""
        found: list[Index] = [tirx.const(0, "int32")] * len(self.before)
        for before, after in matching_groups(self.before, self.after):
            flat = _flatten([index[axis] for axis in after], [self.after[axis] for axis in after])
            sizes = [self.before[axis] for axis in before]
            for axis, value in zip(before, _unflatten(flat, sizes), strict=True):
                found[axis] = value
        return found


Step = Permute | Reshape


@dataclass(frozen=True, slots=True)
class View:
    """A tensor and the steps from it, each with a scale that commutes with everything linear."""

    root: relax.Expr
    #: From the result back to the root.
    steps: tuple[Step, ...]
    scale: float

    def source(self, index: Sequence[Index]) -> list[Index]:
        """Find the root's index of an element of the view."""
        found = list(index)
        for step in self.steps:
            found = step.source(found)
        return found


def matching_groups(
    before: Sequence[int], after: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Pair up the smallest runs of axes with equal products; axes of length 1 are in none.

    >>> list(matching_groups((1, 32, 384), (32, 12, 32)))
    [([1], [0]), ([2], [1, 2])]
    """
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left:
        first, second = [left.pop(0)], [right.pop(0)]
        while (a := _product(before, first)) != (b := _product(after, second)):
            if a < b:
                first.append(left.pop(0))
            else:
                second.append(right.pop(0))
        yield first, second


def _product(shape: Sequence[int], axes: Sequence[int]) -> int:
    return int(np.prod([shape[axis] for axis in axes]))


def _flatten(index: Sequence[Index], sizes: Sequence[int]) -> Index:
    flat = index[0]
    for value, size in zip(index[1:], sizes[1:], strict=True):
        flat = flat * size + value
    return flat


def _unflatten(flat: Index, sizes: Sequence[int]) -> list[Index]:
    found: list[Index] = []
    for size in reversed(sizes[1:]):
        found.append(tirx.floormod(flat, size))
        flat = tirx.floordiv(flat, size)
    return [flat, *reversed(found)]


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """Read the fixed shape of a normalized expression."""
    return tuple(int(size) for size in expr.ty.shape)


def operator_of(expr: relax.Expr) -> str:
    """Name the operator of a call, or the packed function; "" for anything else."""
    if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.Op):
        return ""
    if expr.op.name == "relax.call_pure_packed":
        return str(expr.args[0].global_symbol)
    return str(expr.op.name)


def constant_of(expr: relax.Expr) -> np.ndarray | None:
    """Read a constant's value."""
    if isinstance(expr, tvm.ir.GenericConst) and isinstance(expr.value, tvm.runtime.Tensor):
        value: np.ndarray = expr.value.numpy()
        return value
    return None


def scalar_of(expr: relax.Expr) -> float | None:
    """Read a constant of one element."""
    value = constant_of(expr)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def inside_reshape(bound: relax.Expr) -> relax.Expr | None:
    """Find what a reshape was made of; None for anything else."""
    return bound.args[0] if operator_of(bound) in RESHAPES else None


def inside_permute(bound: relax.Expr) -> relax.Expr | None:
    """Find what a transpose was made of; None for anything else."""
    return bound.args[0] if operator_of(bound) == "relax.permute_dims" else None


def permutation_of(bound: relax.Call) -> tuple[int, ...]:
    """Read the axes of a transpose."""
    rank = len(shape_of(bound))
    axes = bound.attrs.axes or range(rank - 1, -1, -1)
    return tuple(int(axis) % rank for axis in axes)


def look_through(expr: relax.Expr, lookup: Lookup, *, scales: bool = True) -> View:
    """Follow reshapes, transposes and, if asked, multiplications by one number to their source."""
    steps: list[Step] = []
    scale = 1.0
    while isinstance(expr, relax.Var):
        bound = lookup(expr)
        step = _step_of(bound)
        if bound is not None and step is not None:
            steps.append(step)
            expr = bound.args[0]
            continue
        scaled = _scaled(bound) if scales else None
        if scaled is None:
            break
        expr, factor = scaled
        scale *= factor
    return View(expr, tuple(steps), scale)


def _step_of(bound: relax.Expr) -> Step | None:
    name = operator_of(bound)
    if name in RESHAPES:
        return Reshape(shape_of(bound.args[0]), shape_of(bound))
    if name == "relax.permute_dims":
        return Permute(permutation_of(bound))
    return None


def _scaled(bound: relax.Expr) -> tuple[relax.Expr, float] | None:
    """Recognise x * c, c * x and x / c with one float32 number c that leaves the shape alone."""
    name = operator_of(bound)
    if name not in ("relax.multiply", "relax.divide") or bound.ty.dtype.dtype != "float32":
        return None
    pairs = [(bound.args[0], bound.args[1])]
    if name == "relax.multiply":
        pairs.append((bound.args[1], bound.args[0]))
    for value, other in pairs:
        number = scalar_of(other)
        if number is not None and shape_of(value) == shape_of(bound):
            return value, number if name == "relax.multiply" else 1.0 / number
    return None
