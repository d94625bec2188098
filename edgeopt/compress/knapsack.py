"""One option per layer, with the least harm within limits: a multiple-choice knapsack, exactly.

A mixed integer program by SciPy's HiGHS, as HAWQ-V3 (Yao et al., 2021) chooses bits per layer.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from edgeopt.effort import STANDARD
from edgeopt.errors import BudgetExceeded

#: How often the solver is asked for less than it gave.
_ATTEMPTS = 20
#: SciPy's status of an iteration or time limit that was reached.
_OUT_OF_TIME = 1
#: One figure for every option of every layer.
Figures = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Limit:
    """What every option of every layer costs, and the most that all chosen ones may cost."""

    costs: Figures
    most: float

    def spent(self, places: Sequence[int]) -> float:
        """Return what a choice costs, the place of an option in each layer."""
        return sum(layer[place] for layer, place in zip(self.costs, places, strict=True))


def choose_options(
    harm: Figures,
    limits: Sequence[Limit],
    *,
    seconds: float = STANDARD.seconds,
    excluded: Sequence[Sequence[int]] = (),
) -> list[int] | None:
    """Return the place of each layer's option of least total harm; None where no choice is allowed.

    Harm is never negative. The same figures give the same choice, unless the solver needs more
    than these seconds: the best choice that it has then counts. Raises BudgetExceeded, exit code
    3, where it has none by then: that says nothing of whether there is one. excluded: choices
    that are not allowed, although they are within the limits.
    """
    limits = (*limits, *(_exclude(harm, each) for each in excluded))
    until = time.monotonic() + seconds
    first = _solve(harm, limits, np.ones(sum(map(len, harm)), bool), until)
    if first is None:
        return None
    # What harms more by itself than all of a known choice together cannot be part of a better one.
    # Without it, the solver's tolerance no longer hides differences between the small ones.
    total = sum(layer[place] for layer, place in zip(harm, first, strict=True))
    flat = np.concatenate([np.asarray(layer, float) for layer in harm])
    try:
        return _solve(harm, limits, flat <= total, until) or first
    except BudgetExceeded:
        # The time is over: what is known already is allowed.
        return first


def _exclude(harm: Figures, places: Sequence[int]) -> Limit:
    """Return a limit that one choice breaks and no other: not all of its options at once."""
    costs = [
        [float(at == place) for at in range(len(layer))]
        for layer, place in zip(harm, places, strict=True)
    ]
    return Limit(costs, len(places) - 1)


def _solve(
    harm: Figures, limits: Sequence[Limit], allowed: npt.NDArray[np.bool_], until: float
) -> list[int] | None:
    """Solve the program over the options that are allowed, within limits by plain addition.

    The solver lets a choice exceed a limit by a millionth: it is asked again for that much less.
    """
    bounds = [limit.most for limit in limits]
    for _ in range(_ATTEMPTS):
        taken = _ask(harm, limits, bounds, allowed, until)
        if taken is None:
            return None
        over = [limit.spent(taken) - limit.most for limit in limits]
        if all(each <= 0 for each in over):
            return taken
        bounds = [bound - max(each, 0.0) for bound, each in zip(bounds, over, strict=True)]
    return None


def _ask(
    harm: Figures,
    limits: Sequence[Limit],
    bounds: Sequence[float],
    allowed: npt.NDArray[np.bool_],
    until: float,
) -> list[int] | None:
    """Ask the solver once; until is when it has to answer, of the monotonic clock."""
    lengths = [len(layer) for layer in harm]
    layers = np.repeat(np.arange(len(lengths)), lengths)
    count = len(layers)
    flat = np.concatenate([np.asarray(layer, float) for layer in harm])
    largest = flat[allowed].max(initial=0.0)
    constraints = [
        LinearConstraint(
            csr_matrix((np.ones(count), (layers, np.arange(count)))), np.ones(len(lengths)), 1
        )
    ]
    for limit, bound in zip(limits, bounds, strict=True):
        costs = np.concatenate([np.asarray(layer, float) for layer in limit.costs])
        scale = max(abs(bound), costs.max(initial=0.0), 1.0)
        constraints.append(LinearConstraint(costs[None, :] / scale, -np.inf, bound / scale))
    found = milp(
        flat / largest if largest > 0 else flat,
        constraints=constraints,
        integrality=np.ones(count),
        bounds=Bounds(0, allowed.astype(float)),
        # Simplifying first saves nothing here, and HiGHS then writes remarks of its own to stdout.
        options={
            "mip_rel_gap": 0.0,
            "presolve": False,
            "time_limit": max(until - time.monotonic(), 0.0),
        },
    )
    if found.x is None:
        if found.status == _OUT_OF_TIME:
            raise BudgetExceeded(
                "no plan was found in the time that a search may take",
                why="the solver has neither found a choice within the limits nor shown that there"
                " is none",
                fix="allow more: --effort thorough; or raise a limit of the budget",
            )
        return None
    starts = np.cumsum([0, *lengths[:-1]])
    return [int(found.x[at : at + size].argmax()) for at, size in zip(starts, lengths, strict=True)]
