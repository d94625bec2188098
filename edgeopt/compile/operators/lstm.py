"""DynamicQuantizeLSTM of onnxruntime: an LSTM whose weights are stored as codes.

The weights are decoded in the product; states and inputs stay float32, where onnxruntime rounds
them to codes of 8 bits at every step. The results are those of the LSTM that the codes mean.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from edgeopt.compile.operators.node import Node, Result, Unsupported
from edgeopt.compile.operators.quantized import Convert
from edgeopt.compile.views import constant_of, shape_of

#: Inputs with one slice per direction after the weights: bias, initial states, peepholes.
_SLICED = (3, 5, 6, 7)


def dynamic_lstm(node: Node, further: Convert) -> Result:
    """Convert each direction to an LSTM, and join their results."""
    directions = node.shape(1)[0]
    names = {2: ("forward", "reverse")}.get(directions, (node.text("direction", "forward"),))
    if directions == 2 and (
        "activation_alpha" in node.attributes or "activation_beta" in node.attributes
    ):
        raise Unsupported("its functions have parameters of their own in two directions")
    parts = [_direction(node, further, place, name) for place, name in enumerate(names)]
    if directions == 1:
        return parts[0]
    axes = (1, 0, 0)
    return [
        node.emit(relax.op.concat(list(each), axis=axis))
        for axis, each in zip(axes, zip(*parts, strict=True), strict=True)
    ]


def _direction(node: Node, further: Convert, place: int, name: str) -> list[relax.Expr]:
    inputs: list[relax.Expr | None] = [
        node.input(0),
        _weight(node, (1, 8, 9), place),
        _weight(node, (2, 10, 11), place),
        None,
        node.inputs[4] if node.has(4) else None,
        None,
        None,
        None,
    ]
    for sliced in _SLICED:
        if node.has(sliced):
            inputs[sliced] = _slice(node, node.input(sliced), place)
    attributes: dict[str, Any] = {**node.attributes, "direction": name}
    if "activations" in attributes:
        count = len(attributes["activations"]) // node.shape(1)[0]
        attributes["activations"] = attributes["activations"][place * count : (place + 1) * count]
    made = further(
        replace(node, operator="LSTM", inputs=tuple(inputs), attributes=attributes, outputs=3)
    )
    assert isinstance(made, relax.Expr)
    return [node.emit(relax.TupleGetItem(made, i)) for i in range(3)]


def _slice(node: Node, source: relax.Expr, place: int) -> relax.Expr:
    value = constant_of(source)
    if value is not None:
        return relax.const(np.ascontiguousarray(value[place : place + 1]), value.dtype.name)
    if shape_of(source)[0] == 1:
        return source
    return node.emit(relax.op.strided_slice(source, [0], [place], [place + 1]))


def _weight(node: Node, places: tuple[int, int, int], place: int) -> relax.Expr:
    """Decode one direction of a weight, [1, 4 x hidden, K] from codes [D, K, 4 x hidden]."""
    codes, scales, zeros = (node.value(each) for each in places)
    if codes is None or scales is None:
        raise Unsupported("its weights are not stored")
    matrix = codes[place].T.astype(np.int32)
    scale = scales.reshape(len(codes), -1)[place].astype(np.float32)
    if zeros is not None:
        matrix = matrix - zeros.reshape(len(codes), -1)[place].astype(np.int32)[:, None]
    rows = np.ascontiguousarray(np.broadcast_to(scale, (len(matrix),)))
    if matrix.min() < -128 or matrix.max() > 127:
        return relax.const((matrix * rows[:, None]).astype(np.float32)[None])
    stored = relax.const(np.ascontiguousarray(matrix[None].astype(np.int8)), "int8")
    zero = relax.const(np.zeros(len(matrix), np.int8), "int8")
    return node.emit(relax.op.dequantize(stored, relax.const(rows), zero, axis=1))
