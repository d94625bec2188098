"""How often each row of a table is read."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from edgeopt.compress.reconstruct import unmasked
from edgeopt.model.graph import Weight, consumers, initializers, producers
from edgeopt.model.oracle import Array, open_session

#: What rows are expected to be read at least: a table of which no row was read once only.
_LEAST = 1e-3


def count_reads(
    model: ModelProto, wanted: list[Weight], samples: Mapping[str, Array]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return counts [V] by table: how often as many new samples can be expected to read each row.

    Of a row that samples read, that is how often they did. Of the others it is as much for all of
    them as there are rows that were read once (Good 1953, Biometrika 40): rare words, of which a
    task has many. samples: inputs as [S, *shape]; what only padding reads is not counted.
    """
    readers = consumers(model.graph)
    sources = {each.name: [node.input[1] for node in readers[each.name]] for each in wanted}
    names = sorted({name for group in sources.values() for name in group})
    counts = {each.name: np.zeros(each.shape[0], np.float32) for each in wanted}
    session = open_session(upstream_of(model, names).SerializeToString())
    inputs = [each.name for each in session.get_inputs()]
    for index in range(len(next(iter(samples.values())))):
        feeds = {name: values[index] for name, values in samples.items()}
        found = session.run(
            [f"{name}.read" for name in names], {name: feeds[name] for name in inputs}
        )
        for table, group in sources.items():
            for name in group:
                read = unmasked(found[names.index(name)].reshape(-1), feeds)
                np.add.at(counts[table], read, 1)
    return {name: _expected(found) for name, found in counts.items()}


def _expected(counts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give rows that were not read their share of what was read once."""
    unread = counts == 0
    share = (counts == 1).sum() / max(unread.sum(), 1)
    return np.where(unread, np.float32(max(share, _LEAST)), counts)


def upstream_of(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the part of a model that computes some of its tensors, as outputs named *.read."""
    makers, stored = producers(model.graph), initializers(model.graph)
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name and name not in needed:
            needed.add(name)
            waiting.extend(makers[name].input if name in makers else ())
    nodes = [node for node in model.graph.node if needed.intersection(node.output)]
    given = {each.name: each for each in (*model.graph.input, *model.graph.value_info)}
    # An output has to be made by a node, also where it is an input or a stored tensor.
    outputs = [helper.make_empty_tensor_value_info(f"{name}.read") for name in names]
    copies: list[NodeProto] = [
        helper.make_node("Identity", [name], [f"{name}.read"]) for name in names
    ]
    graph = helper.make_graph(
        [*nodes, *copies],
        "indices",
        [each for name, each in given.items() if name in needed and name not in makers],
        outputs,
        [tensor for name, tensor in stored.items() if name in needed],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
