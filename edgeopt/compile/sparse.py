"""Matrices stored without their blocks of zeros: how they are recognised, and their lowering.

In standard operators such a matrix [K, N] is Gather(rows, places), reshaped: a row of rows is a
block of consecutive columns, the first one zeros, and places [K, N / width] say which is where.
"""

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax, te, tirx

from edgeopt.compile.kernels.sparse import Sparse, define_sparse, pack_sparse
from edgeopt.compile.site import Site
from edgeopt.compile.views import constant_of, inside_reshape, operator_of, shape_of

#: (rows, places): the blocks [K, N / width, width].
BLOCKS = "edgeopt.sparse_blocks"
#: How what is multiplied may be stored.
_TYPES = ("float32", "float16", "int8")


def call_blocks(
    builder: relax.BlockBuilder, rows: relax.Expr | None, places: relax.Expr | None
) -> relax.Expr | None:
    """Call what gives the blocks of a sparse matrix; None where operands are something else."""
    values = None if rows is None else constant_of(rows)
    found = _constant(builder, places)
    if values is None or found is None or not is_sparse(values, found):
        return None
    result = relax.TensorType((*found.shape, values.shape[1]), values.dtype.name)
    kept = relax.const(found, found.dtype.name)
    return relax.op.call_pure_packed(BLOCKS, rows, kept, ty_args=[result])


def _constant(builder: relax.BlockBuilder, expr: relax.Expr | None) -> np.ndarray | None:
    """Read a constant that may have been widened."""
    while isinstance(expr, relax.Expr) and constant_of(expr) is None:
        bound = builder.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        expr = bound.args[0] if operator_of(bound) == "relax.astype" else None
    return None if expr is None else constant_of(expr)


def is_sparse(rows: np.ndarray, places: np.ndarray) -> bool:
    """Tell whether places choose each row once and in order, and elsewhere the first, of zeros."""
    if rows.ndim != 2 or places.ndim != 2 or rows.dtype.name not in _TYPES or rows[:1].any():
        return False
    if not np.issubdtype(places.dtype, np.integer):
        return False
    return np.array_equal(places[places != 0], np.arange(1, len(rows)))


def sparse_of(site: Site, expr: relax.Expr) -> Sparse | None:
    """Follow what a matrix [K, N] is made of to its stored blocks; None for any other matrix."""
    bound = site.bound(expr)
    name = operator_of(bound)
    if name == "relax.astype":
        return sparse_of(site, bound.args[0])
    if name == "relax.dequantize":
        return _scaled(site, bound)
    blocks = _blocks_under(site, inside_reshape(bound))
    if blocks is None:
        return None
    rows, places = (constant_of(each) for each in blocks.args[1:])
    assert rows is not None
    assert places is not None
    whole = (len(places), places.shape[1] * rows.shape[1])
    return pack_sparse(rows, places) if shape_of(bound) == whole else None


def _blocks_under(site: Site, expr: relax.Expr | None) -> relax.Call | None:
    """Find the call that gives blocks, under what widens them; None where there is none."""
    bound = None if expr is None else site.bound(expr)
    if bound is not None and operator_of(bound) == "relax.astype":
        return _blocks_under(site, bound.args[0])
    return bound if bound is not None and operator_of(bound) == BLOCKS else None


def _scaled(site: Site, call: relax.Call) -> Sparse | None:
    """Read codes of zero point 0 with one scale, or one for each column."""
    weight = sparse_of(site, call.args[0])
    scales, zero = constant_of(call.args[1]), constant_of(call.args[2])
    if weight is None or scales is None or zero is None or np.any(zero):
        return None
    if scales.size > 1 and int(call.attrs.axis) % 2 != 1:
        return None
    columns = np.broadcast_to(scales.reshape(-1), (weight.columns,))
    return replace(weight, scales=np.ascontiguousarray(columns, np.float32))


def multiply_sparse(
    site: Site, left: relax.Expr, weight: Sparse, shape: tuple[int, ...]
) -> relax.Expr:
    """Emit x @ W over the stored blocks of W."""
    count = int(np.prod(shape[:-1]))
    function = define_sparse(site.cpu, count, weight)
    flat = site.reshape(left, (count, weight.depth))
    given = [relax.const(each, each.dtype.name) for each in weight.arguments()]
    variable: tvm.ir.GlobalVar = site.builder.add_func(function, "sparse")
    result = relax.TensorType((count, weight.columns), "float32")
    made = site.emit(relax.call_tir(variable, relax.Tuple([flat, *given]), result))
    return site.reshape(made, shape)


def lower_blocks(site: Site, call: relax.Call) -> relax.Expr:
    """Look blocks up: for what no kernel took as a matrix."""
    _, rows, places = call.args

    def define(rows: te.Tensor, places: te.Tensor) -> te.Tensor:
        def element(k: tirx.Expr, panel: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
            return rows(tirx.Cast("int32", places(k, panel)), column)

        return te.compute((*places.shape, rows.shape[1]), element, name="sparse_blocks")

    return site.call(define, rows, places, name="sparse_blocks")
