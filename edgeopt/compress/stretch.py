"""A graph cut into stretches of nodes, each a model of its own.

What comes before a stretch is computed once and given. Samples go through one stretch after the
other: what it reads of weights then stays in a processor's cache, where those of a whole model do
not (MiniLM-L6: 42 MB).
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper

from edgeopt.model.graph import describer, initializers
from edgeopt.model.oracle import Array, open_session

#: Values by name that sessions take without looking at them again.
Given = Mapping[str, Any]


def has_subgraphs(graph: GraphProto) -> bool:
    """Tell whether nodes hold graphs, which read tensors that their inputs do not name."""
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return any(each.type in kinds for node in graph.node for each in node.attribute)


def read_from_outside(graph: GraphProto, nodes: Sequence[NodeProto]) -> list[str]:
    """List the tensors that nodes read and do not make, without stored ones."""
    if has_subgraphs(graph):
        return [each.name for each in graph.input]
    made = {name for node in nodes for name in node.output}
    stored = initializers(graph)
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    return [name for name in read if name not in made and name not in stored]


def wrap(values: Array) -> Any:
    """Put values into one buffer for many runs: a numpy array would be looked at again in each."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))


class Stretch:
    """Nodes that lie one after the other; what they read of weights can be replaced for a run."""

    def __init__(
        self,
        model: ModelProto,
        nodes: Sequence[NodeProto],
        *,
        replaced: Collection[str],
        later: Collection[str],
    ) -> None:
        """Take nodes of a model whose inner tensors are described: all of them, with subgraphs.

        later: what is read behind them, the graph's outputs included.
        """
        made = dict.fromkeys(name for node in nodes for name in node.output)
        read = {name for node in nodes for name in node.input}
        whole = has_subgraphs(model.graph)
        self._model, self._nodes, self._later = model, nodes, frozenset(later)
        self._outputs = [name for name in made if name in self._later]
        self._given = read_from_outside(model.graph, nodes)
        #: The stored tensors that can be replaced here.
        self.replaced = frozenset(replaced if whole else read.intersection(replaced))

    @cached_property
    def _plain(self) -> onnxruntime.InferenceSession:
        """Nodes of which nothing is replaced: their products are the faster for it."""
        return open_session(_write(self._model, self._nodes, self._outputs, ()))

    @cached_property
    def _open(self) -> onnxruntime.InferenceSession:
        return open_session(_write(self._model, self._nodes, self._outputs, self.replaced))

    def run(self, known: Given, replaced: Given) -> dict[str, Any]:
        """Return what is read later, of tensors that are known before; some stored are replaced."""
        own = {name: value for name, value in replaced.items() if name in self.replaced}
        session = self._open if own else self._plain
        given = {name: known[name] for name in self._given}
        found = session.run_with_ort_values(self._outputs, {**given, **own})
        kept = {name: value for name, value in known.items() if name in self._later}
        return kept | dict(zip(self._outputs, found, strict=True))


def cut_stretches(
    model: ModelProto, nodes: Sequence[NodeProto], names: Sequence[str], count: int
) -> list[Stretch]:
    """Cut nodes of a model where weights are read first, into so many stretches at most.

    names: the stored tensors that can be replaced. With subgraphs there is one stretch.
    """
    outputs = {each.name for each in model.graph.output}
    if has_subgraphs(model.graph):
        return [Stretch(model, nodes, replaced=names, later=outputs)]
    live = _leading_to(nodes, outputs)
    wanted, firsts = set(names), dict[str, int]()
    for place, node in enumerate(live):
        for name in wanted.intersection(node.input):
            firsts.setdefault(name, place)
    size = max(1, -(-len(firsts) // count))
    cuts = sorted({0, *list(firsts.values())[size::size]})
    found, later = [], outputs
    for first, end in reversed(list(pairwise([*cuts, len(live)]))):
        piece = live[first:end]
        found.append(Stretch(model, piece, replaced=names, later=later))
        later = later.union(read_from_outside(model.graph, piece))
    return found[::-1]


def _leading_to(nodes: Sequence[NodeProto], outputs: Collection[str]) -> list[NodeProto]:
    """Leave out the nodes that no output depends on."""
    needed, found = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _write(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    outputs: Sequence[str],
    replaced: Collection[str],
) -> bytes:
    """Write nodes as a model; an initializer that is an input as well is one that can be replaced.

    No optimizer folds it then.
    """
    stored = initializers(model.graph)
    read = set(stored) if has_subgraphs(model.graph) else set()
    read.update(name for node in nodes for name in node.input)
    describe = describer(model.graph)
    defaults = [
        helper.make_tensor_value_info(name, stored[name].data_type, stored[name].dims)
        for name in replaced
        if name in read
    ]
    made = helper.make_graph(
        nodes,
        "stretch",
        [*map(describe, read_from_outside(model.graph, nodes)), *defaults],
        [*map(describe, outputs)],
        [tensor for name, tensor in stored.items() if name in read],
    )
    whole = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    content: bytes = whole.SerializeToString()
    return content
