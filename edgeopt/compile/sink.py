"""Reshapes and transposes moved towards the outputs, where they meet others and vanish.

op(view(x)) becomes view(op(x)) for operators that act on each element, or on each row, alone.
Exporters flatten tokens for Gemm and unflatten them after it, and convolutions of ours store
channels last: once views meet they cancel, and what they kept apart can be fused.
"""

from collections.abc import Callable

import numpy as np
from tvm import relax

from edgeopt.compile import sink_moves
from edgeopt.compile.sink_moves import Sunk
from edgeopt.compile.site import Site
from edgeopt.compile.views import (
    inside_permute,
    inside_reshape,
    operator_of,
    permutation_of,
    shape_of,
)

_ARITHMETIC = ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "clip")
_FUNCTIONS = ("abs", "negative", "exp", "log", "sqrt", "rsqrt", "square", "erf", "tanh", "sigmoid")
_ROUNDING = ("round", "floor", "ceil", "astype", "nn.relu", "nn.gelu", "nn.silu")
_LOGIC = ("where", "less", "greater", "equal", "not_equal")
_BOOLEAN = ("logical_not", "logical_and", "logical_or")
_CODES = ("quantize", "dequantize")
_QUANTIZERS = {"relax.quantize": relax.op.quantize, "relax.dequantize": relax.op.dequantize}
#: Operators that act on each element alone.
_ELEMENTWISE = frozenset(
    f"relax.{name}" for name in (*_ARITHMETIC, *_FUNCTIONS, *_ROUNDING, *_LOGIC, *_BOOLEAN, *_CODES)
)
#: Operators that act on each row of the last axis alone, and on their first operand only.
_ROWWISE = frozenset({"relax.nn.layer_norm", "relax.nn.softmax", "relax.matmul"})
_REDUCTIONS = {
    "relax.sum": relax.op.sum,
    "relax.mean": relax.op.mean,
    "relax.max": relax.op.max,
    "relax.min": relax.op.min,
}


def sink_views(site: Site, call: relax.Call) -> Sunk | None:
    """Rewrite a call whose operands are views; None when it is not worth it or not possible."""
    name = operator_of(call)
    if name in sink_moves.MOVES:
        return sink_moves.sink_move(site, call)
    if name in _REDUCTIONS:
        return _sink_into_reduction(site, call)
    if name in _ROWWISE:
        return _sink_into_rows(site, call)
    if name in _ELEMENTWISE:
        return _sink_permute(site, call) or _sink_reshape(site, call)
    return None


def _rebuild(
    site: Site,
    call: relax.Call,
    arguments: list[relax.Expr | None],
    restore: Callable[[relax.Expr], relax.Expr],
) -> Sunk | None:
    if any(argument is None for argument in arguments):
        return None
    if operator_of(call) in _QUANTIZERS and int(np.prod(shape_of(arguments[1]))) == 1:
        # The axis says nothing of one scale, and would lie beyond the last one of fewer.
        rebuilt = _QUANTIZERS[operator_of(call)](
            *arguments, axis=-1, out_dtype=call.attrs.out_dtype
        )
    else:
        rebuilt = relax.Call(call.op, arguments, call.attrs, call.ty_args)
    return Sunk(site.builder.normalize(rebuilt), restore)


def _sink_into_rows(site: Site, call: relax.Call) -> Sunk | None:
    inner = inside_reshape(site.bound(call.args[0]))
    if inner is None or shape_of(inner)[-1] != shape_of(call.args[0])[-1]:
        return None
    if operator_of(call) == "relax.matmul" and len(shape_of(call.args[1])) != 2:
        return None
    shape = shape_of(call)
    return _rebuild(site, call, [inner, *call.args[1:]], lambda result: site.reshape(result, shape))


def _sink_into_reduction(site: Site, call: relax.Call) -> Sunk | None:
    inner = inside_permute(site.bound(call.args[0]))
    if inner is None or not call.attrs.keepdims or not call.attrs.axis:
        return None
    axes = permutation_of(site.bound(call.args[0]))
    reduced = [axes[int(axis) % len(axes)] for axis in call.attrs.axis]
    moved = _REDUCTIONS[operator_of(call)](inner, sorted(reduced), keepdims=True)
    return Sunk(
        site.builder.normalize(moved),
        lambda result: site.permute(result, axes),
    )


def _sink_reshape(site: Site, call: relax.Call) -> Sunk | None:
    shape = shape_of(call)
    narrow = _shape_under(site, call, shape)
    if narrow is None:
        return None
    arguments = [_reshaped(site, argument, shape, narrow) for argument in call.args]
    return _rebuild(site, call, arguments, lambda result: site.reshape(result, shape))


def _shape_under(site: Site, call: relax.Call, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Find the shape under the first operand that is a reshape to the result's shape."""
    for argument in call.args:
        inner = inside_reshape(site.bound(argument))
        if inner is not None and shape_of(argument) == shape:
            return shape_of(inner)
    return None


def _reshaped(
    site: Site, argument: relax.Expr, shape: tuple[int, ...], narrow: tuple[int, ...]
) -> relax.Expr | None:
    """Give an operand the shape under the reshape; None where it would mean something else."""
    if not isinstance(argument.ty, relax.TensorType):
        return argument
    own = shape_of(argument)
    if own == shape:
        inner = inside_reshape(site.bound(argument))
        if inner is not None and shape_of(inner) == narrow:
            return inner
        return site.reshape(argument, narrow)
    same_rows = narrow[-1:] == shape[-1:]
    if own == () or (len(own) == 1 and (own[0] == 1 or (own == narrow[-1:] and same_rows))):
        return argument
    value = site.constant(argument)
    if value is not None and value.size == 1:
        return relax.const(value.reshape(()), value.dtype.name)
    return None


def _sink_permute(site: Site, call: relax.Call) -> Sunk | None:
    axes = _axes_under(site, call)
    if axes is None:
        return None
    arguments = [_permuted(site, argument, axes) for argument in call.args]
    return _rebuild(site, call, arguments, lambda result: site.permute(result, axes))


def _axes_under(site: Site, call: relax.Call) -> tuple[int, ...] | None:
    """Find the transpose that made the first operand which has the result's shape."""
    for argument in call.args:
        bound = site.bound(argument)
        if inside_permute(bound) is not None and shape_of(argument) == shape_of(call):
            return permutation_of(bound)
    return None


def _permuted(site: Site, argument: relax.Expr, axes: tuple[int, ...]) -> relax.Expr | None:
    """Undo a transpose on an operand, which may be broadcast; None where that is not possible."""
    if not isinstance(argument.ty, relax.TensorType) or shape_of(argument) == ():
        return argument
    bound = site.bound(argument)
    if inside_permute(bound) is not None and permutation_of(bound) == axes:
        return inside_permute(bound)
    inverse = tuple(int(axis) for axis in np.argsort(axes))
    value = site.constant(argument)
    if value is not None:
        padded = value.reshape((1,) * (len(axes) - value.ndim) + value.shape)
        moved = np.ascontiguousarray(padded.transpose(inverse))
        return relax.const(moved, moved.dtype.name)
    if len(shape_of(argument)) != len(axes):
        return None
    return site.permute(argument, inverse)
