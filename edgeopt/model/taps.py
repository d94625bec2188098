"""Cut the taps of convolutions that read padding at every place of the output, and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeopt.model.graph import consumers, infer_types, initializers, producers

_KERNEL, _PADS = "kernel_shape", "pads"


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution's kernel lies on one axis of its input."""

    size: int
    places: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int

    def is_dead(self, tap: int) -> bool:
        """Tell whether a tap reads padding wherever the window lies."""
        first = tap * self.dilation - self.before
        return not any(0 <= first + at * self.stride < self.size for at in range(self.places))

    def live(self) -> tuple[int, int]:
        """Return the first tap that is kept and the one behind the last: dead ones at the ends.

        Padding never becomes negative: what would lie beyond the input's edge then is kept.
        """
        start, end, before, after = 0, self.taps, self.before, self.after
        while start < end - 1 and before >= self.dilation and self.is_dead(start):
            start, before = start + 1, before - self.dilation
        while start < end - 1 and after >= self.dilation and self.is_dead(end - 1):
            end, after = end - 1, after - self.dilation
        return start, end


def drop_dead_taps(model: ModelProto) -> None:
    """Shrink kernels by what multiplies zeros alone; outputs stay as they are.

    Where a sequence ends in one step, as of the states of a speech detector, two of three taps of a
    padded convolution are. Kernels [M, C / groups, *taps] that are stored, in float or as codes
    that are decoded, lose them where nothing else reads them.
    """
    graph = model.graph
    if not any(node.op_type == "Conv" for node in graph.node):
        return
    found = infer_types(model).graph
    known = (*found.input, *found.value_info, *found.output)
    shapes = {
        each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in known
    }
    stored, makers, readers = initializers(graph), producers(graph), consumers(graph)
    for node in graph.node:
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
            continue
        maker = makers.get(node.input[1])
        decoded = maker is not None and maker.op_type == "DequantizeLinear"
        name = maker.input[0] if maker is not None and decoded else node.input[1]
        tensor = stored.get(name)
        if tensor is None or max(len(readers[each]) for each in (name, node.input[1])) > 1:
            continue
        windows = list(_windows(node, tensor, shapes))
        kept = [each.live() for each in windows]
        if any(span != (0, each.taps) for span, each in zip(kept, windows, strict=True)):
            tensor.CopyFrom(_cut(tensor, kept))
            _describe(node, windows, kept)


def _windows(
    node: NodeProto, kernel: TensorProto, shapes: Mapping[str, list[int]]
) -> Iterator[Window]:
    """Yield how the kernel lies on each axis; none where shapes are open or padding automatic."""
    source, result = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
    taps = list(kernel.dims[2:])
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    open_shape = len(source) != len(taps) + 2 or len(result) != len(source)
    if open_shape or 0 in (*source, *result) or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        return
    axes = len(taps)
    pads = given.get(_PADS, [0] * (2 * axes))
    strides, dilations = (given.get(each, [1] * axes) for each in ("strides", "dilations"))
    for axis in range(axes):
        yield Window(
            source[axis + 2],
            result[axis + 2],
            taps[axis],
            strides[axis],
            dilations[axis],
            pads[axis],
            pads[axis + axes],
        )


def _cut(tensor: TensorProto, kept: list[tuple[int, int]]) -> TensorProto:
    """Return a kernel [M, C / groups, *taps] of the taps that are kept."""
    values = numpy_helper.to_array(tensor)
    inner = tuple(slice(start, end) for start, end in kept)
    return numpy_helper.from_array(values[(slice(None), slice(None), *inner)].copy(), tensor.name)


def _describe(node: NodeProto, windows: list[Window], kept: list[tuple[int, int]]) -> None:
    """Write a convolution's kernel and padding as they are now."""
    spans = list(zip(windows, kept, strict=True))
    before = [each.before - start * each.dilation for each, (start, _) in spans]
    after = [each.after - (each.taps - end) * each.dilation for each, (_, end) in spans]
    rest = [each for each in node.attribute if each.name not in (_KERNEL, _PADS)]
    del node.attribute[:]
    node.attribute.extend(rest)
    node.attribute.append(helper.make_attribute(_KERNEL, [end - start for start, end in kept]))
    node.attribute.append(helper.make_attribute(_PADS, [*before, *after]))
