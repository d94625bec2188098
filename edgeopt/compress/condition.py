"""Change float weights so that 8 bits lose less, without changing what the model computes.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, eq. 4): an activation's channels are divided by
s = max|X|^a / max|W|^(1 - a) and the rows of the weights that read it multiplied, so that no
channel of either stands out. Cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721):
between two layers with nothing but ReLU, channel i is divided by s = sqrt(r1 / r2), r1 and r2 being
its largest |weight| in the first and the second layer, so that both become sqrt(r1 r2).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgeopt.artifact import Choice
from edgeopt.compress.edit import Edit
from edgeopt.compress.reconstruct import expose, unmasked
from edgeopt.model.graph import Weight, attribute, consumers, initializers, producers
from edgeopt.model.oracle import Array, open_session
from edgeopt.scratch import scratch

#: Samples that activations are looked at on, at most.
MOST_SAMPLES = 128
#: Pairs influence one another: so often all of them are equalized.
_ROUNDS = 4
#: Methods whose activations are rounded.
_ROUNDED = ("int8-dynamic", "int8-static")


def smooth(
    model: ModelProto,
    wanted: Sequence[tuple[Weight, Choice]],
    samples: Mapping[str, Array],
    strength: float,
) -> ModelProto:
    """Move the spread of activations over channels into weights, samples being inputs [S, *shape].

    Only of matrices whose choice rounds activations. A multiplication stays before them.
    """
    readers = consumers(model.graph)
    groups: defaultdict[str, list[Weight]] = defaultdict(list)
    for weight, choice in wanted:
        nodes = readers[weight.name]
        plain = weight.role == "matmul" and len(nodes) == 1
        if plain and choice.method in _ROUNDED:
            groups[nodes[0].input[0]].append(weight)
    if not groups:
        return model
    largest = _reduce_channels(model, list(groups), samples, lambda x: np.abs(x).max(axis=0))
    edit = Edit(model)
    for source, given in groups.items():
        values = [edit.value(each) for each in given]
        rows = np.max([np.abs(each).max(axis=1) for each in values], axis=0)
        factors = smoothing_factors(np.max(largest[source], axis=0), rows, strength)
        nodes = [readers[each.name][0] for each in given]
        first = nodes[0]
        inverse = edit.store(f"{source}.smoothing", (1 / factors).astype(np.float32))
        smoothed = edit.insert(first, "Mul", (source, inverse), f"{source}.smooth")
        for weight, value, node in zip(given, values, nodes, strict=True):
            edit.put(weight, value * factors[:, None])
            node.input[0] = smoothed
    return edit.finish()


def smoothing_factors(activation: Array, weight: Array, strength: float) -> Array:
    """Return s [K] of the largest |X| and |W| [K] of each channel; 1 where one of them is zero."""
    usable = (activation > 0) & (weight > 0)
    one, other = np.where(usable, activation, 1.0), np.where(usable, weight, 1.0)
    found: Array = (one**strength / other ** (1 - strength)).astype(np.float32)
    return found


def mean_inputs(
    model: ModelProto, names: Sequence[str], samples: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the mean [K] of tensors over samples and all axes but that of their channels."""
    sums = _reduce_channels(
        model, names, samples, lambda x: np.append(x.sum(axis=0, dtype=np.float64), len(x))
    )
    totals = {name: np.sum(each, axis=0) for name, each in sums.items()}
    return {name: each[:-1] / max(each[-1], 1) for name, each in totals.items()}


def _reduce_channels(
    model: ModelProto,
    names: Sequence[str],
    samples: Mapping[str, Array],
    reduce: Callable[[Array], Array],
) -> dict[str, list[Array]]:
    """Reduce tensors to channels, sample by sample: images' are axis 1, others' the last one."""
    count = min(len(next(iter(samples.values()))), MOST_SAMPLES)
    found: dict[str, list[Array]] = {name: [] for name in names}
    ordered = sorted(found)
    with scratch() as folder:
        session = open_session(expose(model, ordered, folder))
        for index in range(count):
            feeds = {name: values[index] for name, values in samples.items()}
            for name, value in zip(ordered, session.run(ordered, feeds), strict=True):
                value = np.moveaxis(value, 1, -1) if value.ndim > 3 else value
                rows = unmasked(value.reshape(-1, value.shape[-1]), feeds)
                found[name].append(reduce(rows))
    return found


def equalize(model: ModelProto) -> ModelProto:
    """Give channels between two layers the same range in both; of layers of one group each."""
    stored = {name: numpy_helper.to_array(each) for name, each in initializers(model.graph).items()}
    pairs = _pairs(model, stored)
    changed: set[str] = set()
    for _ in range(_ROUNDS):
        for first, second in pairs:
            changed |= _equalize_pair(first, second, stored)
    made = ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name in changed:
            values = np.ascontiguousarray(stored[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return made


def _pairs(model: ModelProto, stored: Mapping[str, Array]) -> list[tuple[NodeProto, NodeProto]]:
    """List layers of which the second one alone reads the first one, through nothing but ReLU."""
    readers, makers = consumers(model.graph), producers(model.graph)
    outputs = {each.name for each in model.graph.output}
    found = []
    for node in model.graph.node:
        if not _is_layer(node, stored, readers):
            continue
        source = node.input[0]
        while source in makers and makers[source].op_type == "Relu":
            if len(readers[source]) > 1 or source in outputs:
                break
            source = makers[source].input[0]
        maker = makers.get(source)
        alone = len(readers[source]) == 1 and source not in outputs
        if maker is None or not alone or maker.op_type != node.op_type:
            continue
        if _is_layer(maker, stored, readers):
            found.append((maker, node))
    return found


def _is_layer(
    node: NodeProto, stored: Mapping[str, Array], readers: Mapping[str, list[NodeProto]]
) -> bool:
    if node.op_type not in ("Conv", "Gemm") or len(node.input) != 3:
        return False
    if not all(name in stored and len(readers[name]) == 1 for name in node.input[1:]):
        return False
    scaled = any(each.name in ("alpha", "beta") and each.f != 1.0 for each in node.attribute)
    single = attribute(node, "group", 1) == 1 and not attribute(node, "transA", 0)
    # A bias of one value per channel is divided with it.
    return not scaled and single and stored[node.input[2]].ndim == 1


def _equalize_pair(first: NodeProto, second: NodeProto, stored: dict[str, Array]) -> set[str]:
    made, read = _output_axis(first), 1 - _output_axis(second)
    one, other = stored[first.input[1]], stored[second.input[1]]
    r1, r2 = _largest(one, made), _largest(other, read)
    usable = (r1 > 0) & (r2 > 0)
    factors = np.sqrt(np.where(usable, r1, 1.0) / np.where(usable, r2, 1.0))
    stored[first.input[1]] = one / _along(factors, made, one.ndim)
    stored[first.input[2]] = stored[first.input[2]] / factors
    stored[second.input[1]] = other * _along(factors, read, other.ndim)
    return {*first.input[1:], second.input[1]}


def _output_axis(node: NodeProto) -> int:
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def _largest(values: Array, axis: int) -> Array:
    others = tuple(each for each in range(values.ndim) if each != axis)
    found: Array = np.abs(values).max(axis=others)
    return found


def _along(values: Array, axis: int, rank: int) -> Array:
    return values.reshape([-1 if each == axis else 1 for each in range(rank)])
