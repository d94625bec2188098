"""Bias correction: what rounding weights does to the mean of a layer's outputs is taken off.

Nagel et al. 2019, arXiv 1906.04721, section 4.2: with D = W' - W and the mean E[x] of a layer's
inputs on real samples, the outputs move by E[x] D on average, which is subtracted once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgeopt.artifact import Choice
from edgeopt.compress.condition import mean_inputs
from edgeopt.compress.edit import Edit
from edgeopt.compress.reconstruct import expose
from edgeopt.model.graph import Weight, attribute, consumers, initializers
from edgeopt.model.oracle import Array, open_session
from edgeopt.scratch import scratch


def correct_biases(
    before: ModelProto,
    after: ModelProto,
    wanted: Sequence[tuple[Weight, Choice]],
    samples: Mapping[str, Array],
) -> ModelProto:
    """Return the model after rounding, with an addition behind each layer that was rounded.

    before is the model that was rounded; samples are inputs [S, *shape].
    """
    readers = consumers(before.graph)
    layers = {
        weight.name: (weight, readers[weight.name][0])
        for weight, choice in wanted
        if choice.method != "float32" and weight.role in ("matmul", "gemm", "conv")
        if len(readers[weight.name]) == 1 and not attribute(readers[weight.name][0], "transA", 0)
    }
    if not layers:
        return after
    sources = {node.input[0] for _, node in layers.values()}
    means = mean_inputs(before, sorted(sources), samples)
    rounded = _rounded(after, [weight for weight, _ in layers.values()], samples)
    stored = initializers(before.graph)
    edit = Edit(after)
    makers = {node.output[0]: node for node in after.graph.node}
    for name, (weight, node) in layers.items():
        if name in rounded:
            change = rounded[name] - numpy_helper.to_array(stored[name])
            shift = mean_shift(node, weight, change, means[node.input[0]])
            _put_shift(edit, makers[node.output[0]], -shift, conv=node.op_type == "Conv")
    return edit.finish()


def mean_shift(node: NodeProto, weight: Weight, change: Array, mean: Array) -> Array:
    """Return how far the mean outputs [N] move when a weight changes, its inputs' mean being [K].

    Of a convolution the mean is that of each input channel; borders count as if they had it too.
    """
    if weight.role != "conv":
        matrix = change.T if weight.axis == 0 else change
        found: Array = mean @ matrix
        return found
    groups = attribute(node, "group", 1)
    summed = change.reshape(*change.shape[:2], -1).sum(axis=2)
    given = np.repeat(mean.reshape(groups, -1), len(change) // groups, axis=0)
    shift: Array = (summed * given).sum(axis=1)
    return shift


def _rounded(
    model: ModelProto, given: Sequence[Weight], samples: Mapping[str, Array]
) -> dict[str, Array]:
    """Decode weights, those that integers are multiplied with by their codes and scales."""
    made = {name for node in model.graph.node for name in node.output}
    names = [each.name for each in given if each.name in made]
    found: dict[str, Array] = {}
    if names:
        with scratch() as folder:
            session = open_session(expose(model, names, folder))
            # What weights are decoded to depends on no input, but a graph takes some.
            values = session.run(names, {name: each[0] for name, each in samples.items()})
        found = dict(zip(names, values, strict=True))
    stored = initializers(model.graph)
    for weight in given:
        codes = stored.get(f"{weight.name}.int8")
        if weight.name not in found and codes is not None:
            values = numpy_helper.to_array(codes).astype(np.float32)
            values = values * numpy_helper.to_array(stored[f"{weight.name}.scale"])
            turned = weight.role == "gemm" and weight.axis == 0
            found[weight.name] = values.T if turned else values
    return found


def _put_shift(edit: Edit, maker: NodeProto, shift: Array, *, conv: bool) -> None:
    """Add one number per channel to what a node makes, under the name that it made."""
    output = maker.output[0]
    values = shift.astype(np.float32)
    if conv:
        rank = edit.rank(output)
        values = values.reshape(-1, *[1] * (rank - 2))
    stored = edit.store(f"{output}.shift", values)
    edit.follow(maker, "Add", stored)
