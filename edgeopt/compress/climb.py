"""Leave out units of each group by itself, level after level, and measure what that does.

Units go by the optimal brain surgeon; harm is how far the outputs move on calibration samples:
their relative squared error, for the divergence of class probabilities is next to nothing on
samples that a model was trained on. No labels and no test samples are used.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper

from edgeopt.artifact import Model
from edgeopt.compress.distance import measure_distance
from edgeopt.compress.groups import Group
from edgeopt.compress.ladder import Ladders, Step, levels_of, wide_groups
from edgeopt.compress.matrices import as_matrix, from_matrix, row_units
from edgeopt.compress.moments import (
    Moments,
    Samples,
    chunks,
    collect_moments,
    frontier,
    products_of,
)
from edgeopt.compress.surgeon import Level, Reader, remove_units
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import Array
from edgeopt.model.torch_graph import TorchGraph

#: Samples that harm is measured on, of those that products are fitted to.
_JUDGED = 32


def measure_ladders(model: Model, samples: Samples) -> Ladders:
    """Leave out units of each group by itself; samples are calibration inputs [S, *shape].

    Raises ModelError where there is nothing to cut, or an operator has no counterpart in torch.
    """
    loaded = onnx.load(model.path)
    groups = wide_groups(loaded)
    moments = collect_moments(loaded, products_of(list(groups.values())), samples)
    probe = _Probe(loaded, samples)
    steps = {name: _climb_down(each, probe, moments) for name, each in groups.items()}
    return Ladders(steps=steps)


def _climb_down(group: Group, probe: "_Probe", moments: Mapping[str, Moments]) -> tuple[Step, ...]:
    """Leave out more and more units of one group; the first step is all of them."""
    readers = [probe.reader(group, name, moments[name]) for name in group.readers]
    known = probe.frontier(group)
    steps = []
    worst = 0.0
    for level in remove_units(readers, group.units, levels_of(group)):
        harm = 0.0 if len(level.kept) == group.units else probe.measure(group, level, known)
        # More cannot be cut with less harm: what says so is noise of few samples.
        worst = max(worst, harm)
        steps.append(Step(kept=level.kept, harm=worst))
    return tuple(steps)


class _Probe:
    """A model whose weights are replaced, group by group, to see what that does."""

    def __init__(self, model: ModelProto, samples: Samples) -> None:
        self._module = TorchGraph(model)
        self._module.requires_grad_(False)
        self._graph = model.graph
        self._stored = initializers(model.graph)
        self._samples = {name: values[:_JUDGED] for name, values in samples.items()}
        self._expected = self._run(self._samples)

    def reader(self, group: Group, name: str, moments: Moments) -> Reader:
        """Return one weight that reads a group as the surgeon takes it."""
        node = group.readers[name]
        values = numpy_helper.to_array(self._stored[name])
        units = row_units(group.labels[name], values.shape)
        return Reader(as_matrix(node, values), units, moments)

    def frontier(self, group: Group) -> Samples:
        """Compute once what the weights that read a group do not change, but what they do needs."""
        wanted = frontier(self._graph, [node.output[0] for node in group.readers.values()])
        return {**self._samples, **dict(zip(wanted, self._run(self._samples, wanted), strict=True))}

    def measure(self, group: Group, level: Level, known: Samples) -> float:
        """Return the harm of a level of one group, given its frontier."""
        kept = {name: self._module.parameter(name).clone() for name in group.readers}
        for (name, node), matrix in zip(group.readers.items(), level.weights, strict=True):
            values = from_matrix(node, matrix, tuple(kept[name].shape))
            self._module.parameter(name).copy_(torch.from_numpy(values))
        found = measure_distance(self._run(known), self._expected, classes=False)
        for name, values in kept.items():
            self._module.parameter(name).copy_(values)
        return found

    def _run(self, samples: Samples, wanted: Sequence[str] | None = None) -> list[Array]:
        parts = [self._module.run_batch(feeds, wanted=wanted) for feeds in chunks(samples)]
        columns = zip(*parts, strict=True)
        return [np.concatenate([each.numpy() for each in column]) for column in columns]
