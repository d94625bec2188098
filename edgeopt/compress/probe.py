"""A model whose weights are replaced by what forms decode to, to see how far its outputs move.

Of a model most is the same whatever form one weight has. What layers before it compute, and the
rows that a table gave, are computed once; what is left runs again for each form.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress.distance import measure_harm
from edgeopt.compress.learned import Learned
from edgeopt.compress.lookup import find_lookups
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.stretch import cut_stretches, wrap
from edgeopt.model.graph import Weight
from edgeopt.model.oracle import Array, run_samples

Samples = Mapping[str, Array]
#: Stretches that the graph is cut into, at most.
_STRETCHES = 12
#: Bytes of all samples' tensors that are kept where stretches begin.
_MOST_KEPT = 256_000_000

#: Tensors of one sample by name.
_State = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """Inputs [S, *shape] that harm is measured on."""

    samples: Samples
    #: How many of the first count where single weights are replaced.
    first: int
    #: Whether the first output holds one score per class.
    classes: bool


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
        self._stretches = cut_stretches(model, nodes, names, _STRETCHES)
        #: What is known where stretches begin, by their place.
        self._starts: dict[int, Sequence[_State]] = {0: feeds}
        self.wide = self._outputs_of(self._run(0, feeds, {}, threads=os.cpu_count() or 1))
        self.expected = [each[: judged.first] for each in self.wide]

    def keep_starts(self, most: int = _MOST_KEPT) -> None:
        """Run single weights of layers from near the first node that reads them on.

        As near as so many bytes of all samples' tensors allow.
        """
        states = self._starts[0][: self._judged.first]
        sizes = self._sizes_of(states[0])
        steps = range(1, len(sizes) + 1)
        step = next(each for each in steps if _total(sizes[::each]) * len(states) <= most)
        for place in range(step, len(self._stretches), step):
            states = self._advance(place - step, place, states, {})
            self._starts[place] = states

    def _sizes_of(self, state: _State) -> list[dict[str, int]]:
        """Tell how many bytes tensors of one sample have that are known where stretches begin."""
        given, found = set(state), [dict[str, int]()]
        for place in range(1, len(self._stretches)):
            (state,) = self._advance(place - 1, place, [state], {})
            inner = {name: value for name, value in state.items() if name not in given}
            found.append({name: value.numpy().nbytes for name, value in inner.items()})
        return found

    def reads_rows_of(self, table: str) -> bool:
        """Tell whether rows of a table can be replaced."""
        return table in self._lookups

    def replace(self, name: str, values: Array) -> float:
        """Return the harm of other values for a layer's weight, on the first samples."""
        start = self.start_of(name)
        states = self._starts[start][: self._judged.first]
        found = self._run(start, states, {name: wrap(values)})
        return self._harm(self._outputs_of(found), self.expected)

    def start_of(self, name: str) -> int:
        """Return the place of the last stretch that is known where a weight is read first."""
        readers = (at for at, each in enumerate(self._stretches) if name in each.replaced)
        reader = next(readers, 0)
        return max(place for place in self._starts if place <= reader)

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
        states = [{**feed, **own} for feed, own in zip(self._starts[0], rows, strict=True)]
        found = self._run(0, states, {}, threads=os.cpu_count() or 1)
        return self._harm(self._outputs_of(found), self.wide)

    def outputs(self, values: Mapping[str, Array]) -> list[Array]:
        """Return outputs [S, ...] with other values for some layers' weights, on all samples."""
        replaced = {name: wrap(each) for name, each in values.items()}
        found = self._run(0, self._starts[0], replaced, threads=os.cpu_count() or 1)
        return self._outputs_of(found)

    def compare(self, made: Model) -> float:
        """Return the harm that a model does on all samples."""
        return self._harm(run_samples(made, self._judged.samples), self.wide)

    def _harm(self, outputs: Sequence[Array], expected: Sequence[Array]) -> float:
        return measure_harm(outputs, expected, classes=self._judged.classes)

    def _run(
        self, start: int, states: Sequence[_State], replaced: _State, *, threads: int = 1
    ) -> list[_State]:
        """Run samples from a stretch on to the graph's end, shares of them side by side."""
        end = len(self._stretches)
        if threads == 1:
            return self._advance(start, end, states, replaced)
        shares = [states[at::threads] for at in range(threads)]
        advance = partial(self._advance, start, end, replaced=replaced)
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(advance, shares))
        return [found[at % threads][at // threads] for at in range(len(states))]

    def _advance(
        self, start: int, end: int, states: Sequence[_State], replaced: _State
    ) -> list[_State]:
        """Run all samples through one stretch after the other."""
        for stretch in self._stretches[start:end]:
            states = [stretch.run(each, replaced) for each in states]
        return list(states)

    def _outputs_of(self, states: Sequence[_State]) -> list[Array]:
        """Stack the outputs of all samples; one that no node makes never moves."""
        return [
            np.stack([each[name].numpy() for each in states])
            if name in states[0]
            else np.zeros((len(states), 1), np.float32)
            for name in self._outputs
        ]


def _total(sizes: Sequence[Mapping[str, int]]) -> int:
    """Add up the bytes of tensors, each of which counts once."""
    return sum({name: size for each in sizes for name, size in each.items()}.values())


@contextmanager
def applied(
    model: Model, chosen: Sequence[Choice], learned: Learned, folder: Path
) -> Iterator[Model]:
    """Apply choices, one per weight at most, and remove what was written afterwards."""
    with TemporaryDirectory(dir=folder) as own:
        plan = Plan(name="probe", choices=tuple(chosen))
        yield apply_plan(model, plan, directory=Path(own), learned=learned)
