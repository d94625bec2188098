"""A model whose weights are replaced by what forms decode to, to see how far its outputs move."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, helper

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress.cost import filed_bytes
from edgeopt.compress.distance import measure_harm
from edgeopt.compress.learned import Learned
from edgeopt.compress.lowrank import factor_names, join_factors
from edgeopt.compress.plan import apply_plan
from edgeopt.model.graph import Weight, initializers, producers
from edgeopt.model.oracle import Array, open_session, run_samples

Samples = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Judged:
    """Inputs [S, *shape] that harm is measured on."""

    samples: Samples
    #: How many of the first count where single weights are replaced.
    first: int
    #: Whether the first output holds one score per class.
    classes: bool


class Probe:
    """A model whose weights can be replaced for a run."""

    def __init__(self, model: Model, names: Sequence[str], judged: Judged, folder: Path) -> None:
        open_model = onnx.load(model.path)
        stored = initializers(open_model.graph)
        # An initializer that is an input as well is a default, which no optimizer folds.
        open_model.graph.input.extend(
            helper.make_tensor_value_info(name, stored[name].data_type, stored[name].dims)
            for name in names
        )
        self._path = folder / "probe.onnx"
        onnx.save(open_model, self._path)
        self._session = open_session(self._path)
        self._judged = judged
        self.expected = self._run({})
        self.wide = run_samples(model, judged.samples)

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink()

    def replace(self, values: Mapping[str, Array]) -> float:
        """Return the harm of other values for some weights, on the first samples."""
        return self._harm(self.outputs(values), self.expected)

    def outputs(self, values: Mapping[str, Array]) -> list[Array]:
        """Return outputs [S, ...] with other values for some weights, on the first samples."""
        # One buffer for all runs: a numpy array would be looked at again in each.
        wrap = onnxruntime.OrtValue.ortvalue_from_numpy
        return self._run({name: wrap(np.ascontiguousarray(v)) for name, v in values.items()})

    def compare(self, made: Model) -> float:
        """Return the harm that a model does on all samples."""
        return self._harm(run_samples(made, self._judged.samples), self.wide)

    def _harm(self, outputs: Sequence[Array], expected: Sequence[Array]) -> float:
        return measure_harm(outputs, expected, classes=self._judged.classes)

    def _run(self, replaced: Mapping[str, Any]) -> list[Array]:
        given = {name: each[: self._judged.first] for name, each in self._judged.samples.items()}
        wrap = onnxruntime.OrtValue.ortvalue_from_numpy
        names = [each.name for each in self._session.get_outputs()]
        rows = []
        for index in range(len(next(iter(given.values())))):
            feeds = {name: wrap(np.ascontiguousarray(each[index])) for name, each in given.items()}
            outputs = self._session.run_with_ort_values(names, feeds | dict(replaced))
            rows.append([each.numpy() for each in outputs])
        return [np.stack(column) for column in zip(*rows, strict=True)]


@contextmanager
def applied(
    model: Model, chosen: Sequence[Choice], learned: Learned, folder: Path
) -> Iterator[Model]:
    """Apply choices, one per weight at most, and remove what was written afterwards."""
    with TemporaryDirectory(dir=folder) as own:
        plan = Plan(name="probe", choices=tuple(chosen))
        yield apply_plan(model, plan, directory=Path(own), learned=learned)


def weigh_parts(graph: GraphProto, names: Sequence[str]) -> dict[str, int]:
    """Add up what the file holds for each weight: under its name, and its name with a suffix."""
    known, sizes = set(names), dict.fromkeys(names, 0)
    for name, size in filed_bytes(graph).items():
        owner = name
        while owner not in known and "." in owner:
            owner = owner.rpartition(".")[0]
        if owner in known:
            sizes[owner] += size
    return sizes


def decode_choices(
    known: Mapping[str, Weight], made: ModelProto, chosen: Sequence[Choice], folder: Path
) -> dict[str, Array]:
    """Compute what weights became, of low rank the product of their factors, where it is stored."""
    low = [each.weight for each in chosen if each.rank is not None]
    whole = [each.weight for each in chosen if each.rank is None]
    parts = [part for name in low for part in factor_names(name)]
    decoded = _decode(made, [*whole, *parts], folder)
    for name in low:
        pair = [decoded.pop(part) for part in factor_names(name) if part in decoded]
        if len(pair) == len(factor_names(name)):
            decoded[name] = join_factors(known[name], *pair)
    return decoded


def _decode(made: ModelProto, names: Sequence[str], folder: Path) -> dict[str, Array]:
    """Compute the weights that nodes make of stored codes alone."""
    makers, stored = producers(made.graph), initializers(made.graph)
    nodes: dict[str, onnx.NodeProto] = {}
    outputs = [name for name in names if _collect(name, makers, stored, nodes)]
    if not outputs:
        return {}
    ordered = [node for node in made.graph.node if node.output[0] in nodes]
    used = {name for node in ordered for name in node.input}
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        ordered,
        "decode",
        [],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [stored[name] for name in sorted(used & set(stored))],
    )
    part = helper.make_model(graph, opset_imports=made.opset_import, ir_version=made.ir_version)
    path = folder / "decode.onnx"
    onnx.save(part, path)
    try:
        values = open_session(path, optimize=False).run(outputs, {})
    finally:
        path.unlink()
    return dict(zip(outputs, values, strict=True))


def _collect(
    name: str,
    makers: Mapping[str, onnx.NodeProto],
    stored: Mapping[str, onnx.TensorProto],
    nodes: dict[str, onnx.NodeProto],
) -> bool:
    """Gather the nodes that make a tensor; False where they need more than stored tensors."""
    if name in stored or not name:
        return True
    node = makers.get(name)
    if node is None or not all(_collect(each, makers, stored, nodes) for each in node.input):
        return False
    nodes[node.output[0]] = node
    return True
