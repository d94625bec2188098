"""Repair what adding up harms gets wrong: exchange forms of two weights, and look at the whole.

Harms of weights were measured one at a time, and their sum is what an integer program made least.
Together errors may amplify or cancel one another (SPDY, Frantar and Alistarh 2022, corrects for it
by a random search over stitched models; here pairs are exchanged in the order in which the sum
grows least). All forms are stitched together in one model, which runs on samples that were held
back. One form for all weights is tried first, as far as it is within the limits: errors of one kind
add up otherwise. A choice counts when the outputs move less in all, and not by a few samples alone.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from edgeopt.artifact import Choice, Plan
from edgeopt.compress.decode import decode_choice
from edgeopt.compress.distance import sample_harms
from edgeopt.compress.learned import learn
from edgeopt.compress.mix import Mixer, Selection
from edgeopt.compress.part import Parts
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.probe import Judged, Probe
from edgeopt.compress.sensitivity import Advance, Calibration, Option, form_of
from edgeopt.model.graph import infer_types, weights
from edgeopt.model.oracle import Array, run_samples

Places = tuple[int, ...]
#: Options of each weight that an exchange tries in either direction.
_NEAREST = 2
#: Figures that change by less than this are noise of the order of summation.
_LEAST_GAIN = 1e-3
#: One form for all weights is not tried where it is said to harm this many times as much.
_WORSE = 2.0


def repair_choice(
    mixer: Mixer,
    selection: Selection,
    calibration: Calibration,
    *,
    tries: int,
    directory: Path,
    advance: Advance = lambda _share: None,
) -> Places:
    """Return the places after at most so many exchanges were tried; all stay within its budget.

    Files are written below directory and removed.
    """
    if not tries:
        return selection.places
    directory.mkdir(parents=True, exist_ok=True)
    places = selection.places
    seen = {places}
    with TemporaryDirectory(dir=directory) as name:
        folder = Path(name)
        forecast = mixer.forecast(folder / "forecast")

        def is_new(proposal: Places) -> bool:
            if proposal in seen:
                return False
            seen.add(proposal)
            # Limits leave room for alignment, the budget does not.
            return mixer.meets(proposal, selection.budget, forecast)

        stitched = _Stitched(mixer, places, calibration, folder)
        harm = stitched.harms(places)
        uniform = [*_uniform(mixer, selection, stitched.names)]
        for number in range(tries):
            exchanges = _exchanges(mixer, selection, places, stitched.names)
            proposal = next(filter(is_new, chain(uniform, exchanges)), None)
            if proposal is None:
                break
            found = stitched.harms(proposal)
            if is_less(found, harm):
                places, harm = proposal, found
            advance((number + 1) / tries)
    return places


def is_less(found: Array, before: Array) -> bool:
    """Tell whether samples are harmed less than before, each by what float64 [S] says.

    Where harm is due to a few samples, their sum tells little: its mean ratio, of which each counts
    the same, has to be lower too, by at least a standard error.
    """
    if not found.sum() < before.sum() * (1 - _LEAST_GAIN):
        return False
    least = np.finfo(np.float64).tiny
    ratios = np.log(np.maximum(found, least) / np.maximum(before, least))
    return bool(ratios.mean() < -ratios.std() / np.sqrt(len(ratios)))


def _uniform(mixer: Mixer, selection: Selection, names: Sequence[str]) -> Iterator[Places]:
    """Yield choices within the limits that give all weights the same form, as far as they have it.

    Each other weight stays as it was chosen. Those come first whose sum of harms is least.
    """
    layers = mixer.layers
    forms = {form_of(each.choice) for layer in layers for each in layer}
    found: list[tuple[float, Places]] = []
    for form in forms:
        places = tuple(
            next(
                (at for at, each in enumerate(layer) if free and form_of(each.choice) == form),
                chosen,
            )
            for layer, chosen in zip(layers, selection.places, strict=True)
            for free in (layer[0].choice.weight in names,)
        )
        harm = _total(layers, places)
        if selection.allows(places) and harm <= _WORSE * _total(layers, selection.places):
            found.append((harm, places))
    yield from (each for _, each in sorted(found))


def _exchanges(
    mixer: Mixer, selection: Selection, places: Places, names: Sequence[str]
) -> Iterator[Places]:
    """Yield choices within the limits that give one weight more and another less, or only more.

    Those come first by which the sum of harms grows least.
    """
    layers = mixer.layers
    free = [index for index, layer in enumerate(layers) if layer[0].choice.weight in names]
    found: list[tuple[float, Places]] = []
    for up in free:
        for better in _larger(layers[up], places[up]):
            raised = _with(places, up, better)
            if selection.allows(raised):
                found.append((_total(layers, raised), raised))
                continue
            for down in free:
                for worse in _smaller(layers[down], places[down]) if down != up else ():
                    exchanged = _with(raised, down, worse)
                    if selection.allows(exchanged):
                        found.append((_total(layers, exchanged), exchanged))
    yield from (each for _, each in sorted(found))


def _larger(layer: Sequence[Option], place: int) -> list[int]:
    """List the options that take more bytes than one, the nearest two; by itself one may harm more.

    On few samples, that is often chance.
    """
    found = [at for at, each in enumerate(layer) if each.size > layer[place].size]
    return sorted(found, key=lambda at: layer[at].size)[:_NEAREST]


def _smaller(layer: Sequence[Option], place: int) -> list[int]:
    """List the options that take fewer bytes than one, the two of them that harm least."""
    found = [at for at, each in enumerate(layer) if each.size < layer[place].size]
    return sorted(found, key=lambda at: layer[at].harm)[:_NEAREST]


def _with(places: Places, index: int, place: int) -> Places:
    return (*places[:index], place, *places[index + 1 :])


def _total(layers: Sequence[Sequence[Option]], places: Places) -> float:
    return sum(layer[place].harm for layer, place in zip(layers, places, strict=True))


class _Stitched:
    """The model with the tables of a choice, whose other weights can have any of their forms."""

    def __init__(
        self, mixer: Mixer, places: Places, calibration: Calibration, folder: Path
    ) -> None:
        self._layers = mixer.layers
        loaded = infer_types(onnx.load(mixer.model.path))
        self._parts = Parts(loaded)
        self._known = {each.name: each for each in weights(loaded.graph)}
        every = [
            (self._known[option.choice.weight], option.choice)
            for layer in mixer.layers
            for option in layer
        ]
        self._learned = learn(loaded, every, mixer.samples)
        chosen = [layer[at].choice for layer, at in zip(mixer.layers, places, strict=True)]
        tables = [each for each in chosen if self._known[each.weight].role == "table"]
        self.names = [each.weight for each in chosen if each not in tables]
        plan = Plan(name="tables", choices=tuple(tables))
        self._base = apply_plan(mixer.model, plan, directory=folder, learned=self._learned)
        self._expected = run_samples(mixer.model, calibration.held)
        self._classes = calibration.classes
        count = len(next(iter(calibration.held.values())))
        judged = Judged(calibration.held, count, calibration.classes)
        self._probe = Probe(infer_types(onnx.load(self._base.path)), self.names, judged)
        self._decoded: dict[Choice, Array] = {}

    def harms(self, places: Places) -> Array:
        """Return the harm of a choice on each sample that was held back: float64 [S]."""
        chosen = [layer[at].choice for layer, at in zip(self._layers, places, strict=True)]
        forms = {each.weight: each for each in chosen}
        own = [each for each in chosen if each.weight in self.names]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda each: self._decode(each, forms.get(each.like or "")), own)
            pairs = zip(own, decoded, strict=True)
            values = {each.weight: found for each, found in pairs if found is not None}
        outputs = self._probe.outputs(values)
        return sample_harms(outputs, self._expected, classes=self._classes)

    def _decode(self, choice: Choice, like: Choice | None = None) -> Array | None:
        """Return what a weight becomes in a form; None where it stays as it came.

        like: the form of the weight that takes its place, if one does.
        """
        if like is not None and (decoded := self._decode(like)) is not None:
            return decoded
        if choice.method == "float32" and choice.like is None and choice.rank is None:
            return None
        if choice not in self._decoded:
            weight = self._known[choice.weight]
            part = self._parts.rewrite(weight, choice, self._learned)
            decoded = decode_choice(weight, part, choice)
            assert decoded is not None
            self._decoded[choice] = decoded
        return self._decoded[choice]
