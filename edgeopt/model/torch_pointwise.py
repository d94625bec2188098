"""Torch counterparts of ONNX operators that take every value by itself."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional

from edgeopt.model.torch_operators import Call, Compute, Operand


def _unary(function: Any) -> Compute:
    return lambda _call, x: function(x)


def _binary(function: Any) -> Compute:
    return lambda _call, a, b: function(a, b)


def _folded(function: Any) -> Compute:
    return lambda _call, *given: reduce(function, given)


def _div(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    # Integers are divided towards zero, as in C.
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _clip(_call: Call, x: Tensor, low: Operand = None, high: Operand = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.text("approximate", "none"))


def _leaky(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


def _elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.get("alpha", 1.0))


def _prelu(_call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


def _cast(call: Call, x: Tensor) -> Tensor:
    kind = helper.tensor_dtype_to_np_dtype(call.get("to", TensorProto.FLOAT))
    found = getattr(torch, kind.name, None)
    if found is None:
        raise call.refusal(f"torch has no type {kind.name}")
    return x.to(found)


POINTWISE: Mapping[str, Compute] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Div": _div,
    "Dropout": lambda _call, x, *_: x,
    "Elu": _elu,
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "LeakyRelu": _leaky,
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(functional.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": _unary(torch.tanh),
    "Where": lambda _call, chosen, a, b: torch.where(chosen, a, b),
}
