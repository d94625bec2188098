"""Tables by their rows: which ones samples read, and what a form makes of those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from edgeopt.compress.part import Parts
from edgeopt.compress.reads import upstream_of
from edgeopt.compress.tail import has_subgraphs
from edgeopt.model.graph import Weight, consumers
from edgeopt.model.oracle import Array, open_session


@dataclass(frozen=True, slots=True)
class Lookup:
    """A table, of which nothing but rows counts."""

    #: The table as it came, see Parts.
    part: ModelProto
    #: What its rows are called where they are read.
    outputs: tuple[str, ...]
    #: Indices of each sample by name.
    indices: Sequence[Mapping[str, Array]]

    def rows_of(self, part: ModelProto) -> list[dict[str, Array]]:
        """Return what a part of the table gives for each sample."""
        session = open_session(part.SerializeToString())
        names = list(self.outputs)
        return [
            dict(zip(names, session.run(names, dict(each)), strict=True)) for each in self.indices
        ]


def find_lookups(
    model: ModelProto,
    tables: Sequence[Weight],
    layers: Sequence[str],
    samples: Mapping[str, Array],
) -> dict[str, Lookup]:
    """Find the tables whose rows can be given instead, on samples [S, *shape].

    Left out are those whose indices depend on another weight, or whose rows are an output.
    """
    if has_subgraphs(model.graph):
        return {}
    readers, parts = consumers(model.graph), Parts(model)
    outside = {each.name for each in model.graph.output}
    changing = {*layers, *(each.name for each in tables)}
    found = {}
    for table in tables:
        nodes = readers[table.name]
        outputs = tuple(node.output[0] for node in nodes)
        names = list(dict.fromkeys(node.input[1] for node in nodes))
        source = upstream_of(model, names)
        depends = changing.intersection(name for node in source.graph.node for name in node.input)
        if depends or outside.intersection(outputs):
            continue
        found[table.name] = Lookup(parts.of(table), outputs, _indices(source, names, samples))
    return found


def _indices(
    source: ModelProto, names: Sequence[str], samples: Mapping[str, Array]
) -> list[dict[str, Array]]:
    """Compute indices of each sample."""
    session = open_session(source.SerializeToString())
    needed = [each.name for each in session.get_inputs()]
    found = []
    for index in range(len(next(iter(samples.values())))):
        feeds = {name: samples[name][index] for name in needed}
        values = session.run([f"{name}.read" for name in names], feeds)
        found.append(dict(zip(names, values, strict=True)))
    return found
