"""Structured pruning as data: which units of a graph stay, and what that left of it."""

from typing import Literal, Self

from pydantic import model_validator

from edgeopt.fact import Fact


class Cut(Fact):
    """What stays of one group of units: neurons, heads or channels of the normalized graph."""

    #: The first weight that makes the units, by its initializer.
    group: str
    #: Places of the units that stay, ascending; none of a residual branch that goes as a whole.
    kept: tuple[int, ...]
    #: Whether the weights that read them are fitted anew, from calibration samples.
    refit: bool = False

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if min(self.kept, default=0) < 0 or list(self.kept) != sorted(set(self.kept)):
            raise ValueError("units that are kept must ascend from 0")
        return self


class CutEntry(Fact):
    """What was cut out of one group of units."""

    cut: Cut
    kind: Literal["neurons", "heads", "channels"]
    #: Units before, and bytes of all stored tensors that have them, before and now.
    units: int
    before: int
    after: int
    #: How far the outputs move when this is the only cut; None: it was not measured.
    harm: float | None = None


class Pruning(Fact):
    """What structured pruning left of a model; the shapes of its inputs and outputs stay."""

    #: Floating point operations of all products with stored weights or activations.
    flops_before: int
    flops_after: int
    bytes_before: int
    bytes_after: int
    entries: tuple[CutEntry, ...]

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts, as a plan has them."""
        return tuple(each.cut for each in self.entries)
