"""Which units of a group to leave out, and what the rest must become to make up for them.

The optimal brain surgeon for whole units, as in ZipLM (Kurtic et al. 2023, arXiv 2302.04089): of a
product X W, leaving out the rows S of W costs, when all other rows are then fitted anew,
W_S^T ((H^-1)_SS)^-1 W_S with H = X^T X. Each output counts by its Fisher information, F = G^T G.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.compress.factors import DAMPING
from edgeopt.compress.moments import Moments
from edgeopt.compress.ties import Units
from edgeopt.model.oracle import Array

#: Steps in which all units of a group would go: each changes what the others are worth.
_STEPS = 96


@dataclass(frozen=True, slots=True)
class Reader:
    """A weight W [K, N] that reads a group, and the unit of each of its rows (-1: none)."""

    weight: Array
    units: Units
    moments: Moments


@dataclass(frozen=True, slots=True)
class Level:
    """Which units are left, and every reader's weight [K, N], zero for the others."""

    kept: tuple[int, ...]
    weights: tuple[Array, ...]


def remove_units(readers: Sequence[Reader], count: int, levels: Sequence[int]) -> Iterator[Level]:
    """Leave out units of so many until each level, descending; each is within the one before."""
    states = [_State(each, count) for each in readers]
    left = np.ones(count, bool)
    for level in levels:
        while left.sum() > level:
            step = min(max(count // _STEPS, 1), int(left.sum()) - level)
            costs = np.sum([state.costs() for state in states], axis=0)
            costs[~left] = np.inf
            gone = np.argsort(costs, kind="stable")[:step]
            left[gone] = False
            for state in states:
                state.remove(gone)
        kept = tuple(int(each) for each in np.flatnonzero(left))
        yield Level(kept, tuple(state.weight.astype(np.float32) for state in states))


class _State:
    """One reader while units are left out of it."""

    def __init__(self, reader: Reader, count: int) -> None:
        self.weight = reader.weight.astype(np.float64)
        order = np.argsort(reader.units, kind="stable")
        #: The rows of each unit [units, rows].
        self._places = order[reader.units[order] >= 0].reshape(count, -1)
        self._inverse = np.linalg.inv(damped(reader.moments.inputs))
        #: W times the root of F: its squared errors are those of outputs that matter by F.
        self._scaled = self.weight @ np.linalg.cholesky(damped(reader.moments.gradients))

    def costs(self) -> Array:
        """Return what leaving out each unit would cost now, [units]; no meaning for those gone."""
        blocks = self._inverse[self._places[:, :, None], self._places[:, None, :]]
        rows = self._scaled[self._places]
        gone = blocks[:, 0, 0] == 0
        blocks[gone] = np.eye(self._places.shape[1])
        found: Array = np.einsum("uan,uan->u", np.linalg.solve(blocks, rows), rows)
        return found

    def remove(self, units: Array) -> None:
        """Leave out units and fit the rest anew."""
        places = self._places[units].reshape(-1)
        own = self._inverse[np.ix_(places, places)]
        across = self._inverse[:, places]
        for weight in (self.weight, self._scaled):
            weight -= across @ np.linalg.solve(own, weight[places])
            weight[places] = 0
        self._inverse -= across @ np.linalg.solve(own, across.T)
        self._inverse[places] = 0
        self._inverse[:, places] = 0


def damped(moment: Array) -> Array:
    """Return a moment that can be inverted: a share of its mean diagonal is added to it."""
    found = moment.copy()
    mean = float(np.diag(found).mean())
    found[np.diag_indices_from(found)] += DAMPING * mean if mean > 0 else 1.0
    return found
