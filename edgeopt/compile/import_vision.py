"""Convolution, pooling, resizing and padding from ONNX, their geometry resolved in numbers.

TVM's importer loses what these need: its pools round and count otherwise with ceil_mode, its Resize
forgets the scales, automatic padding becomes a copy of the image. What Relax has no operator for
becomes a call by name with the numbers as a constant; vision.py and pooling.py lower it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from edgeopt.compile import interpolation
from edgeopt.compile.operators.node import Unsupported
from edgeopt.compile.views import constant_of, shape_of

Inputs = Sequence[relax.Expr | None]
Attributes = Mapping[str, object]
Converter = Callable[[relax.BlockBuilder, Inputs, Attributes], relax.Expr | None]

#: (image, Axes as rows); its result's shape says how many positions there are.
MAX_POOL = "edgeopt.max_pool"
#: (image, Axes as rows, whether padding counts).
AVERAGE_POOL = "edgeopt.average_pool"
#: (image, filters, Axes as rows, groups).
CONV_TRANSPOSE = "edgeopt.conv_transpose"
#: (image, then sources and weights [positions, taps] of every spatial axis).
RESIZE = "edgeopt.resize"


@dataclass(frozen=True, slots=True)
class Axis:
    """How a window moves along one spatial axis."""

    kernel: int
    stride: int
    before: int
    after: int
    dilation: int

    @property
    def span(self) -> int:
        """Elements from a window's first tap to its last."""
        return self.dilation * (self.kernel - 1) + 1

    def positions(self, size: int, *, ceil: bool = False) -> int:
        """Count the windows; one that would start beyond the image and its left padding is none."""
        room = size + self.before + self.after - self.span
        if not ceil:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= size + self.before else count


def call_named(
    name: str, arguments: Sequence[relax.Expr], shape: Sequence[int], dtype: str
) -> relax.Call:
    """Call what only our lowerings know."""
    result = relax.TensorType([int(size) for size in shape], dtype)
    return relax.op.call_pure_packed(name, *arguments, ty_args=[result])


def _numbers(attributes: Attributes, name: str, default: Sequence[int]) -> list[int]:
    values = attributes.get(name, default)
    assert isinstance(values, Sequence)
    return [int(value) for value in values]


def _text(attributes: Attributes, name: str, default: str) -> str:
    value = attributes.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _integer(attributes: Attributes, name: str, default: int) -> int:
    return int(str(attributes.get(name, default)))


def window_axes(
    attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int]
) -> tuple[Axis, ...]:
    """Resolve kernel, strides, dilations and padding, automatic or not, for each spatial axis."""
    rank = len(sizes)
    strides = _numbers(attributes, "strides", [1] * rank)
    dilations = _numbers(attributes, "dilations", [1] * rank)
    pads = _numbers(attributes, "pads", [0] * (2 * rank))
    automatic = _text(attributes, "auto_pad", "NOTSET")
    axes = []
    for i, size in enumerate(sizes):
        before, after = pads[i], pads[rank + i]
        if automatic == "VALID":
            before = after = 0
        if automatic.startswith("SAME"):
            span = dilations[i] * (kernel[i] - 1) + 1
            total = max(0, (-(-size // strides[i]) - 1) * strides[i] + span - size)
            before = total - total // 2 if automatic == "SAME_LOWER" else total // 2
            after = total - before
        axes.append(Axis(kernel[i], strides[i], before, after, dilations[i]))
    return tuple(axes)


def pack_axes(axes: Sequence[Axis]) -> relax.Expr:
    """Write axes as rows of a constant."""
    rows = [(each.kernel, each.stride, each.before, each.after, each.dilation) for each in axes]
    return relax.const(np.array(rows, np.int64))


def read_axes(expr: relax.Expr) -> tuple[Axis, ...]:
    """Read what pack_axes wrote."""
    values = constant_of(expr)
    assert values is not None
    return tuple(Axis(*(int(number) for number in row)) for row in values)


def _conv(builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes) -> relax.Expr | None:
    """Convolve with the padding in the operator, then add the bias."""
    image, filters, bias = (*inputs, None)[:3]
    assert image is not None
    assert filters is not None
    sizes = shape_of(image)[2:]
    axes = window_axes(attributes, sizes, shape_of(filters)[2:])
    if len(sizes) not in (1, 2, 3) or any(min(each.before, each.after) < 0 for each in axes):
        return None
    operator = (relax.op.nn.conv1d, relax.op.nn.conv2d, relax.op.nn.conv3d)[len(sizes) - 1]
    result = operator(
        image,
        filters,
        strides=[each.stride for each in axes],
        padding=[each.before for each in axes] + [each.after for each in axes],
        dilation=[each.dilation for each in axes],
        groups=_integer(attributes, "group", 1),
    )
    return _add_bias(builder, result, bias, len(sizes))


def _add_bias(
    builder: relax.BlockBuilder, result: relax.Expr, bias: relax.Expr | None, rank: int
) -> relax.Expr:
    if bias is None:
        return result
    result = builder.emit(result)
    value = constant_of(bias)
    if value is not None:
        return relax.op.add(result, relax.const(value.reshape(1, -1, *[1] * rank)))
    return relax.op.add(result, builder.emit(relax.op.reshape(bias, [1, -1, *[1] * rank])))


def _conv_transpose(
    builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
) -> relax.Expr | None:
    """Keep a transposed convolution with constant filters whole, its padding resolved."""
    image, filters, bias = (*inputs, None)[:3]
    assert image is not None
    assert filters is not None
    shape, sizes = shape_of(image), shape_of(image)[2:]
    if len(sizes) not in (1, 2):
        return None
    if constant_of(filters) is None:
        raise Unsupported("its filters are computed; they are packed when the model is compiled")
    kernel = shape_of(filters)[2:]
    axes, outputs = [], []
    for i, (size, each) in enumerate(zip(sizes, window_axes({}, sizes, kernel), strict=True)):
        axis, output = _transposed_axis(attributes, (i, len(sizes)), size, each.kernel)
        axes.append(axis)
        outputs.append(output)
    groups = _integer(attributes, "group", 1)
    result = call_named(
        CONV_TRANSPOSE,
        [image, filters, pack_axes(axes), relax.const(np.array(groups, np.int64))],
        (shape[0], shape_of(filters)[1] * groups, *outputs),
        image.ty.dtype.dtype,
    )
    return _add_bias(builder, result, bias, len(sizes))


def _transposed_axis(
    attributes: Attributes, which: tuple[int, int], size: int, kernel: int
) -> tuple[Axis, int]:
    """Resolve axis (place, of so many) of a transposed convolution, and how long its result is."""
    place, rank = which
    stride = _numbers(attributes, "strides", [1] * rank)[place]
    dilation = _numbers(attributes, "dilations", [1] * rank)[place]
    extra = _numbers(attributes, "output_padding", [0] * rank)[place]
    pads = _numbers(attributes, "pads", [])
    before, after = (pads[place], pads[len(pads) // 2 + place]) if pads else (0, 0)
    automatic = _text(attributes, "auto_pad", "NOTSET")
    full = stride * (size - 1) + extra + dilation * (kernel - 1) + 1
    wanted = _numbers(attributes, "output_shape", [])
    output = wanted[place - rank] if wanted else 0
    if automatic.startswith("SAME") and not wanted:
        output = size * stride
    if output:
        total = max(0, full - output)
        # The standard gives the odd one to the beginning, but for SAME_UPPER.
        before = total // 2 if automatic == "SAME_UPPER" else total - total // 2
        after = total - before
    else:
        output = full - before - after
    return Axis(kernel, stride, before, after, dilation), output


def _pool(name: str) -> Converter:
    def convert(
        builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
    ) -> relax.Expr | None:
        del builder
        image = inputs[0]
        assert image is not None
        shape = shape_of(image)
        kernel = _numbers(attributes, "kernel_shape", ())
        if len(kernel) not in (1, 2, 3) or len(shape) != len(kernel) + 2:
            return None
        axes = window_axes(attributes, shape[2:], kernel)
        ceil = bool(_integer(attributes, "ceil_mode", 0))
        outputs = [
            each.positions(size, ceil=ceil) for each, size in zip(axes, shape[2:], strict=True)
        ]
        arguments = [image, pack_axes(axes)]
        if name == AVERAGE_POOL:
            included = _integer(attributes, "count_include_pad", 0)
            arguments.append(relax.const(np.array(included, np.int64)))
        return call_named(name, arguments, (*shape[:2], *outputs), image.ty.dtype.dtype)

    return convert


def _resize(
    builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
) -> relax.Expr | None:
    """Resize spatial axes by constant scales or sizes, the weights of each axis precomputed."""
    del builder
    image, roi, scales, sizes = (*inputs, None, None, None)[:4]
    assert image is not None
    shape = shape_of(image)
    values = [None if each is None else constant_of(each) for each in (roi, scales, sizes)]
    request = interpolation.read_request(shape, attributes, values)
    if request is None or image.ty.dtype.dtype != "float32" or len(shape) not in (3, 4):
        return None
    outputs, tables = interpolation.make_tables(request)
    if outputs[:2] != shape[:2]:
        return None
    arguments = [relax.const(each) for table in tables[2:] for each in table]
    return call_named(RESIZE, [image, *arguments], outputs, "float32")


def _pad(builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes) -> relax.Expr | None:
    """Pad by constants with one value; other modes and cropping are left to TVM."""
    del builder
    image, pads, value, axes = (*inputs, None, None, None)[:4]
    if _text(attributes, "mode", "constant") != "constant" or image is None or pads is None:
        return None
    counts = constant_of(pads)
    chosen = np.arange(len(shape_of(image))) if axes is None else constant_of(axes)
    fill = np.zeros((), np.float32) if value is None else constant_of(value)
    if counts is None or chosen is None or fill is None or np.any(counts < 0):
        return None
    rank = len(shape_of(image))
    widths = np.zeros((rank, 2), np.int64)
    for place, axis in enumerate(chosen):
        widths[int(axis) % rank] = counts[place], counts[len(chosen) + place]
    # Relax keeps the value as a float, which large integers do not fit.
    if not image.ty.dtype.dtype.startswith("float"):
        return None
    width = [int(number) for number in widths.reshape(-1)]
    return relax.op.nn.pad(image, width, pad_value=float(fill.reshape(-1)[0]))


def _batch_norm(
    builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
) -> relax.Expr | None:
    """Normalize by constant statistics: one multiplication and one addition per channel."""
    image = inputs[0]
    values = [None if each is None else constant_of(each) for each in inputs[1:5]]
    if image is None or _integer(attributes, "training_mode", 0):
        return None
    scale, bias, mean, variance = (*values, None, None, None, None)[:4]
    if scale is None or bias is None or mean is None or variance is None:
        return None
    if image.ty.dtype.dtype != "float32":
        return None
    epsilon = float(str(attributes.get("epsilon", 1e-5)))
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    shift = bias.astype(np.float64) - mean * factor
    ones = [1] * (len(shape_of(image)) - 2)
    factors, shifts = (each.astype(np.float32).reshape(1, -1, *ones) for each in (factor, shift))
    scaled = builder.emit(relax.op.multiply(image, relax.const(factors)))
    return relax.op.add(scaled, relax.const(shifts))


#: ONNX operators whose geometry is resolved here.
CONVERTERS: dict[str, Converter] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool(MAX_POOL),
    "AveragePool": _pool(AVERAGE_POOL),
    "Resize": _resize,
    "Pad": _pad,
    "BatchNormalization": _batch_norm,
}
