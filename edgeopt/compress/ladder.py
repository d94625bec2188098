"""Levels of cutting each group of units, and the choice of one for each.

Groups take turns: the next step is always the one of least harm for the operations it saves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto

from edgeopt.artifact import Fact, Model
from edgeopt.compress.cuts import groups_by_name
from edgeopt.compress.flops import Product, count_flops, find_products
from edgeopt.compress.groups import Group, open_network
from edgeopt.cut import Cut
from edgeopt.errors import ConfigError, ModelError

#: Levels that a group is tried at, at most.
_LEVELS = 12
#: Neurons and channels are left in multiples of this where there are enough of them: rows of
#: kernels' tiles. Heads are as wide as that already.
_MULTIPLE = 32


class Step(Fact):
    """One level of a group: what is kept, and the harm of that alone."""

    kept: tuple[int, ...]
    harm: float


class Ladders(Fact):
    """The levels of every group of a model, by its name, descending from all units."""

    steps: dict[str, tuple[Step, ...]]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The cuts of a model, and the harm of each alone."""

    cuts: tuple[Cut, ...]
    harms: tuple[float, ...]


def choose_cuts(model: Model, ladders: Ladders, *, share: float) -> Chosen:
    """Choose cuts that save at least a share of the operations of all products.

    Raises ConfigError where no cut saves that much.
    """
    loaded = onnx.load(model.path)
    groups = wide_groups(loaded)
    products = find_products(open_network(loaded), list(groups.values()))
    _require_possible(ladders, products, share)
    before = count_flops(products, {})
    places = _Descent(ladders.steps, products).reach((1 - share) * before)
    chosen = {name: ladders.steps[name][place] for name, place in places.items() if place}
    return Chosen(
        cuts=tuple(Cut(group=name, kept=step.kept, refit=True) for name, step in chosen.items()),
        harms=tuple(step.harm for step in chosen.values()),
    )


def wide_groups(model: ModelProto) -> dict[str, Group]:
    """Return the groups that are worth cutting: few neurons or channels are faster left alone."""
    # What a convolution in three dimensions multiplies cannot be collected.
    ranks = {each.name: len(each.dims) for each in model.graph.initializer}
    groups = {
        name: each
        for name, each in groups_by_name(model).items()
        if (each.kind == "heads" or each.units >= 16)
        and all(ranks[weight] <= 4 for weight in each.readers)
    }
    if not groups:
        raise ModelError(
            "the model cannot be pruned",
            why="it has no neurons, heads or channels that can be left out: every one of them"
            " is an input, an output, or part of a sum that needs all of them",
            fix="choose a profile that only quantizes (edgeopt profiles list)",
        )
    return groups


def levels_of(group: Group) -> list[int]:
    """List how many units may be left of a group, descending, from all of them.

    Down to none where the group is all of a residual branch.
    """
    multiple = 1 if group.kind == "heads" else _MULTIPLE
    while multiple > 1 and group.units < 4 * multiple:
        multiple //= 2
    step = -(-group.units // _LEVELS // multiple) * multiple
    last = [0] if group.branches else []
    return [group.units, *range((group.units - 1) // step * step, 0, -step), *last]


def _require_possible(ladders: Ladders, products: Sequence[Product], share: float) -> None:
    gone = {name: len(each[0].kept) - len(each[-1].kept) for name, each in ladders.steps.items()}
    most = 1 - count_flops(products, gone) / count_flops(products, {})
    if share > most:
        raise ConfigError(
            f"{share:.0%} of the model's operations cannot be pruned",
            why=f"with the fewest units in all of its {len(gone)} groups it is {most:.1%}",
            fix=f"ask for less: --prune {int(most * 100)}%",
        )


@dataclass(frozen=True, slots=True)
class _Descent:
    """The ladders of all groups, and what standing on them leaves to compute."""

    ladders: Mapping[str, Sequence[Step]]
    products: Sequence[Product]

    def left(self, places: Mapping[str, int]) -> int:
        """Return the operations that are left with each group at a place of its ladder."""
        gone = {
            name: len(self.ladders[name][0].kept) - len(self.ladders[name][place].kept)
            for name, place in places.items()
        }
        return count_flops(self.products, gone)

    def reach(self, most: float) -> dict[str, int]:
        """Take the step of least harm per operation saved, until most of them are left."""
        places = dict.fromkeys(self.ladders, 0)
        while (now := self.left(places)) > most:
            name, place = min(self._steps(places), key=lambda step: self._price(step, places, now))
            places[name] = place
        return places

    def _steps(self, places: Mapping[str, int]) -> Iterator[tuple[str, int]]:
        """List every step down, over several levels too: after a bad one may come good ones."""
        for name, ladder in self.ladders.items():
            yield from ((name, place) for place in range(places[name] + 1, len(ladder)))

    def _price(self, step: tuple[str, int], places: Mapping[str, int], now: int) -> float:
        name, place = step
        ladder = self.ladders[name]
        saved = now - self.left({**places, name: place})
        return (ladder[place].harm - ladder[places[name]].harm) / max(saved, 1)
