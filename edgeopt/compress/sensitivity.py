"""What each form of each weight does to a model's outputs, and how many bytes it takes.

One weight at a time is replaced by what its form decodes to; harm is how far the outputs move on
calibration samples. That harms of layers add up is what the search assumes (HAWQ-V3, SPDY); its
answer is measured as a whole afterwards.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from edgeopt.artifact import Choice, Fact, Model
from edgeopt.compress.cost import filed_bytes
from edgeopt.compress.decode import decode_choice, weigh_parts, weigh_rows
from edgeopt.compress.learned import Learned, learn
from edgeopt.compress.lookup import is_by_rows
from edgeopt.compress.part import Parts
from edgeopt.compress.probe import Judged, Probe, Samples, applied
from edgeopt.effort import STANDARD, Effort
from edgeopt.model.graph import infer_types, weights
from edgeopt.model.oracle import draw_inputs
from edgeopt.model.skim import skim_model
from edgeopt.task import Task, has_classes, samples

#: Calibration samples: on the example, 32, 128 and 512 keep the same accuracy within 0.5 %.
CALIBRATION = 128
#: How many harm of tables is measured on (of the rest, the effort says), and how many are held back
#: to compare plans on. What is wrong with a table's rare rows shows in few samples.
_JUDGED = 128
_HELD = 64
#: How many samples codes are fitted to at most: how often rows of tables are read is counted on all
#: of them, and GPTQ sums Hessians over the first ones.
_FITTED = 4096
#: Inputs that are drawn where there are no samples, at least.
_DRAWN = 8


class Option(Fact):
    """One form of one weight."""

    choice: Choice
    #: Bytes that its codes and scales take in the weights file, their records there included.
    size: int
    #: How far the outputs move when only this weight has this form; see measure_harm.
    harm: float


class Measured(Fact):
    """One form of all weights that can have it: what is kept of a search that was stopped."""

    options: tuple[Option, ...]


#: Finds what was measured of a form earlier, or measures it: given the weights that have it.
Keep = Callable[[Choice, Sequence[str], Callable[[], Measured]], Measured]
#: Told the share of the work that is done.
Advance = Callable[[float], None]


class Sensitivity(Fact):
    """The options of every weight that can be compressed, as it came first."""

    layers: tuple[tuple[Option, ...], ...]
    #: Whether harm is of the first output's scores for classes; otherwise of all outputs.
    classes: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """Inputs [S, *shape], by what they are for."""

    #: Harm is measured on these.
    judged: Judged
    #: Codes are fitted to these; None: there are no real samples.
    fitted: Samples | None
    #: Plans are compared on these, which nothing was chosen or fitted on.
    held: Samples

    @property
    def classes(self) -> bool:
        """Whether the first output holds one score per class."""
        return self.judged.classes

    def digest(self) -> str:
        """Return a sha256 of all that decides what is measured: samples, and how they count."""
        total = hashlib.sha256(f"{self.judged.first} {self.classes}".encode())
        for part in (self.judged.samples, self.fitted or {}):
            for name, values in sorted(part.items()):
                total.update(f"\0{name} {values.dtype} {values.shape}\0".encode())
                total.update(np.ascontiguousarray(values).tobytes())
            total.update(b"\1")
        return total.hexdigest()


def draw_calibration(model: Model, task: Task | None, *, effort: Effort = STANDARD) -> Calibration:
    """Draw samples from the task's training set; random inputs without, or where none may count."""
    if task is None or effort.data_free:
        graph = skim_model(model.path).graph
        count = max(effort.judged, _DRAWN)
        drawn = [draw_inputs(graph, model.inputs, seed) for seed in range(2 * count)]
        stacked = {name: np.stack([each[name] for each in drawn]) for name in drawn[0]}
        first, rest = _split(stacked, count)
        judged = Judged(first, effort.judged, classes=False)
        return Calibration(judged=judged, fitted=None, held=rest)
    found = samples(task, _FITTED, inputs=model.inputs)
    count = len(next(iter(found.values())))
    held, rest = _split(found, min(_HELD, count // 2))
    # What harm is measured on must have rare words as new inputs will: none of it is fitted to,
    # unless there is nothing else.
    first, fitted = _split(rest, min(_JUDGED, max(count // 4, 1)))
    enough = len(next(iter(fitted.values()))) > 0
    return Calibration(
        judged=Judged(first, effort.judged, classes=has_classes(task)),
        fitted=fitted if enough else rest,
        held=held,
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
    keep: Keep = lambda _form, _names, measure: measure(),
    advance: Advance = lambda _share: None,
) -> Sensitivity:
    """Measure every choice by itself; files are written below directory and removed.

    Forms are measured one after the other. keep finds what an earlier search measured of one;
    advance is told how much is done.
    """
    directory.mkdir(parents=True, exist_ok=True)
    meter = _Meter(model, choices, calibration, directory)
    layers = {
        name: [Option(choice=_kept(name), size=meter.sizes[name], harm=0.0)] for name in choices
    }
    every = [each for given in choices.values() for each in given]
    done = 0
    for form in dict.fromkeys(map(form_of, every)):
        chosen = [each for each in every if form_of(each) == form]

        def one(count: int, before: int = done) -> None:
            advance((before + count) / len(every))

        found = keep(
            form,
            [each.weight for each in chosen],
            # Both are of this form, whenever it is called.
            lambda chosen=chosen, one=one: meter.measure(chosen, one),  # type: ignore[misc]
        )
        for option in found.options:
            layers[option.choice.weight].append(option)
        done += len(chosen)
        advance(done / len(every))
    return Sensitivity(layers=tuple(map(tuple, layers.values())), classes=calibration.classes)


class _Meter:
    """What measures the forms of one model; what that takes is made when the first one is."""

    def __init__(
        self,
        model: Model,
        choices: Mapping[str, Sequence[Choice]],
        calibration: Calibration,
        folder: Path,
    ) -> None:
        self._model, self._calibration, self._folder = model, calibration, folder
        self._loaded = infer_types(onnx.load(model.path))
        self._known = {each.name: each for each in weights(self._loaded.graph)}
        self._every = [(self._known[name], each) for name in choices for each in choices[name]]
        given = [self._known[name] for name in choices]
        self._tables = [each for each in given if each.role == "table"]
        self._layered = [each.name for each in given if each.role != "table"]
        self.sizes = filed_bytes(self._loaded.graph)

    @cached_property
    def _learned(self) -> Learned:
        return learn(self._loaded, self._every, self._calibration.fitted)

    @cached_property
    def _probe(self) -> Probe:
        judged = self._calibration.judged
        probe = Probe(self._loaded, self._layered, judged, tables=self._tables)
        probe.keep_starts()
        return probe

    @cached_property
    def _parts(self) -> Parts:
        return Parts(self._loaded)

    def measure(self, chosen: Sequence[Choice], advance: Callable[[int], None]) -> Measured:
        """Measure choices of one form, one weight at a time; tells how many are done."""
        learned, probe, parts = self._learned, self._probe, self._parts

        def measure(choice: Choice) -> Option:
            weight = self._known[choice.weight]
            if is_by_rows(choice) and probe.reads_rows_of(weight.name):
                part = parts.rewrite(weight, choice, learned, probe.rows_of(weight.name))
                harm = probe.read(weight.name, part, few=True)
                return Option(choice=choice, size=weigh_rows(part, weight), harm=harm)
            part = parts.rewrite(weight, choice, learned)
            stored = choice.like is None
            size = weigh_parts(part.graph, [weight.name])[weight.name] if stored else 0
            if probe.reads_rows_of(weight.name):
                return Option(choice=choice, size=size, harm=probe.read(weight.name, part))
            values = None
            if weight.name in self._layered:
                values = decode_choice(weight, part, choice)
            if values is not None:
                return Option(choice=choice, size=size, harm=probe.replace(weight.name, values))
            with applied(self._model, [choice], learned, self._folder) as alone:
                return Option(choice=choice, size=size, harm=probe.compare(alone))

        return Measured(options=tuple(_in_threads(measure, chosen, advance)))


def _in_threads(
    measure: Callable[[Choice], Option], chosen: Sequence[Choice], advance: Callable[[int], None]
) -> list[Option]:
    """Measure choices side by side; when it is stopped, what did not begin never does."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        found = []
        for option in pool.map(measure, chosen):
            found.append(option)
            advance(len(found))
        return found
    finally:
        pool.shutdown(cancel_futures=True)


def _kept(weight: str) -> Choice:
    return Choice(weight=weight, method="float32")


def form_of(choice: Choice) -> Choice:
    """Return what choices of different weights have in common."""
    return choice.model_copy(update={"weight": ""})
