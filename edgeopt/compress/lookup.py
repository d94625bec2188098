"""Tables by their rows: which ones samples read, and what a form makes of those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, numpy_helper

from edgeopt.artifact import Choice, Method
from edgeopt.compress.part import Parts
from edgeopt.compress.reads import upstream_of
from edgeopt.compress.stretch import has_subgraphs
from edgeopt.model.graph import Weight, consumers
from edgeopt.model.oracle import Array, open_session

#: Methods that store each row of a table by itself.
_BY_ROWS: tuple[Method, ...] = ("float16", "int8-rows", "int4-blocks", "int2-blocks")


@dataclass(frozen=True, slots=True)
class Lookup:
    """A table, of which nothing but rows counts."""

    #: The table as it came, see Parts.
    part: ModelProto
    #: What its rows are called where they are read.
    outputs: tuple[str, ...]
    #: Indices of each sample by name.
    indices: Sequence[Mapping[str, Array]]
    #: The rows that samples read, and that of the largest number, which scales may depend on.
    rows: npt.NDArray[np.intp]

    def rows_of(self, part: ModelProto, *, few: bool = False) -> list[dict[str, Array]]:
        """Return what a part of the table, or of few of its rows, gives for each sample."""
        session = open_session(part.SerializeToString())
        names = list(self.outputs)
        indices = map(self._among_few, self.indices) if few else self.indices
        return [dict(zip(names, session.run(names, dict(each)), strict=True)) for each in indices]

    def _among_few(self, indices: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: np.searchsorted(self.rows, each).astype(each.dtype)
            for name, each in indices.items()
        }


def is_by_rows(choice: Choice) -> bool:
    """Tell whether what a table's row becomes depends on that row and the largest number alone."""
    if choice.method not in _BY_ROWS:
        return False
    return choice == Choice(weight=choice.weight, method=choice.method, block=choice.block)


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
        part, indices = parts.of(table), _indices(source, names, samples)
        found[table.name] = Lookup(part, outputs, indices, _rows(part, table, indices))
    return found


def _rows(
    part: ModelProto, table: Weight, indices: Sequence[Mapping[str, Array]]
) -> npt.NDArray[np.intp]:
    """List the rows that are read, all of them where one is counted from the end."""
    (tensor,) = (each for each in part.graph.initializer if each.name == table.name)
    largest = np.abs(numpy_helper.to_array(tensor)).max(axis=1).argmax()
    read = np.unique([place for each in indices for found in each.values() for place in found.flat])
    if read.size and read[0] < 0:
        return np.arange(table.shape[0])
    return np.union1d(read, [largest]).astype(np.intp)


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
