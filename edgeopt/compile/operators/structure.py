"""Reductions, running sums, selection and what else moves numbers, as the standard defines them."""

import numpy as np
from onnx import helper
from tvm import relax, te, tirx

from edgeopt.compile.operators.fallback import convert_by_tvm
from edgeopt.compile.operators.node import Converter, Node, Result, Unsupported

#: What a reduction of nothing gives.
_EMPTY = {
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceLogSum": -np.inf,
    "ReduceMax": -np.inf,
    "ReduceMin": np.inf,
    "ReduceProd": 1.0,
    "ReduceSum": 0.0,
    "ReduceSumSquare": 0.0,
}
#: Elements along one axis that are compared each with each.
_MOST_SORTED = 8192


def _reduced(node: Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Find the shape of a reduction's result; None where nothing is reduced."""
    axes = node.axes()
    if not axes:
        if node.integer("noop_with_empty_axes", 0):
            return None
        axes = list(range(len(shape)))
    gone = {axis % len(shape) for axis in axes}
    kept = bool(node.integer("keepdims", 1))
    return tuple(
        1 if axis in gone else size for axis, size in enumerate(shape) if kept or axis not in gone
    )


def _reduce(node: Node) -> Result:
    """Reduce: of nothing to the standard's constant, of truth values as numbers."""
    shape, dtype = node.shape(0), node.dtype(0)
    if 0 in shape:
        wanted = _reduced(node, shape)
        if wanted is None or 0 in wanted:
            raise Unsupported("its result has no elements")
        value = _EMPTY[node.operator]
        if np.isinf(value) and dtype == "bool":
            value = float(value > 0)
        elif np.isinf(value) and np.dtype(dtype).kind in "iu":
            limits = np.iinfo(dtype)
            value = limits.max if value > 0 else limits.min
        return relax.const(np.full(wanted, value, dtype), dtype)
    if dtype != "bool":
        return convert_by_tvm(node)
    numbers = node.emit(relax.op.astype(node.input(0), "uint8"))
    wide = Node(
        node.operator,
        (numbers, *node.inputs[1:]),
        node.attributes,
        node.outputs,
        node.opset,
        node.builder,
    )
    return relax.op.astype(node.emit(convert_by_tvm(wide)), "bool")


def _accumulate(node: Node) -> relax.Expr:
    """Sum or multiply all elements up to each one, along one constant axis."""
    numbers = node.numbers(1)
    assert numbers is not None
    shape, dtype = node.shape(0), node.dtype(0)
    axis = numbers[0] % len(shape)
    size = shape[axis]
    backwards, exclusive = node.integer("reverse", 0), node.integer("exclusive", 0)
    products = node.operator == "CumProd"
    neutral = tirx.const(1 if products else 0, dtype)

    def define(source: te.Tensor) -> te.Tensor:
        step = te.reduce_axis((0, size), name="step")
        join = te.comm_reducer(
            lambda a, b: a * b if products else a + b, lambda _: neutral, name="join"
        )

        def element(*at: tirx.Expr) -> tirx.Expr:
            first, last = (at[axis], step) if backwards else (step, at[axis])
            inside = first < last if exclusive else first <= last
            value = source(*at[:axis], step, *at[axis + 1 :])
            return join(tirx.Select(inside, value, neutral), axis=step)

        return te.compute(shape, element, name="accumulate")

    return node.builder.emit_te(define, node.input(0), primfunc_name_hint="accumulate")


def _largest(node: Node) -> Result:
    """Sort by counting, for each element, those that come before it."""
    numbers = node.numbers(1) or [node.integer("k", 1)]
    shape, dtype = node.shape(0), node.dtype(0)
    axis = node.integer("axis", -1) % len(shape)
    size, largest = shape[axis], bool(node.integer("largest", 1))
    if size > _MOST_SORTED:
        raise Unsupported(f"it sorts {size} numbers; at most {_MOST_SORTED} are")

    def rank(source: te.Tensor) -> te.Tensor:
        other = te.reduce_axis((0, size), name="other")

        def element(*at: tirx.Expr) -> tirx.Expr:
            own, its = source(*at), source(*at[:axis], other, *at[axis + 1 :])
            ahead = its > own if largest else its < own
            first = tirx.any(ahead, tirx.all(its == own, other < at[axis]))
            return te.sum(tirx.Cast("int32", first), axis=other)

        return te.compute(shape, element, name="rank")

    result = (*shape[:axis], numbers[0], *shape[axis + 1 :])

    def place(ranks: te.Tensor) -> te.Tensor:
        other = te.reduce_axis((0, size), name="other")

        def element(*at: tirx.Expr) -> tirx.Expr:
            found = ranks(*at[:axis], other, *at[axis + 1 :]) == at[axis]
            zero = tirx.const(0, "int64")
            return te.sum(tirx.Select(found, tirx.Cast("int64", other), zero), axis=other)

        return te.compute(result, element, name="place")

    def value(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        return tensors[0](*at[:axis], tirx.Cast("int32", tensors[1](*at)), *at[axis + 1 :])

    assert dtype != "bool"
    ranks = node.builder.emit_te(rank, node.input(0), primfunc_name_hint="rank")
    places = node.builder.emit_te(place, ranks, primfunc_name_hint="place")
    return [node.compute(result, value, node.input(0), places), places]


def _dropout(node: Node) -> Result:
    """Pass through what nothing is dropped of."""
    training = node.value(2)
    ratio = node.value(1)
    if training is not None and training.any() and (ratio is None or ratio.any()):
        raise Unsupported("it drops numbers at random, as in training")
    mask = relax.const(np.ones(node.shape(0), np.bool_))
    return [node.input(0), mask][: node.outputs]


def _normalize(node: Node) -> relax.Expr:
    """Divide by the sum of magnitudes (p = 1) or the root of the sum of squares (p = 2)."""
    source, axis = node.input(0), node.integer("axis", -1)
    one = node.integer("p", 2) == 1
    powers = relax.op.abs(source) if one else relax.op.multiply(source, source)
    norm = node.emit(relax.op.sum(node.emit(powers), axis=[axis], keepdims=True))
    if not one:
        norm = node.emit(relax.op.sqrt(norm))
    # Where all are zero the standard's result is zero.
    zero = relax.const(np.zeros((), node.dtype(0)), node.dtype(0))
    ones = relax.const(np.ones((), node.dtype(0)), node.dtype(0))
    empty = node.emit(relax.op.equal(norm, zero))
    return relax.op.divide(source, node.emit(relax.op.where(empty, ones, norm)))


def _identity(node: Node) -> relax.Expr:
    """Make a matrix with ones on one diagonal."""
    code = node.attributes.get("dtype")
    name = node.dtype(0) if code is None else helper.tensor_dtype_to_np_dtype(int(code)).name
    rows, columns = node.shape(0)
    return relax.const(np.eye(rows, columns, node.integer("k", 0)).astype(name), name)


def _reverse(node: Node) -> relax.Expr:
    """Turn round the first so many elements of each sequence."""
    shape = node.shape(0)
    time, batch = node.integer("time_axis", 0), node.integer("batch_axis", 1)

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        length = tirx.Cast("int32", tensors[1](at[batch]))
        length = tirx.max(tirx.min(length, shape[time]), 0)
        place = tirx.Select(at[time] < length, length - 1 - at[time], at[time])
        return tensors[0](*at[:time], place, *at[time + 1 :])

    return node.compute(shape, element, node.input(0), node.input(1))


def _split(node: Node) -> Result:
    """Leave a split to TVM unless one of its parts is empty."""
    lengths = node.attributes.get("split", node.numbers(1))
    if lengths is not None and 0 in list(lengths):
        raise Unsupported("one of its results has no elements")
    return convert_by_tvm(node)


def _one_hot(node: Node) -> relax.Expr:
    """Write the second value where the new axis counts an index, the first elsewhere."""
    shape, depth = node.shape(0), node.numbers(1)
    assert depth is not None
    axis = node.integer("axis", -1) % (len(shape) + 1)
    size = depth[0]

    def element(tensors: list[te.Tensor], *at: tirx.Expr) -> tirx.Expr:
        index = tirx.Cast("int64", tensors[0](*at[:axis], *at[axis + 1 :]))
        index = tirx.Select(index < 0, index + size, index)
        hit = index == tirx.Cast("int64", at[axis])
        return tirx.Select(hit, tensors[1](1), tensors[1](0))

    return node.compute((*shape[:axis], size, *shape[axis:]), element, node.input(0), node.input(2))


def _refuse(reason: str) -> Converter:
    def convert(node: Node) -> Result:
        raise Unsupported(reason)

    return convert


def _refuse_option(name: str, allowed: str, default: str) -> Converter:
    """Leave a node to TVM unless an attribute says something else than it computes."""

    def convert(node: Node) -> Result:
        value = node.attributes.get(name, default)
        text = value.decode() if isinstance(value, bytes) else str(value)
        if text != allowed:
            raise Unsupported(f"its {name} is {text}; only {allowed} is computed")
        return convert_by_tvm(node)

    return convert


def _depth_from_space(node: Node) -> relax.Expr:
    """Move blocks of an image into channels, the place in the block first or last (CRD)."""
    batch, channels, height, width = node.shape(0)
    block = node.integer("blocksize", 1)
    cut = (batch, channels, height // block, block, width // block, block)
    order = (0, 1, 3, 5, 2, 4) if node.text("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    pieces = node.emit(relax.op.reshape(node.input(0), cut))
    moved = node.emit(relax.op.permute_dims(pieces, list(order)))
    result = (batch, channels * block * block, height // block, width // block)
    return relax.op.reshape(moved, result)


#: Operators that are computed, or partly refused, here.
CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(_EMPTY, _reduce),
    "BatchNormalization": _refuse_option("training_mode", "0", "0"),
    "CumProd": _accumulate,
    "CumSum": _accumulate,
    "Dropout": _dropout,
    "EyeLike": _identity,
    "LpNormalization": _normalize,
    "NonMaxSuppression": _refuse("the number of boxes that it keeps depends on their values"),
    "OneHot": _one_hot,
    "Range": _refuse("its bounds depend on the model's inputs"),
    "ReverseSequence": _reverse,
    "RoiAlign": _refuse_option("mode", "avg", "avg"),
    "SpaceToDepth": _depth_from_space,
    "Split": _split,
    "TopK": _largest,
}
