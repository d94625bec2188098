"""A model whose weights are replaced by what forms decode to, to see how far its outputs move.

Of a model most is the same whatever form one weight has. What layers before it compute, and the
rows that a table gave, are computed once; what is left runs again for each form.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress.cost import stored_bytes
from edgeopt.compress.distance import measure_harm
from edgeopt.compress.learned import Learned
from edgeopt.compress.lookup import find_lookups
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.tail import Tail, has_subgraphs, nodes_after, read_from_outside, wrap
from edgeopt.model.graph import Weight, consumers
from edgeopt.model.oracle import Array, run_samples

Samples = Mapping[str, Array]
#: Ends of the graph that are kept to run from: as many as memory allows, or none.
_TAILS = (12, 6, 4)
#: Bytes of all samples' tensors that ends are given.
_MOST_GIVEN = 256_000_000
#: Bytes of the weights that more than the fewest ends have: each has those from its place on.
_MOST_STORED = 400_000_000


@dataclass(frozen=True, slots=True)
class Judged:
    """Inputs [S, *shape] that harm is measured on."""

    samples: Samples
    #: How many of the first count where single weights are replaced.
    first: int
    #: Whether the first output holds one score per class.
    classes: bool


@dataclass(frozen=True, slots=True)
class _Stage:
    """An end of the graph, and what it is given for each sample."""

    tail: Tail
    given: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _End:
    """Weights of layers, and the nodes from the first one that reads one of them on."""

    weights: Sequence[str]
    nodes: Sequence[NodeProto]
    #: The tensors that these read and do not make, without stored ones.
    given: Sequence[str]
    #: Bytes of the stored ones.
    stored: int


class Probe:
    """A model whose weights can be replaced for a run.

    Weights of layers are replaced by values; of a table, whose rows alone are read, by what the
    nodes that read it become.
    """

    def __init__(
        self,
        model: ModelProto,
        names: Sequence[str],
        judged: Judged,
        *,
        tables: Sequence[Weight] = (),
    ) -> None:
        """Open a model whose inner tensors are described; names are those of its layers."""
        self._judged, self._model = judged, model
        self._outputs = [each.name for each in model.graph.output]
        self._lookups = find_lookups(model, tables, names, judged.samples)
        feeds = [
            {name: wrap(values[index]) for name, values in judged.samples.items()}
            for index in range(len(next(iter(judged.samples.values()))))
        ]
        for lookup in self._lookups.values():
            for feed, rows in zip(feeds, lookup.rows_of(lookup.part), strict=True):
                feed.update({name: wrap(each) for name, each in rows.items()})
        given = {name for each in self._lookups.values() for name in each.outputs}
        nodes = [node for node in model.graph.node if not given.intersection(node.output)]
        self._ways = _find_ways(model, names)
        known = read_from_outside(model.graph, nodes)
        read = [name for ends in self._ways[:1] for each in ends for name in each.given]
        self._between = [name for name in dict.fromkeys(read) if name not in known]
        self._nodes, self._names, self._feeds = nodes, names, feeds
        self.wide = self._run(self._plain, {}, len(feeds), threads=os.cpu_count() or 1)
        self._stages: dict[str, _Stage] = {}
        self.expected = [each[: judged.first] for each in self.wide]

    @cached_property
    def _plain(self) -> _Stage:
        """The whole, of which no weight can be replaced: its products are the faster for it."""
        tail = Tail(self._model, self._nodes, replaced=(), extra=self._between)
        return _Stage(tail, self._feeds)

    @cached_property
    def _whole(self) -> _Stage:
        """The whole, of which all weights of layers can be replaced."""
        return _Stage(Tail(self._model, self._nodes, replaced=self._names), self._feeds)

    def open_ends(self) -> None:
        """Run single weights of layers from a node before the first one that reads them on.

        Unless what that takes of each sample is too much memory.
        """
        first = self._run_between(self._feeds[0])
        ends = next((ends for ends in self._ways if self._is_held(ends, first)), [])
        names = {name for end in ends for name in end.given if name in first}
        given = [
            {**feed, **{name: wrap(found[name]) for name in names}}
            for feed in (self._feeds[: self._judged.first] if ends else ())
            for found in (self._run_between(feed),)
        ]

        def opened(end: _End) -> _Stage:
            return _Stage(Tail(self._model, end.nodes, replaced=end.weights), given)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            stages = list(pool.map(opened, ends))
        self._stages = {
            name: stage for end, stage in zip(ends, stages, strict=True) for name in end.weights
        }

    def _run_between(self, feed: Mapping[str, Any]) -> dict[str, Array]:
        """Compute the tensors that ends are given, of one sample."""
        tail = self._plain.tail
        found = tail.run_all({name: feed[name] for name in tail.given})
        return {name: found[name] for name in self._between}

    def _is_held(self, ends: Sequence[_End], first: Mapping[str, Array]) -> bool:
        """Tell whether ends take little memory, by what they are given of the first sample."""
        names = {name for end in ends for name in end.given if name in first}
        if sum(first[name].nbytes for name in names) * self._judged.first > _MOST_GIVEN:
            return False
        return ends is self._ways[-1] or sum(end.stored for end in ends) <= _MOST_STORED

    def reads_rows_of(self, table: str) -> bool:
        """Tell whether rows of a table can be replaced."""
        return table in self._lookups

    def replace(self, name: str, values: Array) -> float:
        """Return the harm of other values for a layer's weight, on the first samples."""
        stage = self._stages.get(name, self._whole)
        found = self._run(stage, {name: wrap(values)}, self._judged.first)
        return self._harm(found, self.expected)

    def rows_of(self, table: str) -> npt.NDArray[np.intp]:
        """Return the rows of a table that are enough to tell what its rows become."""
        return self._lookups[table].rows

    def read(self, table: str, part: ModelProto, *, few: bool = False) -> float:
        """Return the harm of another part of a table, see Parts, on all samples.

        few: the part has those rows alone that rows_of gives.
        """
        rows = [
            {name: wrap(each) for name, each in found.items()}
            for found in self._lookups[table].rows_of(part, few=few)
        ]
        given = [{**feed, **own} for feed, own in zip(self._feeds, rows, strict=True)]
        stage = _Stage(self._plain.tail, given)
        found = self._run(stage, {}, len(given), threads=os.cpu_count() or 1)
        return self._harm(found, self.wide)

    def outputs(self, values: Mapping[str, Array]) -> list[Array]:
        """Return outputs [S, ...] with other values for some layers' weights, on all samples."""
        replaced = {name: wrap(each) for name, each in values.items()}
        count = len(self._feeds)
        return self._run(self._whole, replaced, count, threads=os.cpu_count() or 1)

    def compare(self, made: Model) -> float:
        """Return the harm that a model does on all samples."""
        return self._harm(run_samples(made, self._judged.samples), self.wide)

    def _harm(self, outputs: Sequence[Array], expected: Sequence[Array]) -> float:
        return measure_harm(outputs, expected, classes=self._judged.classes)

    def _run(
        self, stage: _Stage, replaced: Mapping[str, Any], count: int, *, threads: int = 1
    ) -> list[Array]:
        """Run the first so many samples through an end of the graph, several at once."""

        def one(given: Mapping[str, Any]) -> dict[str, Array]:
            needed = {name: given[name] for name in stage.tail.given}
            found = stage.tail.run({**needed, **replaced})
            return dict(zip(stage.tail.outputs, found, strict=True))

        chosen = stage.given[:count]
        if threads == 1:
            rows = list(map(one, chosen))
        else:
            pool = ThreadPoolExecutor(threads)
            try:
                rows = list(pool.map(one, chosen))
            finally:
                # When it is stopped, what did not begin never does.
                pool.shutdown(cancel_futures=True)
        return [self._stack(name, rows) for name in self._outputs]

    def _stack(self, name: str, rows: Sequence[Mapping[str, Array]]) -> Array:
        """Stack an output of all samples; one that no replaced weight leads to never moves."""
        at = self._outputs.index(name)
        if name in rows[0]:
            return np.stack([each[name] for each in rows])
        if hasattr(self, "wide"):
            known: Array = self.wide[at][: len(rows)]
            return known
        return np.zeros((len(rows), 1), np.float32)


def _find_ways(model: ModelProto, names: Sequence[str]) -> list[list[_End]]:
    """Part weights into groups that are read one after the other, in ways of ever fewer groups.

    Larger groups begin where smaller ones do. There are none where nodes hold graphs.
    """
    if has_subgraphs(model.graph):
        return []
    wanted, readers = set(names), consumers(model.graph)
    stored = {each.name: stored_bytes(each) for each in model.graph.initializer}
    every = list(
        dict.fromkeys(name for node in model.graph.node for name in node.input if name in wanted)
    )

    def end_of(group: Sequence[str]) -> _End:
        firsts = (reader.output[0] for name in group for reader in readers[name])
        nodes = nodes_after(model.graph, firsts)
        read = {name for node in nodes for name in node.input}
        size = sum(stored.get(name, 0) for name in read)
        return _End(group, nodes, read_from_outside(model.graph, nodes), size)

    size = max(1, -(-len(every) // _TAILS[0]))
    return [
        [end_of(every[at : at + wide]) for at in range(0, len(every), wide)]
        for wide in (size * _TAILS[0] // count for count in _TAILS)
    ]


@contextmanager
def applied(
    model: Model, chosen: Sequence[Choice], learned: Learned, folder: Path
) -> Iterator[Model]:
    """Apply choices, one per weight at most, and remove what was written afterwards."""
    with TemporaryDirectory(dir=folder) as own:
        plan = Plan(name="probe", choices=tuple(chosen))
        yield apply_plan(model, plan, directory=Path(own), learned=learned)
