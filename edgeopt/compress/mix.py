"""A plan of its own for every weight: the least harm within limits on flash and memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

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
from edgeopt.compress.knapsack import Figures, Limit, choose_options
from edgeopt.compress.plan import apply_plan
from edgeopt.compress.probe import Samples
from edgeopt.compress.sensitivity import Option, Sensitivity
from edgeopt.effort import STANDARD, Effort
from edgeopt.store import digest_file

#: Alignment in the weights file is not part of the program: what it adds is taken off the limits.
_ROUNDS = 8
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
    return {
        name: tuple(
            _reconstructed(each) if reconstruct and (each.group or not by_rows) else each
            for each in given
            if each.method in allowed and each.block in _sizes_of(each.method, effort)
            if each.rank is None or not effort.data_free
        )
        for name, given in possible_choices(model).items()
        for by_rows in (any(each.method == "int8-rows" for each in given),)
    }


def _sizes_of(method: Method, effort: Effort) -> tuple[int | None, ...]:
    """List the blocks that are tried: levels of a weight's own pay where scales are few."""
    return (None, *(effort.blocks[-1:] if method in CODEBOOKS else effort.blocks))


def can_mix(methods: Sequence[Method]) -> bool:
    """Tell whether methods leave a weight more than one form."""
    return len(set(methods) & {"float32", *_STORED}) > 1


def _reconstructed(choice: Choice) -> Choice:
    fitted = not {choice.block, choice.rank, choice.group} <= {None}
    return choice.model_copy(update={"reconstruct": fitted})


@dataclass(frozen=True, slots=True)
class Selection:
    """The place of an option for each weight, and the limits that it was chosen within."""

    places: tuple[int, ...]
    limits: tuple[Limit, ...]

    def allows(self, places: Sequence[int]) -> bool:
        """Tell whether another choice is within these limits too."""
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

    def mix(self, budget: Budget, directory: Path) -> Mixture | None:
        """Return the mixture of least harm that meets limits on flash and ram; None without one."""
        chosen = self.choose(budget, directory)
        return None if chosen is None else self.make(chosen.places, directory)

    def choose(
        self, budget: Budget, directory: Path, figures: Figures | None = None
    ) -> Selection | None:
        """Return the choice of least harm, or least of other figures, that meets the limits.

        Its files are written below directory. None where there is no such choice.
        """
        limits = self._limits(budget)
        hollow = hollow_model(self.model, self.weights, directory)
        harms = [[option.harm for option in layer] for layer in self.layers]
        for _ in range(_ROUNDS):
            places = choose_options(figures or harms, limits, seconds=self.seconds)
            if places is None:
                return None
            need = self._predict(places, hollow, directory)
            over = [
                max(figure - most, 0.0)
                for figure, most in ((need.flash, budget.flash), (need.peak, budget.ram))
                if most is not None
            ]
            if not any(over):
                return Selection(tuple(places), tuple(limits))
            limits = [
                replace(
                    limit, most=min(limit.most, limit.spent(places)) - more if more else limit.most
                )
                for limit, more in zip(limits, over, strict=True)
            ]
        return None

    def smallest(self, directory: Path) -> Mixture:
        """Return the mixture that stores the least: what no budget can go below."""
        sizes = [[float(option.size) for option in layer] for layer in self.layers]
        places = choose_options(sizes, [])
        assert places is not None
        return self.make(places, directory)

    def least(self, name: Literal["flash", "ram"], beside: Budget, directory: Path) -> int | None:
        """Predict the fewest bytes of flash or ram that any choice needs within other limits.

        None where no choice is within these.
        """
        read = 1.0 if name == "flash" else self._resident_share(self.cost(self.model))
        costs = [[_cost(option, layer, read) for option in layer] for layer in self.layers]
        found = self.choose(beside, directory, costs)
        if found is None:
            return None
        hollow = hollow_model(self.model, self.weights, directory)
        need = self._predict(found.places, hollow, directory)
        return need.flash if name == "flash" else need.peak

    @property
    def layers(self) -> list[tuple[Option, ...]]:
        """The options of every weight."""
        layers = self.sensitivity.layers
        return list(layers) if self.plain else [layer[1:] or layer for layer in layers]

    @property
    def weights(self) -> list[str]:
        """The names of the weights that have options."""
        return [layer[0].choice.weight for layer in self.sensitivity.layers]

    def _limits(self, budget: Budget) -> list[Limit]:
        """Subtract from the budget what no choice changes."""
        now = self.cost(self.model)
        share = self._resident_share(now)
        given = ((budget.flash, now.flash, 1.0), (budget.ram, now.peak, share))
        limits = []
        for most, figure, read in given:
            if most is None:
                continue
            costs = [[_cost(option, layer, read) for option in layer] for layer in self.layers]
            before = sum(_cost(layer[0], layer, read) for layer in self.sensitivity.layers)
            limits.append(Limit(costs, most - figure + before))
        return limits

    def _resident_share(self, now: Footprint) -> float:
        """Return the share of tables that is resident, as in the model as it came."""
        layers = self.sensitivity.layers
        tables = sum(layer[0].size for layer in layers if _is_table(layer))
        rest = now.weights - tables
        return min(max(now.weights_resident - rest, 0) / tables, 1.0) if tables else 1.0

    def _predict(self, places: Sequence[int], hollow: Model, directory: Path) -> Footprint:
        """Predict what a choice needs; fitting and rounding take long and change no size."""
        chosen = [layer[place].choice for layer, place in zip(self.layers, places, strict=True)]
        nearest = tuple(each.model_copy(update={"reconstruct": False}) for each in chosen)
        made = apply_plan(hollow, Plan(name=MIXED, choices=nearest), directory=directory)
        return self.cost(made)

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


def hollow_model(model: Model, names: Sequence[str], directory: Path) -> Model:
    """Write a model with zeros for some weights: no size depends on their values."""
    loaded = onnx.load(model.path)
    for tensor in loaded.graph.initializer:
        if tensor.name in names:
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / "hollow.onnx"
    onnx.save_model(loaded, path)
    return model.model_copy(update={"path": path, "sha256": digest_file(path)})


def _is_table(layer: Sequence[Option]) -> bool:
    """Tell whether a weight is read by rows: only such a one has a form with a scale per row."""
    return any(option.choice.method == "int8-rows" for option in layer)


def _cost(option: Option, layer: Sequence[Option], read: float) -> float:
    """Return the bytes of an option, of tables only the share that is read."""
    return option.size * (read if _is_table(layer) else 1.0)


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
