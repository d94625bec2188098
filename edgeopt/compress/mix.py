"""A plan of its own for every weight: the least harm within limits on bytes and time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeopt.artifact import MIXED, Entry, Footprint, Model, Plan
from edgeopt.budget import Budget
from edgeopt.compress.forecast import (
    ALIGNMENT,
    Figure,
    Forecast,
    Predictor,
    Timer,
    is_table,
    open_forecast,
)
from edgeopt.compress.knapsack import Figures, Limit, choose_options
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.probe import Samples
from edgeopt.compress.sensitivity import Option, Sensitivity
from edgeopt.effort import STANDARD

#: Alignment in the weights file is not part of the program: what it adds is taken off the limits.
_ROUNDS = 8
#: Choices that are ruled out one by one, before that and where it leaves none.
_FIRST, _LAST = 4, 16
#: Bytes that memory is rounded up to, and the place of a table in the file.
_PAGE, _TABLE_PAGE = 4096, 16384


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

    def choose(self, budget: Budget, directory: Path) -> Selection | None:
        """Return the choice of least harm that meets the limits on figures; None without one.

        Its files are written below directory.
        """
        harms = [[option.harm for option in layer] for layer in self.layers]
        return self._choose(budget, harms, self.forecast(directory))

    def _choose(self, budget: Budget, least: Figures, forecast: Forecast) -> Selection | None:
        """Return the choice whose figures have the least sum within limits."""
        wanted = self._wanted(budget)
        limits = forecast.limits(wanted)
        # What no choice changes may be rounded up for one and not for the other.
        tables, aligned = sum(map(is_table, self.layers)), ALIGNMENT * len(self.layers)
        # The last tensor of the file is not filled up.
        loosest = tables * _TABLE_PAGE + ALIGNMENT
        slack = {"flash": (loosest, aligned), "ram": (_PAGE + ALIGNMENT, aligned)}
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
            places = choose_options(least, within, seconds=self.seconds, excluded=excluded)
            if places is None:
                continue
            need = forecast.figures(places)
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

    def meets(self, places: Sequence[int], budget: Budget, forecast: Forecast) -> bool:
        """Predict whether a choice meets limits on figures."""
        need = forecast.figures(places)
        return all(need[name] <= most for name, most in self._wanted(budget).items())

    def smallest(self, directory: Path) -> Mixture:
        """Return the mixture that stores the least: what no budget can go below."""
        sizes = [[float(option.size) for option in layer] for layer in self.layers]
        places = choose_options(sizes, [])
        assert places is not None
        return self.make(places, directory)

    def least(self, name: Figure, beside: Budget, directory: Path) -> float | None:
        """Predict the least of flash, ram or latency that any choice needs within other limits.

        None where no choice is within these.
        """
        forecast = self.forecast(directory)
        # Figures are never negative.
        costs = [[each - min(layer) for each in layer] for layer in forecast.costs((name,))[name]]
        found = self._choose(beside, costs, forecast)
        return None if found is None else forecast.figures(found.places)[name]

    def forecast(self, directory: Path) -> Forecast:
        """Return what predicts what choices need; its files are written below directory."""
        predictor = Predictor(self.cost, self.timer)
        forms = self.sensitivity.layers
        return open_forecast(self.model, predictor, forms, self.layers, directory)

    @property
    def layers(self) -> list[tuple[Option, ...]]:
        """The options of every weight."""
        layers = self.sensitivity.layers
        return list(layers) if self.plain else [layer[1:] or layer for layer in layers]

    def _wanted(self, budget: Budget) -> dict[Figure, float]:
        """Return the limits that count here."""
        given: tuple[tuple[Figure, float | None], ...] = (
            ("flash", budget.flash),
            ("ram", budget.ram),
            ("latency", budget.latency if self.timer else None),
        )
        return {name: most for name, most in given if most is not None}

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
