"""What each form of each weight does to a model's outputs, and how many bytes it takes.

One weight at a time is replaced by what its form decodes to; harm is how far the outputs move on
calibration samples. That harms of layers add up is what the search assumes (HAWQ-V3, SPDY); its
answer is measured as a whole afterwards.
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
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, helper

from edgeopt.artifact import Choice, Fact, Model, Plan
from edgeopt.compress.cost import stored_bytes
from edgeopt.compress.learned import Learned, learn
from edgeopt.compress.lowrank import factor_names, join_factors
from edgeopt.compress.plan import apply_plan
from edgeopt.model.graph import Weight, initializers, producers, weights
from edgeopt.model.oracle import Array, open_session, run_samples, seeded_inputs
from edgeopt.task import Task, has_classes, samples

Samples = Mapping[str, Array]

#: Calibration samples: on the example, 32, 128 and 512 keep the same accuracy within 0.5 %.
CALIBRATION = 128
#: How many harm is measured on, of tables and of the rest, and how many are held back to compare
#: plans on. What is wrong with a table's rare rows shows in few samples.
_JUDGED = 128
_JUDGED_FIRST = 32
_HELD = 32
#: How many samples codes are fitted to at most: how often rows of tables are read is counted on all
#: of them, and GPTQ sums Hessians over the first ones.
_FITTED = 4096
#: Inputs that are drawn where there are no samples.
_DRAWN = 8


class Option(Fact):
    """One form of one weight."""

    choice: Choice
    #: Bytes of its codes and scales as they are stored.
    size: int
    #: How far the outputs move when only this weight has this form; see measure_harm.
    harm: float


class Sensitivity(Fact):
    """The options of every weight that can be compressed, as it came first."""

    layers: tuple[tuple[Option, ...], ...]
    #: Whether harm is of the first output's scores for classes; otherwise of all outputs.
    classes: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """Inputs [S, *shape], by what they are for."""

    #: Harm is measured on these; of what is not a table's, on the first ones.
    judged: Samples
    #: Codes are fitted to these; None: there are no real samples.
    fitted: Samples | None
    #: Plans are compared on these, which nothing was chosen or fitted on.
    held: Samples
    #: Whether the first output holds one score per class.
    classes: bool


def draw_calibration(model: Model, task: Task | None) -> Calibration:
    """Draw samples from the task's training set; without a task, random inputs."""
    if task is None:
        drawn = [seeded_inputs(model, seed) for seed in range(2 * _DRAWN)]
        stacked = {name: np.stack([each[name] for each in drawn]) for name in drawn[0]}
        first, rest = _split(stacked, _DRAWN)
        return Calibration(judged=first, fitted=None, held=rest, classes=False)
    found = samples(task, _FITTED, inputs=model.inputs)
    count = len(next(iter(found.values())))
    held, rest = _split(found, min(_HELD, count // 2))
    # What harm is measured on must have rare words as new inputs will: none of it is fitted to,
    # unless there is nothing else.
    judged, fitted = _split(rest, min(_JUDGED, max(count // 4, 1)))
    enough = len(next(iter(fitted.values()))) > 0
    return Calibration(
        judged=judged, fitted=fitted if enough else rest, held=held, classes=has_classes(task)
    )


def _split(given: Samples, at: int) -> tuple[Samples, Samples]:
    first = {name: values[:at] for name, values in given.items()}
    return first, {name: values[at:] for name, values in given.items()}


def measure_sensitivity(
    model: Model,
    choices: Mapping[str, Sequence[Choice]],
    calibration: Calibration,
    *,
    directory: Path,
) -> Sensitivity:
    """Measure every choice by itself; files are written below directory and removed."""
    loaded = onnx.load(model.path)
    stored = initializers(loaded.graph)
    layers = {
        name: [Option(choice=_kept(name), size=stored_bytes(stored[name]), harm=0.0)]
        for name in choices
    }
    directory.mkdir(parents=True, exist_ok=True)
    known = {each.name: each for each in weights(loaded.graph)}
    every = [(known[name], each) for name, given in choices.items() for each in given]
    learned = learn(loaded, every, calibration.fitted)
    layered = [name for name in choices if known[name].role != "table"]
    probe = _Probe(model, layered, calibration, directory)
    for form in dict.fromkeys(_form(each) for given in choices.values() for each in given):
        chosen = [each for given in choices.values() for each in given if _form(each) == form]
        with _applied(model, chosen, learned, directory) as made:
            graph = onnx.load(made.path)
            sizes = _sizes(graph.graph, list(choices))
            in_layers = [each for each in chosen if each.weight in layered]
            decoded = _decode_choices(known, graph, in_layers, directory)

            def measure(choice: Choice, decoded: Samples = decoded, made: Model = made) -> float:
                if choice.weight in decoded:
                    return probe.replace(choice.weight, decoded[choice.weight])
                if [choice] == chosen:  # noqa: B023  (called before the next form)
                    return probe.compare(made)
                with _applied(model, [choice], learned, directory) as alone:
                    return probe.compare(alone)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                harms = list(pool.map(measure, chosen))
        for choice, harm in zip(chosen, harms, strict=True):
            option = Option(choice=choice, size=sizes[choice.weight], harm=harm)
            layers[choice.weight].append(option)
    probe.close()
    return Sensitivity(layers=tuple(map(tuple, layers.values())), classes=calibration.classes)


def measure_distance(found: Sequence[Array], expected: Sequence[Array], *, classes: bool) -> float:
    """Return how far outputs [S, ...] are from others, averaged over samples.

    With classes, the Kullback-Leibler divergence of the first output's class probabilities, in
    nats; else the squared error of all outputs relative to their squares.
    """
    if classes:
        ours, theirs = _log_probabilities(found[0]), _log_probabilities(expected[0])
        return max(float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean()), 0.0)
    ratios = [
        np.square(a.astype(np.float64) - b).sum()
        / max(float(np.square(b, dtype=float).sum()), 1e-30)
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.mean(ratios))


def measure_harm(found: Sequence[Array], expected: Sequence[Array], *, classes: bool) -> float:
    """Return the squared error of outputs [S, ...] relative to their squares.

    With classes, that of the first output's scores, less their mean over classes, which no
    probability depends on. Errors of several layers that know nothing of each other add up in it.
    A divergence does not: on samples that a model is sure of, such as those it was trained on, it
    is nothing until the sum of all errors turns an answer.
    """
    if not classes:
        return measure_distance(found, expected, classes=False)
    ours, theirs = (
        scores - scores.mean(axis=-1, keepdims=True)
        for scores in (each[0].astype(np.float64) for each in (found, expected))
    )
    return float(np.square(ours - theirs).sum() / max(float(np.square(theirs).sum()), 1e-30))


def _log_probabilities(scores: Array) -> Array:
    rows = scores.reshape(len(scores), -1, scores.shape[-1]).astype(np.float64)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def _kept(weight: str) -> Choice:
    return Choice(weight=weight, method="float32")


def _form(choice: Choice) -> Choice:
    """Return what choices of different weights have in common."""
    return choice.model_copy(update={"weight": ""})


class _Probe:
    """A model whose weights can be replaced for a run."""

    def __init__(
        self, model: Model, names: list[str], calibration: Calibration, folder: Path
    ) -> None:
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
        self.calibration = calibration
        self.expected = self._run({})
        self.wide = run_samples(model, calibration.judged)

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink()

    def replace(self, name: str, values: Array) -> float:
        """Return the harm of other values for one weight, on the first samples."""
        # One buffer for all runs: a numpy array would be looked at again in each.
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))
        return self._harm(self._run({name: value}), self.expected)

    def compare(self, made: Model) -> float:
        """Return the harm that a model does on all samples."""
        return self._harm(run_samples(made, self.calibration.judged), self.wide)

    def _harm(self, outputs: Sequence[Array], expected: Sequence[Array]) -> float:
        return measure_harm(outputs, expected, classes=self.calibration.classes)

    def _run(self, replaced: Mapping[str, Any]) -> list[Array]:
        given, _ = _split(self.calibration.judged, _JUDGED_FIRST)
        wrap = onnxruntime.OrtValue.ortvalue_from_numpy
        names = [each.name for each in self._session.get_outputs()]
        rows = []
        for index in range(len(next(iter(given.values())))):
            feeds = {name: wrap(np.ascontiguousarray(each[index])) for name, each in given.items()}
            outputs = self._session.run_with_ort_values(names, feeds | dict(replaced))
            rows.append([each.numpy() for each in outputs])
        return [np.stack(column) for column in zip(*rows, strict=True)]


@contextmanager
def _applied(
    model: Model, chosen: Sequence[Choice], learned: Learned, folder: Path
) -> Iterator[Model]:
    """Apply choices, one per weight at most, and remove what was written afterwards."""
    with TemporaryDirectory(dir=folder) as own:
        plan = Plan(name="probe", choices=tuple(chosen))
        yield apply_plan(model, plan, directory=Path(own), learned=learned)


def _sizes(graph: GraphProto, names: Sequence[str]) -> dict[str, int]:
    """Add up what is stored for each weight: under its name, and its name with a suffix."""
    known, sizes = set(names), dict.fromkeys(names, 0)
    for tensor in graph.initializer:
        owner = tensor.name
        while owner not in known and "." in owner:
            owner = owner.rpartition(".")[0]
        if owner in known:
            sizes[owner] += stored_bytes(tensor)
    return sizes


def _decode_choices(
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
