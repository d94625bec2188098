"""A plan of its own for every weight: the least harm within limits on bytes and time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeopt.artifact import (
    MIXED,
    Choice,
    Entry,
    Footprint,
    Model,
    Plan,
)
from edgeopt.budget import Budget
from edgeopt.compress.hollow import hollow_model
from edgeopt.compress.knapsack import Figures, Limit, choose_options
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.probe import Samples
from edgeopt.compress.sensitivity import Option, Sensitivity
from edgeopt.effort import STANDARD
from edgeopt.filters import TAPS
from edgeopt.model.skim import skim_model

#: Alignment in the weights file is not part of the program: what it adds is taken off the limits.
_ROUNDS = 8
#: Choices that are ruled out one by one, before that and where it leaves none.
_FIRST, _LAST = 4, 16
#: Bytes that each weight's place in the file may differ by.
_ALIGNMENT = 64
#: Bytes that memory is rounded up to, and the place of a table in the file.
_PAGE, _TABLE_PAGE = 4096, 16384
_Figure = Literal["flash", "ram", "latency"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """A plan, what it makes of the model, what that needs, and why each layer is as it is."""

    plan: Plan
    model: Model
    footprint: Footprint
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """The place of an option for each weight, and what it was chosen within."""

    places: tuple[int, ...]
    #: Of what choices change; some wider than the budget, by what alignment may take or save.
    limits: tuple[Limit, ...]
    budget: Budget

    def allows(self, places: Sequence[int]) -> bool:
        """Tell whether another choice is within the limits too."""
        return all(each.spent(places) <= each.most for each in self.limits)


@dataclass(frozen=True, slots=True)
class Timer:
    """What predicts times, in ms."""

    whole: Callable[[Model], float]
    #: Of the nodes that read each of some weights.
    parts: Callable[[Model, Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Mixer:
    """What all mixtures of one model are made from."""

    model: Model
    sensitivity: Sensitivity
    cost: Callable[[Model], Footprint]
    #: Inputs that codes are fitted to.
    samples: Samples | None
    #: Whether a weight may stay as it came, although it has other forms.
    plain: bool
    #: Seconds that one integer program may take.
    seconds: float = STANDARD.seconds
    #: Whether layers are fitted one after the other, see Plan.
    in_turn: bool = False
    #: Predicts times; where nothing does, no limit on latency counts.
    timer: Timer | None = None

    def mix(self, budget: Budget, directory: Path) -> Mixture | None:
        """Return the mixture of least harm that meets the limits on figures; None without one."""
        chosen = self.choose(budget, directory)
        return None if chosen is None else self.make(chosen.places, directory)

    def choose(
        self, budget: Budget, directory: Path, figures: Figures | None = None
    ) -> Selection | None:
        """Return the choice of least harm, or least of other figures, that meets the limits.

        Its files are written below directory. None where there is no such choice.
        """
        hollow = self._hollow(directory)
        wanted = self._wanted(budget)
        limits = self._limits(wanted, hollow, directory)
        harms = figures or [[option.harm for option in layer] for layer in self.layers]
        # What no choice changes may be rounded up for one and not for the other.
        tables, aligned = sum(map(_is_table, self.layers)), _ALIGNMENT * len(self.layers)
        # The last tensor of the file is not filled up.
        loosest = tables * _TABLE_PAGE + _ALIGNMENT
        slack = {"flash": (loosest, aligned), "ram": (_PAGE + _ALIGNMENT, aligned)}
        loose, near = (
            [
                replace(limit, most=limit.most + slack.get(name, (0, 0))[at])
                for limit, name in zip(limits, wanted, strict=True)
            ]
            for at in (0, 1)
        )
        tight = limits
        ruled_out: list[tuple[int, ...]] = []
        for number in range(_FIRST + _ROUNDS + _LAST):
            # Choices that exceed a limit all the same are ruled out, at first one by one; then by
            # what they exceed it; where that leaves nothing, one by one within looser limits.
            shrinking = _FIRST <= number < _FIRST + _ROUNDS
            within = tight if shrinking else near if number < _FIRST else loose
            excluded = () if shrinking else tuple(ruled_out)
            places = choose_options(harms, within, seconds=self.seconds, excluded=excluded)
            if places is None:
                continue
            need = self._predict(places, hollow, directory)
            over = [max(need[name] - most, 0.0) for name, most in wanted.items()]
            if not any(over):
                return Selection(tuple(places), tuple(within), budget)
            ruled_out.append(tuple(places))
            if number < _FIRST - 1:
                continue
            tight = [
                replace(
                    limit, most=min(limit.most, limit.spent(places)) - more if more else limit.most
                )
                for limit, more in zip(tight, over, strict=True)
            ]
        return None

    def meets(self, places: Sequence[int], budget: Budget, directory: Path) -> bool:
        """Predict whether a choice meets limits on figures; files are written below directory."""
        need = self._predict(places, self._hollow(directory), directory)
        return all(need[name] <= most for name, most in self._wanted(budget).items())

    def smallest(self, directory: Path) -> Mixture:
        """Return the mixture that stores the least: what no budget can go below."""
        sizes = [[float(option.size) for option in layer] for layer in self.layers]
        places = choose_options(sizes, [])
        assert places is not None
        return self.make(places, directory)

    def least(self, name: _Figure, beside: Budget, directory: Path) -> float | None:
        """Predict the least of flash, ram or latency that any choice needs within other limits.

        None where no choice is within these.
        """
        hollow = self._hollow(directory)
        # Figures are never negative.
        costs = [
            [each - min(layer) for each in layer]
            for layer in self._costs((name,), hollow, directory)[name]
        ]
        found = self.choose(beside, directory, costs)
        if found is None:
            return None
        return self._predict(found.places, hollow, directory)[name]

    @property
    def layers(self) -> list[tuple[Option, ...]]:
        """The options of every weight."""
        layers = self.sensitivity.layers
        return list(layers) if self.plain else [layer[1:] or layer for layer in layers]

    @property
    def weights(self) -> list[str]:
        """The names of the weights that have options."""
        return [layer[0].choice.weight for layer in self.sensitivity.layers]

    def _hollow(self, directory: Path) -> Model:
        """Write the model with the values of those weights alone whose zeros may be left out."""
        kept = [
            layer[0].choice.weight
            for layer in self.sensitivity.layers
            if any(each.choice.width and each.choice.zeros is None for each in layer)
        ]
        return hollow_model(self.model, self.weights, directory, kept=kept)

    def _wanted(self, budget: Budget) -> dict[_Figure, float]:
        """Return the limits that count here."""
        given: tuple[tuple[_Figure, float | None], ...] = (
            ("flash", budget.flash),
            ("ram", budget.ram),
            ("latency", budget.latency if self.timer else None),
        )
        return {name: most for name, most in given if most is not None}

    def _limits(
        self, wanted: Mapping[_Figure, float], hollow: Model, directory: Path
    ) -> list[Limit]:
        """Subtract from limits what no choice changes."""
        now, costs = self._figures(hollow), self._costs(wanted, hollow, directory)
        return [Limit(costs[name], most - now[name]) for name, most in wanted.items()]

    def _tables(self, hollow: Model, directory: Path) -> dict[Choice, dict[_Figure, float]]:
        """Predict what the model needs with each form of each table, and nothing else changed."""
        return {
            choice: self._alone(choice, hollow, directory)
            for layer in self.layers
            if _is_table(layer)
            for choice in (nearest(option.choice) for option in layer)
        }

    def _alone(self, choice: Choice, hollow: Model, directory: Path) -> dict[_Figure, float]:
        """Predict what the model needs with one weight in a form, and nothing else changed."""
        plan = Plan(name=MIXED, choices=(choice,))
        return self._figures(apply_plan(hollow, plan, directory=directory))

    def _grown(self, hollow: Model, directory: Path) -> dict[str, float]:
        """Predict the bytes by which filters grow where, as they came, they are transformed.

        Those in a form never are: what one of these saves beyond its own bytes tells it.
        """
        stored = skim_model(hollow.path).graph.initializer
        filters = {each.name for each in stored if list(each.dims[2:]) == [TAPS, TAPS]}
        before, grown = self._figures(hollow)["flash"], {}
        for first, *forms in self.sensitivity.layers:
            given = [each for each in forms if each.choice.like is None]
            if first.choice.weight not in filters or not given:
                continue
            after = self._alone(nearest(given[-1].choice), hollow, directory)["flash"]
            more = before - after - (first.size - given[-1].size)
            # Less is what places in the file differ by.
            grown[first.choice.weight] = more if more > _ALIGNMENT else 0.0
        return grown

    def _costs(
        self, names: Iterable[_Figure], hollow: Model, directory: Path
    ) -> dict[_Figure, list[list[float]]]:
        """Return for each option what it takes of each figure more than the weight as it came.

        Tables lie on pages of their own, and only rows that are read are resident: each form of
        one is predicted by itself.
        """
        costs: dict[_Figure, list[list[float]]] = {}
        if "latency" in names:
            costs["latency"] = self._times(hollow, directory)
        of_bytes = [each for each in names if each != "latency"]
        if not of_bytes:
            return costs
        now, tables = self._figures(hollow), self._tables(hollow, directory)
        added = self._added(hollow, directory)
        for name in of_bytes:
            costs[name] = [
                [tables[nearest(each.choice)][name] - now[name] for each in layer]
                if _is_table(layer)
                else [added[each.choice] for each in layer]
                for layer in self.layers
            ]
        return costs

    def _added(self, hollow: Model, directory: Path) -> dict[Choice, float]:
        """Return for each option the bytes that it stores more than the weight as it came."""
        grown = self._grown(hollow, directory)
        added: dict[Choice, float] = {}
        for first, *forms in self.sensitivity.layers:
            before = first.size + grown.get(first.choice.weight, 0.0)
            added[first.choice] = 0.0
            added |= {each.choice: each.size - before for each in forms}
        return added

    def _times(self, hollow: Model, directory: Path) -> list[list[float]]:
        """Return for each option the ms that it takes more than the weight as it came.

        A form is given to all weights that can have it at once: what reads one takes no other time
        for what the others are. Reading another weight takes what reading its own did.
        """
        assert self.timer is not None
        before = self.timer.parts(hollow, self.weights)
        alike: dict[Choice, list[Choice]] = {}
        for layer in self.layers:
            for each in layer:
                if each.choice.like is not None:
                    continue
                form = nearest(each.choice).model_copy(update={"weight": ""})
                alike.setdefault(form, []).append(nearest(each.choice))
        taken: dict[Choice, float] = {}
        for choices in alike.values():
            plan = Plan(name=MIXED, choices=tuple(choices))
            made = apply_plan(hollow, plan, directory=directory)
            found = self.timer.parts(made, [each.weight for each in choices])
            taken |= {each: found[each.weight] - before[each.weight] for each in choices}
        return [
            [0.0 if each.choice.like else taken[nearest(each.choice)] for each in layer]
            for layer in self.layers
        ]

    def _figures(self, made: Model) -> dict[_Figure, float]:
        """Predict every figure of a model."""
        need = self.cost(made)
        latency = self.timer.whole(made) if self.timer else 0.0
        return {"flash": need.flash, "ram": need.peak, "latency": latency}

    def _predict(
        self, places: Sequence[int], hollow: Model, directory: Path
    ) -> dict[_Figure, float]:
        """Predict what a choice needs; fitting and rounding take long and change no size."""
        chosen = [layer[place].choice for layer, place in zip(self.layers, places, strict=True)]
        choices = tuple(map(nearest, chosen))
        made = apply_plan(hollow, Plan(name=MIXED, choices=choices), directory=directory)
        return self._figures(made)

    def make(self, places: Sequence[int], directory: Path) -> Mixture:
        """Apply a choice, and say of each weight why it is as it is."""
        layers = self.layers
        chosen = [layer[place] for layer, place in zip(layers, places, strict=True)]
        choices = tuple(each.choice for each in chosen)
        plan = Plan(name=MIXED, choices=choices, in_turn=self.in_turn)
        model = apply_plan(self.model, plan, directory=directory, samples=self.samples)
        entries = tuple(
            _entry(before[0], layer, option)
            for before, layer, option in zip(self.sensitivity.layers, layers, chosen, strict=True)
        )
        return Mixture(plan, model, self.cost(model), entries)


def nearest(choice: Choice) -> Choice:
    """Return a form whose codes are those nearest to each value: fitting changes no size."""
    zeros = None if choice.zeros is None else choice.zeros.by_size()
    return choice.model_copy(update={"reconstruct": False, "zeros": zeros})


def _is_table(layer: Sequence[Option]) -> bool:
    """Tell whether a weight is read by rows: only such a one has a form with a scale per row."""
    return any(option.choice.method == "int8-rows" for option in layer)


def _entry(before: Option, layer: Sequence[Option], chosen: Option) -> Entry:
    """Say what was done to a weight, and what the next larger form would have cost and saved."""
    larger = [each for each in layer if each.size > chosen.size and each.harm < chosen.harm]
    step = min(larger, key=lambda each: each.size, default=None)
    return Entry(
        choice=chosen.choice,
        before=before.size,
        after=chosen.size,
        harm=chosen.harm,
        more_bytes=None if step is None else step.size - chosen.size,
        less_harm=None if step is None else chosen.harm - step.harm,
    )
