"""What choices of forms need, predicted without rounding or storing a value of any weight."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeopt.artifact import MIXED, Choice, Footprint, Model, Plan
from edgeopt.compress.hollow import hollow_model
from edgeopt.compress.knapsack import Limit
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.sensitivity import Option, form_of
from edgeopt.filters import TAPS
from edgeopt.model.skim import skim_model

#: Bytes that each weight's place in the file may differ by.
ALIGNMENT = 64
Figure = Literal["flash", "ram", "latency"]
Layers = Sequence[Sequence[Option]]


@dataclass(frozen=True, slots=True)
class Timer:
    """What predicts times, in ms."""

    whole: Callable[[Model], float]
    #: Of the nodes that read each of some weights.
    parts: Callable[[Model, Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Predictor:
    """What predicts every figure of a model."""

    cost: Callable[[Model], Footprint]
    #: Where nothing predicts times, no limit on latency counts.
    timer: Timer | None

    def figures(self, made: Model) -> dict[Figure, float]:
        """Predict bytes of flash and memory, and ms (0 where nothing predicts them)."""
        need = self.cost(made)
        latency = self.timer.whole(made) if self.timer else 0.0
        return {"flash": need.flash, "ram": need.peak, "latency": latency}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicts what each form of each weight takes, and what a choice of them takes."""

    predictor: Predictor
    #: The options of every weight, that as it came first; and of those, what may be chosen.
    forms: Layers
    layers: Layers
    #: The model without the values of these weights, what it needs, and where others are written.
    hollow: Model
    now: Mapping[Figure, float]
    directory: Path

    def figures(self, places: Sequence[int]) -> dict[Figure, float]:
        """Predict what a choice needs; fitting and rounding take long and change no size."""
        chosen = [layer[place].choice for layer, place in zip(self.layers, places, strict=True)]
        return self._with(tuple(map(nearest, chosen)))

    def limits(self, wanted: Mapping[Figure, float]) -> list[Limit]:
        """Subtract from limits what no choice changes."""
        costs = self.costs(wanted)
        return [Limit(costs[name], most - self.now[name]) for name, most in wanted.items()]

    def costs(self, names: Iterable[Figure]) -> dict[Figure, list[list[float]]]:
        """Return for each option what it takes of each figure more than the weight as it came.

        Tables lie on pages of their own, and only rows that are read are resident: each form of
        one is predicted by itself.
        """
        costs: dict[Figure, list[list[float]]] = {}
        if "latency" in names:
            costs["latency"] = self._times()
        of_bytes = [each for each in names if each != "latency"]
        if not of_bytes:
            return costs
        tables, added = self._tables(), self._added()
        for name in of_bytes:
            costs[name] = [
                [tables[nearest(each.choice)][name] - self.now[name] for each in layer]
                if is_table(layer)
                else [added[each.choice] for each in layer]
                for layer in self.layers
            ]
        return costs

    def _with(self, choices: tuple[Choice, ...]) -> dict[Figure, float]:
        """Predict what the model needs with some weights in forms, and nothing else changed."""
        plan = Plan(name=MIXED, choices=choices)
        return self.predictor.figures(apply_plan(self.hollow, plan, directory=self.directory))

    def _tables(self) -> dict[Choice, dict[Figure, float]]:
        """Predict what the model needs with each form of each table by itself."""
        return {
            choice: self._with((choice,))
            for layer in self.layers
            if is_table(layer)
            for choice in (nearest(option.choice) for option in layer)
        }

    def _grown(self) -> dict[str, float]:
        """Predict the bytes by which filters grow where, as they came, they are transformed.

        Those in a form never are: what one of these saves beyond its own bytes tells it.
        """
        stored = skim_model(self.hollow.path).graph.initializer
        filters = {each.name for each in stored if list(each.dims[2:]) == [TAPS, TAPS]}
        grown: dict[str, float] = {}
        for first, *forms in self.forms:
            given = [each for each in forms if each.choice.like is None]
            if first.choice.weight not in filters or not given:
                continue
            after = self._with((nearest(given[-1].choice),))["flash"]
            more = self.now["flash"] - after - (first.size - given[-1].size)
            # Less is what places in the file differ by.
            grown[first.choice.weight] = more if more > ALIGNMENT else 0.0
        return grown

    def _added(self) -> dict[Choice, float]:
        """Return for each option the bytes that it stores more than the weight as it came."""
        grown = self._grown()
        added: dict[Choice, float] = {}
        for first, *forms in self.forms:
            before = first.size + grown.get(first.choice.weight, 0.0)
            added[first.choice] = 0.0
            added |= {each.choice: each.size - before for each in forms}
        return added

    def _times(self) -> list[list[float]]:
        """Return for each option the ms that it takes more than the weight as it came.

        A form is given to all weights that can have it at once: what reads one takes no other time
        for what the others are. Reading another weight takes what reading its own did.
        """
        timer = self.predictor.timer
        assert timer is not None
        before = timer.parts(self.hollow, [layer[0].choice.weight for layer in self.forms])
        alike: dict[Choice, list[Choice]] = {}
        for layer in self.layers:
            for each in layer:
                if each.choice.like is not None:
                    continue
                form = form_of(nearest(each.choice))
                alike.setdefault(form, []).append(nearest(each.choice))
        taken: dict[Choice, float] = {}
        for choices in alike.values():
            plan = Plan(name=MIXED, choices=tuple(choices))
            made = apply_plan(self.hollow, plan, directory=self.directory)
            found = timer.parts(made, [each.weight for each in choices])
            taken |= {each: found[each.weight] - before[each.weight] for each in choices}
        return [
            [0.0 if each.choice.like else taken[nearest(each.choice)] for each in layer]
            for layer in self.layers
        ]


def open_forecast(
    model: Model, predictor: Predictor, forms: Layers, layers: Layers, directory: Path
) -> Forecast:
    """Write the model without values below directory, and predict what it needs.

    Weights whose zeros may be left out keep their values.
    """
    names = [layer[0].choice.weight for layer in forms]
    kept = [
        layer[0].choice.weight
        for layer in forms
        if any(each.choice.width and each.choice.zeros is None for each in layer)
    ]
    hollow = hollow_model(model, names, directory, kept=kept)
    return Forecast(predictor, forms, layers, hollow, predictor.figures(hollow), directory)


def nearest(choice: Choice) -> Choice:
    """Return a form whose codes are those nearest to each value: fitting changes no size."""
    zeros = None if choice.zeros is None else choice.zeros.by_size()
    return choice.model_copy(update={"reconstruct": False, "zeros": zeros})


def is_table(layer: Sequence[Option]) -> bool:
    """Tell whether a weight is read by rows: only such a one has a form with a scale per row."""
    return any(option.choice.method == "int8-rows" for option in layer)
