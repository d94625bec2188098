"""A plan of its own for every weight: the least harm within limits on bytes and time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeopt.artifact import (
    MIXED,
    Choice,
    Entry,
    Footprint,
    Method,
    Model,
    Plan,
)
from edgeopt.budget import Budget
from edgeopt.compress.blocks import CODEBOOKS
from edgeopt.compress.choices import possible_choices
from edgeopt.compress.hollow import hollow_model
from edgeopt.compress.knapsack import Figures, Limit, choose_options
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.probe import Samples
from edgeopt.compress.sensitivity import Option, Sensitivity
from edgeopt.compress.sparse import SPARSE
from edgeopt.compress.sparse_choices import SPARSE_OF
from edgeopt.effort import STANDARD, Effort

#: Alignment in the weights file is not part of the program: what it adds is taken off the limits.
_ROUNDS = 8
#: Choices that are ruled out one by one, before that and where it leaves none.
_FIRST, _LAST = 4, 16
#: Bytes that each weight's place in the file may differ by.
_ALIGNMENT = 64
#: Bytes that memory is rounded up to, and the place of a table in the file.
_PAGE, _TABLE_PAGE = 4096, 16384
_Figure = Literal["flash", "ram", "latency"]
#: Forms that change how activations are computed are whole plans of their own.
_STORED: tuple[Method, ...] = (
    "float16",
    "int8-rows",
    "int8-weights",
    "int4-blocks",
    "int2-blocks",
    "codebook4-blocks",
    "codebook-rows",
)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A plan, what it makes of the model, what that needs, and why each layer is as it is."""

    plan: Plan
    model: Model
    footprint: Footprint
    entries: tuple[Entry, ...]


def mixable_choices(
    model: Model, methods: Sequence[Method], *, reconstruct: bool, effort: Effort = STANDARD
) -> dict[str, tuple[Choice, ...]]:
    """List the forms that a mixture may choose from, those of the allowed methods.

    reconstruct: round by samples what has few bits; 8 bits gain nothing by it.
    """
    allowed = set(methods) & set(_STORED) & set(effort.methods or _STORED)
    if "int8-weights" in allowed:
        allowed.add("int8-rows")
    # Zeros that are there are used by whatever is allowed; more are made where a profile asks.
    kept = allowed | ({"float32"} & set(methods))
    lossless = {method for base, method in SPARSE_OF.items() if base in kept}
    sparse = set(methods) & set(effort.methods or SPARSE)
    return {
        name: tuple(
            _reconstructed(each) if reconstruct and (each.group or not by_rows) else each
            for each in given
            if each.like is not None
            or each.method
            in (allowed if each.width is None else sparse if each.zeros else lossless)
            if _is_tried(each, given, effort)
            if each.rank is None or not effort.data_free
        )
        for name, given in possible_choices(model).items()
        for by_rows in (any(each.method == "int8-rows" for each in given),)
    }


def _is_tried(choice: Choice, given: Sequence[Choice], effort: Effort) -> bool:
    """Tell whether an effort tries a form's blocks: the largest, where none of its sizes fits."""
    sizes = _sizes_of(choice.method, effort)
    if choice.block in sizes:
        return True
    blocks = {each.block for each in given if each.method == choice.method and each.block}
    return not blocks & set(sizes) and choice.block == max(blocks)


def _sizes_of(method: Method, effort: Effort) -> tuple[int | None, ...]:
    """List the blocks that are tried: levels of a weight's own pay where scales are few."""
    return (None, *(effort.blocks[-1:] if method in CODEBOOKS else effort.blocks))


def can_mix(methods: Sequence[Method]) -> bool:
    """Tell whether methods leave a weight more than one form."""
    return len(set(methods) & {"float32", *_STORED}) > 1


def _reconstructed(choice: Choice) -> Choice:
    fitted = not {choice.block, choice.rank, choice.group} <= {None}
    zeros = choice.zeros
    if zeros is not None:
        zeros = zeros.model_copy(update={"criterion": "wanda", "refit": True})
    return choice.model_copy(update={"reconstruct": fitted, "zeros": zeros})


@dataclass(frozen=True, slots=True)
class Selection:
    """The place of an option for each weight, and the limits that it was chosen within."""

    places: tuple[int, ...]
    limits: tuple[Limit, ...]

    def allows(self, places: Sequence[int]) -> bool:
        """Tell whether another choice is within these limits too."""
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
                return Selection(tuple(places), tuple(within))
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
            for layer in self._costs(name, hollow, directory, self._tables(hollow, directory))
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
        now = self._figures(hollow)
        tables = self._tables(hollow, directory) if set(wanted) - {"latency"} else {}
        return [
            Limit(self._costs(name, hollow, directory, tables), most - now[name])
            for name, most in wanted.items()
        ]

    def _tables(self, hollow: Model, directory: Path) -> dict[Choice, dict[_Figure, float]]:
        """Predict what the model needs with each form of each table, and nothing else changed."""
        found = {}
        for option in (each for layer in self.layers if _is_table(layer) for each in layer):
            choice = nearest(option.choice)
            plan = Plan(name=MIXED, choices=(choice,))
            found[choice] = self._figures(apply_plan(hollow, plan, directory=directory))
        return found

    def _costs(
        self,
        name: _Figure,
        hollow: Model,
        directory: Path,
        tables: Mapping[Choice, Mapping[_Figure, float]],
    ) -> list[list[float]]:
        """Return for each option what it takes more than the weight as it came.

        Tables lie on pages of their own, and only rows that are read are resident: each form of
        one is predicted by itself.
        """
        if name == "latency":
            return self._times(hollow, directory)
        before = {each[0].choice.weight: each[0].size for each in self.sensitivity.layers}
        now = self._figures(hollow)[name]
        costs = []
        for layer in self.layers:
            if not _is_table(layer):
                first = before[layer[0].choice.weight]
                costs.append([float(option.size - first) for option in layer])
                continue
            costs.append([tables[nearest(each.choice)][name] - now for each in layer])
        return costs

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
