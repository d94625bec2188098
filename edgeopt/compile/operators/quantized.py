"""Operators on codes: decoded, computed with as numbers, and encoded again.

What comes of them is what a model with QuantizeLinear and DequantizeLinear is imported as, so that
the same lowerings make integer kernels of both. A code may differ from onnxruntime's by one where
the exact result lies next to the middle between two codes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from tvm import relax

from edgeopt.compile.operators.node import Node, Result, dtype_of
from edgeopt.compile.views import constant_of, shape_of

#: Converts a node of the standard.
Convert: TypeAlias = Callable[[Node], Result]
QuantizedConverter: TypeAlias = Callable[[Node, Convert], Result]


def apply(
    node: Node,
    convert: Convert,
    operator: str,
    inputs: Sequence[relax.Expr | None],
    attributes: Mapping[str, Any] | None = None,
) -> relax.Expr:
    """Convert an operator of one result on other inputs."""
    given = replace(
        node, operator=operator, inputs=tuple(inputs), attributes=attributes or {}, outputs=1
    )
    result = convert(given)
    if not isinstance(result, relax.Expr):
        (result,) = result
    return node.emit(node.builder.normalize(result))


def one_number(node: Node, expr: relax.Expr) -> relax.Expr:
    """Give a tensor of one element no axes; half floats become float32."""
    value = constant_of(expr)
    if value is not None:
        value = value.astype(np.float32) if value.dtype == np.float16 else value
        return relax.const(value.reshape(() if value.size == 1 else value.shape), value.dtype.name)
    if dtype_of(expr) == "float16":
        expr = node.emit(relax.op.astype(expr, "float32"))
    count = int(np.prod(shape_of(expr)))
    return expr if count != 1 or not shape_of(expr) else node.emit(relax.op.reshape(expr, ()))


def decode(node: Node, places: tuple[int, int, int], axis: int = 0) -> relax.Expr:
    """Decode the codes of an input by the scale and zero point of others.

    axis: the one of the codes that several scales lie along; scales of more axes broadcast.
    """
    codes = node.input(places[0])
    scale = one_number(node, node.input(places[1]))
    if node.has(places[2]):
        zero = one_number(node, node.input(places[2]))
    else:
        zero = relax.const(np.zeros((), dtype_of(codes)))
    if len(shape_of(scale)) > 1 or len(shape_of(zero)) > 1:
        steps = [node.emit(relax.op.astype(each, "float32")) for each in (codes, zero)]
        return node.emit(relax.op.multiply(node.emit(relax.op.subtract(*steps)), scale))
    if shape_of(scale) != shape_of(zero):
        size = max(shape_of(scale), shape_of(zero))
        scale, zero = (node.emit(relax.op.broadcast_to(each, size)) for each in (scale, zero))
    if dtype_of(codes) == "int32":
        real = node.emit(relax.op.astype(codes, "float32"))
        return node.emit(relax.op.multiply(real, scale))
    rank = len(shape_of(codes))
    return node.emit(relax.op.dequantize(codes, scale, zero, axis=axis % max(rank, 1)))


def encode(node: Node, real: relax.Expr, places: tuple[int, int], dtype: str) -> relax.Expr:
    """Encode numbers by the scale and zero point of inputs."""
    scale = one_number(node, node.input(places[0]))
    if node.has(places[1]):
        zero = one_number(node, node.input(places[1]))
        dtype = dtype_of(zero)
    else:
        zero = relax.const(np.zeros((), dtype))
    return relax.op.quantize(real, scale, zero, axis=0, out_dtype=dtype)


def _plain(node: Node, *dropped: str) -> dict[str, Any]:
    return {name: value for name, value in node.attributes.items() if name not in dropped}


def _unary(operator: str) -> QuantizedConverter:
    def convert(node: Node, further: Convert) -> Result:
        real = decode(node, (0, 1, 2))
        result = apply(node, further, operator, [real], _plain(node))
        return encode(node, result, (3, 4), node.dtype(0))

    return convert


def _binary(operator: str) -> QuantizedConverter:
    def convert(node: Node, further: Convert) -> Result:
        result = apply(node, further, operator, [decode(node, (0, 1, 2)), decode(node, (3, 4, 5))])
        return encode(node, result, (6, 7), node.dtype(0))

    return convert


def _softmax(node: Node, further: Convert) -> Result:
    """Convert a softmax as the operator set that its attribute names defines it."""
    opset = node.integer("opset", 13)
    axis = node.integer("axis", -1 if opset >= 13 else 1)
    real, shape = decode(node, (0, 1, 2)), node.shape(0)
    if opset >= 13:
        result = apply(node, further, "Softmax", [real], {"axis": axis})
        return encode(node, result, (3, 4), node.dtype(0))
    flat = (int(np.prod(shape[: axis % len(shape)], dtype=int)), -1)
    matrix = node.emit(relax.op.reshape(real, flat))
    result = apply(node, further, "Softmax", [matrix], {"axis": -1})
    result = node.emit(relax.op.reshape(result, shape))
    return encode(node, result, (3, 4), node.dtype(0))


def _pool(operator: str) -> QuantizedConverter:
    """Make the converter of a mean over windows, whose images may have their channels last."""

    def convert(node: Node, further: Convert) -> Result:
        real, rank = decode(node, (0, 1, 2)), len(node.shape(0))
        last = bool(node.integer("channels_last", 0))
        if last:
            real = node.emit(relax.op.permute_dims(real, [0, rank - 1, *range(1, rank - 1)]))
        result = apply(node, further, operator, [real], _plain(node, "channels_last"))
        if last:
            result = node.emit(relax.op.permute_dims(result, [0, *range(2, rank), 1]))
        return encode(node, result, (3, 4), node.dtype(0))

    return convert


def _concat(node: Node, further: Convert) -> Result:
    parts = [decode(node, (i, i + 1, i + 2)) for i in range(2, len(node.inputs), 3)]
    result = apply(node, further, "Concat", parts, _plain(node))
    return encode(node, result, (0, 1), node.dtype(2))


def _where(node: Node, further: Convert) -> Result:
    parts = [node.input(0), decode(node, (1, 2, 3)), decode(node, (4, 5, 6))]
    return encode(node, apply(node, further, "Where", parts), (7, 8), node.dtype(1))


def _matmul(node: Node, further: Convert) -> Result:
    left = decode(node, (0, 1, 2), axis=-2)
    result = apply(node, further, "MatMul", [left, decode(node, (3, 4, 5), axis=-1)])
    return encode(node, result, (6, 7), node.dtype(0))


def _gemm(node: Node, further: Convert) -> Result:
    """Convert a product whose sum is of int32 in units of both scales; without a scale, a float."""
    columns = 0 if node.integer("transB", 0) else 1
    inputs: list[relax.Expr | None] = [decode(node, (0, 1, 2)), decode(node, (3, 4, 5), columns)]
    if node.has(6):
        alpha = relax.const(np.float32(node.real("alpha", 1.0)))
        unit = node.emit(relax.op.multiply(_unit(node, 1, 4), alpha))
        added = node.emit(relax.op.astype(node.input(6), "float32"))
        inputs.append(_folded(node, "multiply", added, unit))
    result = apply(node, further, "Gemm", inputs, _plain(node))
    return encode(node, result, (7, 8), node.dtype(0)) if node.has(7) else result


def _unit(node: Node, first: int, second: int) -> relax.Expr:
    """Multiply two scales."""
    scales = [one_number(node, node.input(place)) for place in (first, second)]
    return _folded(node, "multiply", *scales)


def _folded(node: Node, operator: str, left: relax.Expr, right: relax.Expr) -> relax.Expr:
    """Combine two tensors now where both are constant."""
    values = constant_of(left), constant_of(right)
    if values[0] is not None and values[1] is not None:
        return relax.const(np.asarray(getattr(np, operator)(*values), np.float32))
    return node.emit(getattr(relax.op, operator)(left, right))


def _constant_real(node: Node, expr: relax.Expr) -> relax.Expr:
    value = constant_of(expr)
    if value is not None:
        return relax.const(value.astype(np.float32))
    return node.emit(relax.op.astype(expr, "float32"))


def _conv(node: Node, further: Convert) -> Result:
    inputs: list[relax.Expr | None] = [decode(node, (0, 1, 2)), decode(node, (3, 4, 5))]
    if node.has(8):
        # The bias counts in units of both scales.
        inputs.append(
            _folded(node, "multiply", _constant_real(node, node.input(8)), _unit(node, 1, 4))
        )
    result = apply(node, further, "Conv", inputs, _plain(node))
    return encode(node, result, (6, 7), node.dtype(0))


def _scaled(node: Node, total: relax.Expr, factor: relax.Expr, bias: int) -> relax.Expr:
    """Turn sums of codes into numbers, and add a bias if there is one."""
    real = node.emit(relax.op.astype(total, "float32"))
    real = node.emit(relax.op.multiply(real, factor))
    return node.emit(relax.op.add(real, node.input(bias))) if node.has(bias) else real


def _dynamic_matmul(node: Node, further: Convert) -> Result:
    dynamic = replace(
        node,
        operator="DynamicQuantizeLinear",
        inputs=(node.input(0),),
        attributes={},
        outputs=3,
    )
    made = further(dynamic)
    assert isinstance(made, relax.Expr)
    codes, scale, zero = (node.emit(relax.TupleGetItem(made, i)) for i in range(3))
    right, weight_zero = node.input(1), node.inputs[3] if node.has(3) else None
    total = apply(node, further, "MatMulInteger", [codes, right, zero, weight_zero])
    factor = node.emit(relax.op.multiply(scale, one_number(node, node.input(2))))
    return _scaled(node, total, factor, 4)


def _matmul_to_float(node: Node, further: Convert) -> Result:
    zeros = [node.inputs[place] if node.has(place) else None for place in (4, 5)]
    inputs = [node.input(0), node.input(1), *zeros]
    total = apply(node, further, "MatMulInteger", inputs)
    return _scaled(node, total, _unit(node, 2, 3), 6)


#: Converters by operator; no name means another thing in another domain.
CONVERTERS: dict[str, QuantizedConverter] = {
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _pool("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _pool("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearMatMul": _matmul,
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _where,
}
