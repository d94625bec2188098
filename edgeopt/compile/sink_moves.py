"""Operators that move whole slices, made on what is under a transpose.

Concat, Split, Slice and Pad name axes; under a transpose the same slices lie along other axes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax

from edgeopt.compile.site import Site
from edgeopt.compile.views import inside_permute, operator_of, permutation_of

Axes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sunk:
    """A call on what is under the views, and how to view its result as the original's."""

    call: relax.Call
    restore: Callable[[relax.Expr], relax.Expr]


def sink_move(site: Site, call: relax.Call) -> Sunk | None:
    """Rewrite a call whose first operand, or half of its operands, are transposed."""
    rewritten = MOVES[operator_of(call)](site, call)
    if rewritten is None:
        return None
    moved, axes = rewritten
    return Sunk(site.builder.normalize(moved), lambda result: _restore(site, result, axes))


def _restore(site: Site, result: relax.Expr, axes: Axes) -> relax.Expr:
    """Transpose a result back, each part of it if there are several."""
    if not isinstance(result.ty, relax.TupleType):
        return site.permute(result, axes)
    count = len(result.ty.fields)
    parts = [site.emit(relax.TupleGetItem(result, i)) for i in range(count)]
    return relax.Tuple([site.permute(part, axes) for part in parts])


def _under(site: Site, expr: relax.Expr) -> tuple[relax.Expr, Axes] | None:
    bound = site.bound(expr)
    inner = inside_permute(bound)
    return None if inner is None else (inner, permutation_of(bound))


def _concat(site: Site, call: relax.Call) -> tuple[relax.Call, Axes] | None:
    operands = call.args[0]
    operands = site.bound(operands) if isinstance(operands, relax.Var) else operands
    if not isinstance(operands, relax.Tuple) or call.attrs.axis is None:
        return None
    fields = list(operands.fields)
    found = [each for each in (_under(site, field) for field in fields) if each is not None]
    # Those that are not transposed have to be, once each.
    if not found or 2 * len(found) < len(fields):
        return None
    axes = found[0][1]
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    moved = [site.permute(field, inverse) for field in fields]
    return relax.op.concat(moved, axes[int(call.attrs.axis) % len(axes)]), axes


def _split(site: Site, call: relax.Call) -> tuple[relax.Call, Axes] | None:
    found = _under(site, call.args[0])
    if found is None:
        return None
    inner, axes = found
    sections = call.attrs.indices_or_sections
    places = int(sections) if not hasattr(sections, "__len__") else [int(each) for each in sections]
    return relax.op.split(inner, places, axes[int(call.attrs.axis) % len(axes)]), axes


def _slice(site: Site, call: relax.Call) -> tuple[relax.Call, Axes] | None:
    found = _under(site, call.args[0])
    if found is None:
        return None
    inner, axes = found
    named, *limits = call.args[1:]
    moved = [axes[int(_number(axis)) % len(axes)] for axis in named.fields]
    numbers = [[_number(value) for value in each.fields] for each in limits]
    return relax.op.strided_slice(inner, moved, *numbers), axes


def _number(value: relax.Expr) -> int:
    return int(getattr(value, "value", value))


def _pad(site: Site, call: relax.Call) -> tuple[relax.Call, Axes] | None:
    found = _under(site, call.args[0])
    if found is None or str(call.attrs.pad_mode) != "constant":
        return None
    inner, axes = found
    widths = [int(each) for each in call.attrs.pad_width]
    moved = [0] * len(widths)
    for place, axis in enumerate(axes):
        moved[2 * axis : 2 * axis + 2] = widths[2 * place : 2 * place + 2]
    return relax.op.nn.pad(inner, moved, pad_value=float(call.attrs.pad_value)), axes


#: How each operator is made on the operand of a transpose, with the axes that restore its result.
MOVES: dict[str, Callable[[Site, relax.Call], tuple[relax.Call, Axes] | None]] = {
    "relax.concat": _concat,
    "relax.split": _split,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
}
