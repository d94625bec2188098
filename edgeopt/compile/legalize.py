"""Relax operators to kernels of ours, one function per operator."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax, tirx, topi

from edgeopt.compile.blocked import (
    DECODE,
    LOOK_UP,
    lower_decode,
    lower_look_up,
    matrix_of,
    multiply_blocked,
    take_blocked,
)
from edgeopt.compile.cpu import Cpu
from edgeopt.compile.import_vision import AVERAGE_POOL, CONV_TRANSPOSE, MAX_POOL, RESIZE
from edgeopt.compile.importer import DYNAMIC_QUANTIZE, MATMUL_INTEGER
from edgeopt.compile.integer import (
    inverse_of,
    lower_dynamic_quantize,
    lower_matmul_integer,
    lower_static,
)
from edgeopt.compile.kernels import attention, columns, elementwise, functions, gemm, rows
from edgeopt.compile.kernels.attention import Batched, Reader
from edgeopt.compile.pooling import lower_average_pool, lower_max_pool, lower_resize
from edgeopt.compile.quantized import lower_dequantize, lower_quantize
from edgeopt.compile.recode import average_rows, lower_slice, lower_split
from edgeopt.compile.recurrent import RECURRENT, lower_recurrent
from edgeopt.compile.site import Emitted, Lowering, Site
from edgeopt.compile.sparse import BLOCKS, lower_blocks, multiply_sparse, sparse_of
from edgeopt.compile.stored import stored_of
from edgeopt.compile.table_reads import note_table
from edgeopt.compile.views import (
    RESHAPES,
    View,
    constant_of,
    look_through,
    operator_of,
    permutation_of,
    scalar_of,
    shape_of,
)
from edgeopt.compile.vision import (
    lower_conv1d,
    lower_conv2d,
    lower_conv3d,
    lower_conv_transpose,
)


def lower_matmul(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a product with a stored matrix, or a batched product of two activations."""
    left, right = call.args
    if left.ty.dtype.dtype != "float32":
        return None
    if len(shape_of(right)) == 2:
        weight = matrix_of(site, right)
        if weight is not None:
            return multiply_blocked(site, left, weight, shape_of(call))
        sparse = sparse_of(site, right)
        if sparse is not None:
            return multiply_sparse(site, left, sparse, shape_of(call))
        stored = multiply_stored(site, left, right, shape_of(call))
        return _multiply_computed(site, left, right, shape_of(call)) if stored is None else stored
    return multiply_batched(site, left, right, shape_of(call))


def multiply_stored(
    site: Site, left: relax.Expr, right: relax.Expr, shape: tuple[int, ...]
) -> relax.Expr | None:
    """Emit x @ W with W packed as it is stored; None when W is not constant."""
    weight = stored_of(site, right)
    if weight is None or weight.values.ndim != 2 or not weight.scales_columns:
        return None
    if len(shape_of(left)) == 1:
        row = site.reshape(left, (1, *shape_of(left)))
        product = multiply_stored(site, row, right, (1, *shape))
        return None if product is None else site.reshape(product, shape)
    static = lower_static(site, left, weight)
    if static is not None:
        return static
    scales = weight.column_scales
    if weight.scales is not None and weight.scales.size == 1:
        scales = weight.scales.reshape(1)
    plan = gemm.plan_gemm(site.cpu, shape_of(left), shape[-1], weight.values.dtype)
    packed = gemm.pack_columns(weight.values, plan.width)
    extra = () if scales is None else (scales,)
    return site.call(gemm.define_gemm(site.cpu, plan), left, packed, *extra, name="gemm")


def multiply_batched(
    site: Site, left: relax.Expr, right: relax.Expr, shape: tuple[int, ...]
) -> relax.Expr | None:
    """Emit a batched product that reads both operands through their views."""
    first, second = shape_of(left), shape_of(right)
    if first[:-2] != second[:-2] or len(first) < 3:
        return None
    from_left, from_right = look_through(left, site.lookup), look_through(right, site.lookup)
    shared = isinstance(from_left.root, relax.Var) and from_left.root.same_as(from_right.root)
    plan = Batched(
        batch=first[:-2],
        rows=first[-2],
        depth=first[-1],
        columns=second[-1],
        scale=from_left.scale * from_right.scale,
        axes=tuple(range(len(shape))),
        read_left=_reader(from_left),
        read_right=_reader(from_right),
        shared=shared,
        along_depth=_is_along(from_right, (*[0] * (len(second) - 2), 1, 0)),
    )
    arguments = (from_left.root,) if shared else (from_left.root, from_right.root)
    return _emit_batched(site, plan, arguments)


def _multiply_computed(
    site: Site, left: relax.Expr, right: relax.Expr, shape: tuple[int, ...]
) -> relax.Expr | None:
    """Emit x @ y of matrices of which neither is stored, as a batch of one."""
    depth, columns = shape_of(right)
    rows = int(np.prod(shape_of(left)[:-1]))
    first = site.reshape(left, (1, rows, depth))
    second = site.reshape(right, (1, depth, columns))
    product = multiply_batched(site, first, second, (1, rows, columns))
    return None if product is None else site.reshape(product, shape)


def _reader(view: View) -> Reader:
    return lambda tensor, index: tensor(*view.source(index))


def _is_along(view: View, index: Sequence[int]) -> bool:
    """Tell whether an element of a view is the second one of its root."""
    place = view.source([tirx.const(value, "int32") for value in index])
    return [int(value) for value in place] == [0] * (len(place) - 1) + [1]


def _emit_batched(site: Site, plan: Batched, arguments: tuple[relax.Expr, ...]) -> relax.Var:
    result = site.call(attention.define_attention(site.cpu, plan), *arguments, name="attention")
    site.products.append(Emitted(site.bound(result), plan, arguments))
    return result


def lower_permute(site: Site, call: relax.Call) -> relax.Expr | None:
    """Let a batched product store its result transposed, so that no copy is made.

    Otherwise join the transpose with the one before it, if any.
    """
    source = site.bound(call.args[0])
    axes = permutation_of(call)
    found = next((each for each in site.products if each.call.same_as(source)), None)
    if found is None:
        return site.permute(call.args[0], axes)
    plan = found.plan
    permuted = tuple(plan.axes[axis] for axis in axes)
    if permuted[-1] != len(plan.axes) - 1:
        return None  # the columns would no longer be stored as vectors
    moved = replace(plan, axes=permuted)
    return _emit_batched(site, moved, found.arguments)


def lower_reshape(site: Site, call: relax.Call) -> relax.Expr | None:
    """Join a reshape with those before it."""
    return site.reshape(call.args[0], shape_of(call))


def lower_softmax(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower softmax over the last axis."""
    shape = shape_of(call)
    if int(call.attrs.axis) % len(shape) != len(shape) - 1:
        return None
    return site.call(rows.define_softmax(site.cpu, shape), call.args[0], name="softmax")


def lower_log_softmax(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower the logarithm of softmax over the last axis."""
    shape = shape_of(call)
    if int(call.attrs.axis) % len(shape) != len(shape) - 1:
        return None
    return site.call(rows.define_log_softmax(site.cpu, shape), call.args[0], name="log_softmax")


def lower_layer_norm(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower layer normalization over the last axis."""
    shape = shape_of(call)
    if [int(axis) % len(shape) for axis in call.attrs.axes] != [len(shape) - 1]:
        return None
    if not (call.attrs.center and call.attrs.scale):
        return None
    define = rows.define_layer_norm(site.cpu, shape, float(call.attrs.epsilon))
    return site.call(define, *call.args, name="layer_norm")


def lower_reduction(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower a float32 reduction over adjacent axes, the last ones or others."""
    source = call.args[0]
    shape = shape_of(source)
    if source.ty.dtype.dtype != "float32":
        return None
    chosen = call.attrs.axis
    axes = sorted(int(a) % len(shape) for a in chosen) if chosen else list(range(len(shape)))
    if not axes or axes != list(range(axes[0], axes[-1] + 1)):
        return None
    outer = int(np.prod(shape[: axes[0]]))
    reduced = int(np.prod([shape[axis] for axis in axes]))
    inner = int(np.prod(shape[axes[-1] + 1 :]))
    coded = None
    if operator_of(call) == "relax.mean" and inner > 1:
        coded = average_rows(site, source, (outer, reduced, inner))
    if coded is not None:
        return site.reshape(coded, shape_of(call))
    fold, scale = _fold_of(operator_of(call), reduced)
    if inner == 1:
        flat = site.reshape(source, (outer, reduced))
        define = rows.define_fold(site.cpu, (outer, reduced), fold, scale)
    else:
        flat = site.reshape(source, (outer, reduced, inner))
        define = columns.define_columns((outer, reduced, inner), fold, scale)
    return site.reshape(site.call(define, flat, name="reduce"), shape_of(call))


def _fold_of(name: str, reduced: int) -> tuple[rows.Fold, float]:
    if name == "relax.max":
        return rows.GREATEST, 1.0
    if name == "relax.min":
        return rows.LEAST, 1.0
    return rows.SUM, 1.0 / reduced if name == "relax.mean" else 1.0


def lower_take(site: Site, call: relax.Call) -> relax.Expr | None:
    """Lower Gather from a table, whose rows stay as they are stored until they are read."""
    data, indices = call.args
    if not indices.ty.dtype.dtype.startswith("int") or call.attrs.axis is None:
        return None
    rank = len(shape_of(data))
    axis = int(call.attrs.axis) % rank
    decoded = take_blocked(site, data, indices) if axis == 0 and rank > 1 else None
    if decoded is not None:
        return decoded
    stored = stored_of(site, data)
    if stored is not None and stored.values.dtype == np.float16 and stored.scales is None:
        data = relax.const(stored.values)
    table = constant_of(data)
    if table is not None and axis == 0:
        note_table(site, table, indices)
    define = elementwise.define_gather(shape_of(data)[axis], rank, axis)
    taken = site.call(define, data, indices, name="gather")
    wanted = call.ty.dtype.dtype
    if taken.ty.dtype.dtype != wanted:
        return site.emit(relax.op.astype(taken, wanted))
    return taken


#: Operators that become kernels before anything is fused.
LOWERINGS: dict[str, Lowering] = {
    "relax.matmul": lower_matmul,
    "relax.permute_dims": lower_permute,
    **dict.fromkeys(RESHAPES, lower_reshape),
    "relax.nn.log_softmax": lower_log_softmax,
    "relax.nn.softmax": lower_softmax,
    "relax.nn.layer_norm": lower_layer_norm,
    "relax.sum": lower_reduction,
    "relax.mean": lower_reduction,
    "relax.max": lower_reduction,
    "relax.min": lower_reduction,
    "relax.take": lower_take,
    "relax.nn.conv1d": lower_conv1d,
    "relax.nn.conv2d": lower_conv2d,
    "relax.nn.conv3d": lower_conv3d,
    CONV_TRANSPOSE: lower_conv_transpose,
    MAX_POOL: lower_max_pool,
    AVERAGE_POOL: lower_average_pool,
    RESIZE: lower_resize,
    "relax.strided_slice": lower_slice,
    "relax.split": lower_split,
    "relax.quantize": lower_quantize,
    "relax.dequantize": lower_dequantize,
    DYNAMIC_QUANTIZE: lower_dynamic_quantize,
    MATMUL_INTEGER: lower_matmul_integer,
    RECURRENT: lower_recurrent(multiply_stored),
}

#: Operators that only lower where no kernel took them into itself.
REMAINING: dict[str, Lowering] = {
    DECODE: lower_decode,
    LOOK_UP: lower_look_up,
    BLOCKS: lower_blocks,
}


def _legalize_unary(name: str, function: elementwise.Function) -> elementwise.Legalize:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        if call.ty.dtype.dtype != "float32":
            return tvm.ir.Op.get(call.op.name).get_attr("FLegalize")(builder, call)
        define = elementwise.define_unary(function, name)
        return builder.call_te(define, call.args[0], primfunc_name_hint=name)

    return legalize


def _legalize_divide(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Divide; by one float32 number, multiply by its inverse instead."""
    number = scalar_of(call.args[1])
    number = scalar_of(call.args[1])
    if number is None or call.ty.dtype.dtype != "float32" or constant_of(call.args[0]) is not None:
        return builder.call_te(topi.divide, *call.args, primfunc_name_hint="divide")
    inverse = functions.number(1.0 / number)
    define = elementwise.define_unary(lambda x: x * inverse, "scale")
    return builder.call_te(define, call.args[0], primfunc_name_hint="scale")


def _legalize_cast(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    source, wanted = call.args[0], call.ty.dtype.dtype
    if (source.ty.dtype.dtype, wanted) == ("int64", "float32"):
        define = elementwise.define_unary(functions.float_of_long, "cast")
    else:
        define = elementwise.define_unary(lambda x: tirx.Cast(wanted, x), "cast")
    return builder.call_te(define, source, primfunc_name_hint="cast")


def _legalize_quantize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Quantize with one scale and zero point; others are left to TVM's own definition."""
    values, scale, zero = call.args
    if not _one_scale(call):
        return tvm.ir.Op.get("relax.quantize").get_attr("FLegalize")(builder, call)
    inverse = inverse_of(scale)
    define = elementwise.define_quantize(call.ty.dtype.dtype, inverse=inverse is not None)
    factor = scale if inverse is None else inverse
    return builder.call_te(define, values, factor, zero, primfunc_name_hint="quantize")


def _legalize_dequantize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Dequantize to float32 with one scale and zero point; others are left to TVM."""
    if not _one_scale(call) or call.ty.dtype.dtype != "float32":
        return tvm.ir.Op.get("relax.dequantize").get_attr("FLegalize")(builder, call)
    define = elementwise.define_dequantize()
    return builder.call_te(define, *call.args, primfunc_name_hint="dequantize")


def _one_scale(call: relax.Call) -> bool:
    return all(int(np.prod(shape_of(each))) == 1 for each in call.args[1:])


#: Elementwise operators whose stock definitions call libm, one element at a time.
_ELEMENTWISE: dict[str, elementwise.Legalize] = {
    "relax.exp": _legalize_unary("exp", functions.exp),
    "relax.erf": _legalize_unary("erf", functions.erf),
    "relax.tanh": _legalize_unary("tanh", functions.tanh),
    "relax.sigmoid": _legalize_unary("sigmoid", functions.sigmoid),
    "relax.round": _legalize_unary("round", functions.round_half_even),
    "relax.divide": _legalize_divide,
    "relax.quantize": _legalize_quantize,
    "relax.dequantize": _legalize_dequantize,
}


def elementwise_legalizations(cpu: Cpu) -> dict[str, elementwise.Legalize]:
    """List our own definitions of elementwise operators for LegalizeOps."""
    if cpu.machine == "arm":
        return _ELEMENTWISE | {"relax.astype": _legalize_cast}
    return _ELEMENTWISE
