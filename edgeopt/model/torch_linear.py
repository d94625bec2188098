"""Torch counterparts of ONNX products, pools, normalizations and quantization."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgeopt.model.torch_operators import Call, Compute, Operand

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_LARGEST = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGES = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
#: Smallest and largest code of each type that quantized values have.
_CODES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int32: (-(2**31), 2**31 - 1)}


def _gemm(call: Call, a: Tensor, b: Tensor, c: Operand = None) -> Tensor:
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    product = call.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + call.get("beta", 1.0) * c


def _padding(call: Call, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """Return what is padded, in torch's order: the last axis first."""
    rank = x.ndim - 2
    strides, dilations = _per_axis(call, "strides", rank), _per_axis(call, "dilations", rank)
    mode = call.text("auto_pad", "NOTSET")
    pads = list(call.get("pads", [0] * 2 * rank))
    if mode.startswith("SAME"):
        for at in range(rank):
            size = x.shape[2 + at]
            covered = (-(-size // strides[at]) - 1) * strides[at]
            total = max(covered + (kernel[at] - 1) * dilations[at] + 1 - size, 0)
            less, more = total // 2, total - total // 2
            pads[at], pads[at + rank] = (less, more) if mode == "SAME_UPPER" else (more, less)
    return [pads[at + side * rank] for at in reversed(range(rank)) for side in (0, 1)]


def _per_axis(call: Call, name: str, rank: int) -> list[int]:
    return list(call.get(name, [1] * rank))


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Operand = None) -> Tensor:
    rank = x.ndim - 2
    return _CONVOLUTIONS[rank](
        functional.pad(x, _padding(call, x, weight.shape[2:])),
        weight,
        bias,
        stride=_per_axis(call, "strides", rank),
        dilation=_per_axis(call, "dilations", rank),
        groups=call.get("group", 1),
    )


def product_rows(call: Call, x: Tensor, kernel: Sequence[int]) -> Tensor:
    """Return what a MatMul, Gemm or Conv multiplies with its weight, as rows [T, K].

    x is the first input; a convolution of one group, in one or two dimensions, has the size of its
    kernel, and its rows are patches of K = channels x kernel values.
    """
    if call.node.op_type != "Conv":
        x = x.mT if call.get("transA", 0) else x
        return x.reshape(-1, x.shape[-1])
    rank = x.ndim - 2
    x = functional.pad(x, _padding(call, x, kernel))
    wide = [1] * (2 - rank)
    patches = functional.unfold(
        x.reshape(*x.shape[:2], *wide, *x.shape[2:]),
        (*wide, *kernel),
        dilation=(*wide, *_per_axis(call, "dilations", rank)),
        stride=(*wide, *_per_axis(call, "strides", rank)),
    )
    return patches.mT.reshape(-1, patches.shape[1])


def result_rows(call: Call, y: Tensor) -> Tensor:
    """Return a tensor of the shape of such a node's output as rows [T, N], in the same order."""
    y = y.movedim(1, -1) if call.node.op_type == "Conv" else y
    return y.reshape(-1, y.shape[-1])


def _max_pool(call: Call, x: Tensor) -> Tensor:
    rank, kernel = x.ndim - 2, list(call.attributes["kernel_shape"])
    _refuse_ceiling(call)
    if len(call.node.output) > 1:
        raise call.refusal("it also returns where the largest values are")
    return _LARGEST[rank](
        functional.pad(x, _padding(call, x, kernel), value=float("-inf")),
        kernel,
        stride=_per_axis(call, "strides", rank),
        dilation=_per_axis(call, "dilations", rank),
    )


def _average_pool(call: Call, x: Tensor) -> Tensor:
    rank, kernel = x.ndim - 2, list(call.attributes["kernel_shape"])
    _refuse_ceiling(call)
    if any(each != 1 for each in _per_axis(call, "dilations", rank)):
        raise call.refusal("its window has gaps")
    pads, strides = _padding(call, x, kernel), _per_axis(call, "strides", rank)
    found = _AVERAGES[rank](functional.pad(x, pads), kernel, stride=strides)
    if call.get("count_include_pad", 0) or not any(pads):
        return found
    inside = functional.pad(torch.ones_like(x), pads)
    return found / _AVERAGES[rank](inside, kernel, stride=strides)


def _refuse_ceiling(call: Call) -> None:
    if call.get("ceil_mode", 0):
        raise call.refusal("its last window may reach beyond the padding (ceil_mode)")


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _batch_norm(
    call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, spread: Tensor
) -> Tensor:
    shape = (-1, *(1,) * (x.ndim - 2))
    factor = scale / torch.sqrt(spread + call.get("epsilon", 1e-5))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + shift.reshape(shape)


def _layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Operand = None) -> Tensor:
    if len(call.node.output) > 1:
        raise call.refusal("it also returns the mean")
    axis = call.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, shift, call.get("epsilon", 1e-5))


def _instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (-1, *(1,) * (x.ndim - 2))
    spread, mean = torch.var_mean(x, _space(x), correction=0, keepdim=True)
    normal = (x - mean) / torch.sqrt(spread + call.get("epsilon", 1e-5))
    return normal * scale.reshape(shape) + shift.reshape(shape)


def _aligned(call: Call, x: Tensor, values: Tensor) -> Tensor:
    """Give scales or zero points the shape that broadcasts to x: one for all, a channel, a block.

    Blocks lie along the axis, and each value of a block has its scale.
    """
    if values.ndim == 0 or values.numel() == 1:
        return values.reshape(())
    axis = call.get("axis", 1) % x.ndim
    if call.get("block_size", 0):
        return values.repeat_interleave(call.get("block_size", 0), axis)[
            tuple(slice(size) for size in x.shape)
        ]
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _quantize(call: Call, x: Tensor, scale: Tensor, zero: Operand = None) -> Tensor:
    """Return codes as floats: gradients pass the rounding, and end where codes do (STE).

    Bengio et al. 2013, arXiv 1308.3432.
    """
    kind = torch.uint8 if zero is None else zero.dtype
    if kind not in _CODES or "output_dtype" in call.attributes:
        raise call.refusal("its codes are neither int8 nor uint8")
    wide = x / _aligned(call, x, scale)
    # The sum of a whole number and nothing: exactly the code, with the gradient of what it rounds.
    rounded = torch.round(wide).detach() + (wide - wide.detach())
    offset = 0 if zero is None else _aligned(call, x, zero).to(x.dtype)
    return torch.clamp(rounded + offset, *_CODES[kind])


def _dequantize(call: Call, codes: Tensor, scale: Tensor, zero: Operand = None) -> Tensor:
    values = codes.to(scale.dtype)
    if zero is not None:
        values = values - _aligned(call, codes, zero).to(scale.dtype)
    return values * _aligned(call, codes, scale)


def _softmax(call: Call, x: Tensor) -> Tensor:
    return torch.softmax(x, call.get("axis", -1))


def _log_softmax(call: Call, x: Tensor) -> Tensor:
    return torch.log_softmax(x, call.get("axis", -1))


LINEAR: Mapping[str, Compute] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _call, x: x.mean(_space(x), keepdim=True),
    "GlobalMaxPool": lambda _call, x: x.amax(_space(x), keepdim=True),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "MatMul": lambda _call, a, b: a @ b,
    "MaxPool": _max_pool,
    "QuantizeLinear": _quantize,
    "Softmax": _softmax,
}
