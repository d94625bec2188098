"""A model whose weights are replaced by what forms decode to, to see how far its outputs move.

Of a model most is the same whatever form one weight has. What layers before it compute, and the
rows that a table gave, are computed once; what is left runs again for each form.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnx import ModelProto

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress.distance import measure_harm
from edgeopt.compress.learned import Learned
from edgeopt.compress.lookup import find_lookups
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.tail import Tail, has_subgraphs, nodes_after, read_from_outside, wrap
from edgeopt.model.graph import Weight, consumers
from edgeopt.model.oracle import Array, run_samples

Samples = Mapping[str, Array]
#: Ends of the graph that are kept to run from: each holds the weights from its place on.
_TAILS = 4
#: Of fewer samples, opening ends of the graph takes longer than they save.
_FEW = 8
#: Bytes of all samples' tensors that ends are given.
_MOST_GIVEN = 256_000_000


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
        self._judged, self._model, self._names = judged, model, names
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
        self._nodes = [node for node in model.graph.node if not given.intersection(node.output)]
        self._whole = _Stage(Tail(model, self._nodes, replaced=names), feeds)
        self.wide = self._run(self._whole, {}, len(feeds), threads=os.cpu_count() or 1)
        self._stages: dict[str, _Stage] = {}
        self.expected = [each[: judged.first] for each in self.wide]

    def open_ends(self) -> None:
        """Run single weights of layers from the first node that reads them on, where that pays."""
        if self._judged.first < _FEW:
            return
        self._stages = _open_stages(
            self._model, self._nodes, self._names, self._whole, self._judged.first
        )

    def reads_rows_of(self, table: str) -> bool:
        """Tell whether rows of a table can be replaced."""
        return table in self._lookups

    def replace(self, name: str, values: Array) -> float:
        """Return the harm of other values for a layer's weight, on the first samples."""
        stage = self._stages.get(name, self._whole)
        found = self._run(stage, {name: wrap(values)}, self._judged.first)
        return self._harm(found, self.expected)

    def read(self, table: str, part: ModelProto) -> float:
        """Return the harm of another part of a table, see Parts, on all samples."""
        rows = [
            {name: wrap(each) for name, each in found.items()}
            for found in self._lookups[table].rows_of(part)
        ]
        given = [{**feed, **own} for feed, own in zip(self._whole.given, rows, strict=True)]
        stage = _Stage(self._whole.tail, given)
        found = self._run(stage, {}, len(given), threads=os.cpu_count() or 1)
        return self._harm(found, self.wide)

    def outputs(self, values: Mapping[str, Array]) -> list[Array]:
        """Return outputs [S, ...] with other values for some layers' weights, on all samples."""
        replaced = {name: wrap(each) for name, each in values.items()}
        count = len(self._whole.given)
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


def _open_stages(
    model: ModelProto, nodes: Sequence[Any], names: Sequence[str], whole: _Stage, count: int
) -> dict[str, _Stage]:
    """Open ends of the graph, each from the first reader of some weights on, by the weights' names.

    None where nodes hold graphs, or where what they are given takes too much memory.
    """
    groups = _group(model, names)
    if has_subgraphs(model.graph) or len(groups) < 2:
        return {}
    readers = consumers(model.graph)
    ends = [
        nodes_after(model.graph, {each.output[0] for name in group for each in readers[name]})
        for group in groups
    ]
    inputs = [read_from_outside(model.graph, end) for end in ends]
    extra = list(dict.fromkeys(name for group in inputs for name in group))
    known = set(whole.tail.given)
    missing = [name for name in extra if name not in known]
    first = Tail(model, nodes, replaced=(), extra=missing)
    given = []
    for feed in whole.given[:count]:
        found = first.run_all({name: feed[name] for name in first.given})
        size = sum(found[name].nbytes for name in missing)
        if size * count > _MOST_GIVEN:
            return {}
        given.append({**feed, **{name: wrap(found[name]) for name in missing}})
    return {
        name: stage
        for group, end in zip(groups, ends, strict=True)
        for stage in (_Stage(Tail(model, end, replaced=group), given),)
        for name in group
    }


def _group(model: ModelProto, names: Sequence[str]) -> list[list[str]]:
    """Part weights into groups that are read one after the other."""
    wanted, ordered = set(names), dict[str, None]()
    for node in model.graph.node:
        ordered.update(dict.fromkeys(name for name in node.input if name in wanted))
    every = list(ordered)
    size = max(1, -(-len(every) // _TAILS))
    return [every[at : at + size] for at in range(0, len(every), size)]


@contextmanager
def applied(
    model: Model, chosen: Sequence[Choice], learned: Learned, folder: Path
) -> Iterator[Model]:
    """Apply choices, one per weight at most, and remove what was written afterwards."""
    with TemporaryDirectory(dir=folder) as own:
        plan = Plan(name="probe", choices=tuple(chosen))
        yield apply_plan(model, plan, directory=Path(own), learned=learned)
