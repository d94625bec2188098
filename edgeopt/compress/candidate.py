"""What the fitter looks at and decides: plans with what they need, keep and break."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from edgeopt.artifact import Check, Entry, Fact, Footprint, Model, Plan
from edgeopt.budget import Budget
from edgeopt.errors import BudgetExceeded, Interrupted


class Candidate(Fact):
    """One plan, with what it was predicted to need and what it was measured to keep."""

    plan: Plan
    #: Place in the order of harm, from 0.
    harm: int
    footprint: Footprint
    #: Of the task's metric on its samples for validation; None without labels, and where what the
    #: plan needs refuses it.
    accuracy: float | None
    #: The fit's baseline minus this accuracy; without labels, the share of samples whose largest
    #: score is another one than the original's.
    drop: float | None
    #: Without labels: how far its class probabilities are from the original's, in nats.
    divergence: float | None = None
    #: Predicted, in ms; None where no measurement says how fast the device is.
    latency: float | None = None
    checks: tuple[Check, ...]

    @property
    def broken(self) -> tuple[Check, ...]:
        """The limits that it does not meet."""
        return tuple(each for each in self.checks if each.met is False)

    @property
    def slow(self) -> bool:
        """Whether it is predicted to be slower than the budget allows."""
        return any(each.name == "latency" for each in self.broken)


class Fit(Fact):
    """What the fitter decided, and what it looked at, in the order of harm."""

    chosen: Candidate
    #: What the chosen plan makes of the model.
    model: Model
    candidates: tuple[Candidate, ...]
    #: Accuracy that drops count from: the float32 model's, with its whole vocabulary; None without
    #: labels.
    baseline: float | None
    #: What was done to each weight, where each has a form of its own.
    entries: tuple[Entry, ...] = ()
    #: Weights that the plan leaves as they came for that, and by what share its form is slower.
    slower: dict[str, float] = Field(default_factory=dict)
    #: False: the search was stopped, and this is the best plan that it had verified.
    finished: bool = True

    @property
    def plan(self) -> Plan:
        """The chosen plan."""
        return self.chosen.plan


@dataclass(frozen=True, slots=True)
class Cost:
    """What predicts the needs of a compressed model."""

    footprint: Callable[[Model], Footprint]
    #: In ms; None where no measurement says how fast the device is: it then refuses nothing.
    latency: Callable[[Model], float] | None = None
    #: In ms of that, what the nodes that read each of these weights take.
    parts: Callable[[Model, Sequence[str]], Mapping[str, float]] | None = None


class Infeasible(BudgetExceeded):
    """No plan meets the budget; the candidates say how near each one came."""

    def __init__(
        self,
        what: str,
        *,
        why: str,
        fix: str,
        candidates: tuple[Candidate, ...],
        reach: str = "",
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.candidates = candidates
        #: In words, the least of each limited figure that any plan has.
        self.reach = reach


class Stopped(Interrupted):
    """The search was stopped; the best plan that was verified by then meets the budget."""

    def __init__(self, fit: Fit) -> None:
        super().__init__(
            f"stopped: {fit.plan.name} is the best plan that was verified so far",
            why="a better one may not have been tried yet",
            fix="run the same command again: it goes on from here",
        )
        self.fit = fit


def check_needs(
    footprint: Footprint, drop: float | None, latency: float | None, budget: Budget
) -> tuple[Check, ...]:
    """Compare each figure with its limit; accuracy counts as predicted until a board confirms."""
    return (
        _check("flash", "bytes", footprint.flash, budget.flash),
        _check("ram", "bytes", footprint.peak, budget.ram),
        _check("accuracy drop", "fraction", drop, budget.accuracy_drop),
        _check("latency", "ms", latency, budget.latency),
    )


def _check(
    name: str,
    unit: Literal["bytes", "fraction", "ms"],
    predicted: float | None,
    limit: float | None,
) -> Check:
    return Check(name=name, unit=unit, predicted=predicted, measured=None, limit=limit)
