"""Say whether one thing is slower than another, and how sure that is.

The unit of evidence is a launch of the device program, not an inference: samples of one launch
share their memory layout, their clock and their neighbours. So each launch counts once, by its
median, and the interval comes from resampling launches, or blocks of launches that took turns.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifact import Fact
from edgeopt.errors import ConfigError

_RESAMPLES = 4000
_CONFIDENCE = 0.99
#: The normal distribution's quantile for that confidence, both sides.
_NORMAL = 2.575829
_SEED = 20_240_501
#: Fewer launches of each, or blocks, have no spread that could be relied on.
FEWEST_LAUNCHES = 4
#: Launches after which two counts of the same instructions agree so well, as a share.
COUNTED_LAUNCHES = 3
_COUNTED = 0.005

Verdict = Literal["faster", "slower", "inconclusive"]
#: The samples of each launch, in ns or instructions.
Launches = Sequence[Sequence[int]]


class Comparison(Fact):
    """How long the other takes for each unit of time that the base takes: 1.03 is 3 % slower."""

    ratio: float
    #: The interval that holds the true ratio with 99 % confidence.
    low: float
    high: float
    #: Differences up to this share do not matter to whoever asked.
    tolerance: float = 0.0
    #: Launches of each, or blocks of launches.
    count: int
    #: Why the samples support no verdict; empty when they may.
    reasons: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Slower or faster only when all of the interval is beyond the tolerance."""
        if self.reasons:
            return "inconclusive"
        if self.low > 1 + self.tolerance:
            return "slower"
        return "faster" if self.high < 1 - self.tolerance else "inconclusive"

    @property
    def shown_within(self) -> bool:
        """Whether the samples rule out that it is slower by more than the tolerance."""
        return not self.reasons and self.high <= 1 + self.tolerance

    def __str__(self) -> str:
        """Say it in one line."""
        change, low, high = (
            f"{(each - 1) * 100:+.1f} %" for each in (self.ratio, self.low, self.high)
        )
        why = f"; {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{self.verdict}: {change} (from {low} to {high}, {self.count} launches){why}"


def compare_launches(base: Launches, other: Launches, *, tolerance: float = 0.0) -> Comparison:
    """Compare launches of two sessions. What differs between sessions, only a tolerance covers."""
    first, second = _log_medians(base), _log_medians(other)
    count = min(len(first), len(second))
    random = np.random.default_rng(_SEED)
    spread = _resampled(second, random) - _resampled(first, random)
    gap = float(np.mean(second) - np.mean(first))
    return _conclude(gap, spread, count=count, tolerance=tolerance)


def compare_blocks(base: Launches, other: Launches, *, tolerance: float = 0.0) -> Comparison:
    """Compare launches that took turns as A B B A: two of each make one block.

    A drift that is linear within a block cancels, and what all of a block has in common too.
    """
    first, second = _log_medians(base), _log_medians(other)
    if len(first) != len(second) or len(first) % 2:
        raise ConfigError(
            "launches that took turns come in blocks of two of each",
            why=f"there are {len(first)} and {len(second)}",
            fix="compare them with compare_launches",
        )
    gaps = (second - first).reshape(-1, 2).mean(axis=1)
    spread = _resampled(gaps, np.random.default_rng(_SEED))
    return _conclude(float(np.mean(gaps)), spread, count=len(gaps), tolerance=tolerance)


def compare_counts(base: Launches, other: Launches, *, tolerance: float = 0.0) -> Comparison:
    """Compare instructions. The same inference repeats; what disturbs it only ever adds to it.

    Inferences differ from one another by their inputs, so each counts by the least of its launches.
    How far that least may still lie above the undisturbed count is read off the launches: where
    disturbances are exponential, the least of n lies as far above it, on average, as the second
    least lies above the least, times (n - 1) / n (Rényi, 1953, on the theory of order statistics).
    """
    _log_medians(base)
    _log_medians(other)
    lengths = {len(each) for each in (*base, *other)}
    if len(lengths) != 1:
        raise ConfigError(
            "instructions of different inferences cannot be compared",
            why=f"launches have {', '.join(map(str, sorted(lengths)))} samples",
            fix="measure both with the same number of iterations",
        )
    (first, first_doubt), (second, second_doubt) = _least_counts(base), _least_counts(other)
    ratio, doubt = second / first, max(_COUNTED, first_doubt + second_doubt)
    count = min(len(base), len(other))
    few = f"{count} launches are too few, it takes {COUNTED_LAUNCHES}"
    return Comparison(
        ratio=ratio,
        low=ratio / (1 + doubt),
        high=ratio * (1 + doubt),
        tolerance=tolerance,
        count=count,
        reasons=(few,) if count < COUNTED_LAUNCHES else (),
    )


def _least_counts(launches: Launches) -> tuple[float, float]:
    """Return the least instructions of all inferences together, and their doubt as a share."""
    ordered = np.sort(np.asarray(launches, dtype=np.float64), axis=0)
    least = ordered[0]
    if len(ordered) < COUNTED_LAUNCHES:
        return float(least.sum()), 0.0
    gaps = ordered[1] / least - 1
    # The median inference, by instructions: a few that were disturbed twice decide nothing.
    order = np.argsort(gaps)
    half = np.searchsorted(np.cumsum(least[order]), least.sum() / 2)
    # The doubts of many inferences even out; that of one or two is itself a draw of luck.
    return float(least.sum()), float(gaps[order][half]) * (1 + 2 / len(least))


def _log_medians(launches: Launches) -> NDArray[np.float64]:
    if not launches or any(len(each) == 0 or min(each) <= 0 for each in launches):
        raise ConfigError(
            "there is nothing to compare",
            why="a launch has no samples, or one that is not positive",
            fix="measure at least one iteration in every launch",
        )
    return np.log([float(np.median(each)) for each in launches])


def _resampled(values: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Return means of resamples, widened by what a bootstrap of so few values leaves out."""
    count = len(values)
    means = random.choice(values, size=(_RESAMPLES, count)).mean(axis=1)
    centre = values.mean()
    # Resampling divides by n where an unbiased variance divides by n - 1, and takes it as known.
    wider = np.sqrt(count / max(count - 1, 1)) * student(count - 1) / _NORMAL
    widened: NDArray[np.float64] = centre + (means - centre) * wider
    return widened


def student(freedom: int) -> float:
    """Return Student's quantile for the confidence (Abramowitz and Stegun 26.7.5).

    >>> round(student(3), 1), round(student(7), 1), round(student(1000), 2)
    (5.6, 3.5, 2.58)
    """
    z, n = _NORMAL, max(freedom, 1)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _conclude(
    gap: float, spread: NDArray[np.float64], *, count: int, tolerance: float
) -> Comparison:
    low, high = np.quantile(spread, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    few = f"{count} launches are too few, it takes {FEWEST_LAUNCHES}"
    return Comparison(
        ratio=float(np.exp(gap)),
        low=float(np.exp(low)),
        high=float(np.exp(high)),
        tolerance=tolerance,
        count=count,
        reasons=(few,) if count < FEWEST_LAUNCHES else (),
    )
