"""codebook16-blocks, codebook4-blocks: codes that stand for levels of the weight's own.

Levels lie where the values are: k-means in one dimension (Lloyd 1982, IEEE Trans. IT 28(2)) over
a weight's values, each divided by its block's root mean square, weighted by what its error costs.
They are whole numbers, so that the standard's DequantizeLinear multiplies them by a block's scale.
"""

import numpy as np
import numpy.typing as npt

from edgeopt.choice import Spacing
from edgeopt.compress.codes import Floats, is_blank
from edgeopt.compress.piecewise import find_pieces

#: The largest level in magnitude: rounding levels costs a thousandth of what 16 of them lose.
LARGEST = 64
#: Values that the levels are found on, and steps that are made.
_MOST_VALUES = 1 << 18
_STEPS = 200
#: Levels that are found from quantiles, and pieces of the range that a density is known by.
_FEW, _BINS = 16, 64

Levels = npt.NDArray[np.int8]


def find_levels(
    rows: Floats,
    *,
    block: int,
    bits: int,
    importance: Floats | None = None,
    spacing: Spacing = "kmeans",
) -> Levels:
    """Return 2^bits rising levels for a matrix [R, K] in blocks along its rows.

    importance [K]: how much the squared error of each column counts; None: all as much.
    """
    if is_blank(rows):
        # As where only sizes count: every level is as good.
        return np.zeros(1 << bits, np.int8)
    blocks = rows.reshape(-1, block)
    size = np.sqrt(np.square(blocks).mean(axis=1, keepdims=True))
    size = np.maximum(size, np.finfo(np.float32).tiny)
    weights = np.broadcast_to(size * size, blocks.shape)
    if importance is not None:
        columns = np.broadcast_to(importance, rows.shape).reshape(blocks.shape)
        weights = weights * columns
    step = max(1, rows.size // _MOST_VALUES)
    values = (blocks / size).reshape(-1)[::step].astype(np.float64)
    counted = weights.reshape(-1)[::step].astype(np.float64)
    levels = spread_levels(values, counted, 1 << bits, spacing)
    largest = max(float(np.abs(levels).max()), 1e-30)
    found: Levels = np.rint(levels * (LARGEST / largest)).astype(np.int8)
    return found


def spread_levels(
    values: npt.NDArray[np.double], weights: npt.NDArray[np.double], count: int, spacing: Spacing
) -> Floats:
    """Return so many rising levels for values [n] that count by their weights."""
    if spacing == "piecewise":
        return find_pieces(values, weights, count)
    return _means(values, weights, count)


def _means(values: npt.NDArray[np.double], weights: npt.NDArray[np.double], count: int) -> Floats:
    """Move levels, from a first guess on, to the weighted means of the values nearest to them."""
    order = np.argsort(values)
    ordered = values[order]
    # In order, what lies between two borders is a difference of running sums.
    total = np.concatenate([[0.0], np.cumsum(weights[order])])
    moment = np.concatenate([[0.0], np.cumsum((weights * values)[order])])
    levels = _first_guess(values, count)
    for _ in range(_STEPS):
        borders = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        ends = np.concatenate([[0], borders, [len(values)]])
        mass, sums = np.diff(total[ends]), np.diff(moment[ends])
        used = mass > 0
        levels[used] = sums[used] / mass[used]
    rising: Floats = np.sort(levels).astype(np.float32)
    return rising


def _first_guess(values: npt.NDArray[np.double], count: int) -> npt.NDArray[np.double]:
    """Return quantiles, or of many levels those of the density's cube root.

    So many levels lose least where they lie so (Panter and Dite 1951, Proc. IRE 39(1)), and steps
    from quantiles would take too long to get there.
    """
    shares = (np.arange(count) + 0.5) / count
    if count <= _FEW:
        quantiles: npt.NDArray[np.double] = np.quantile(values, shares)
        return quantiles
    found, borders = np.histogram(values, bins=_BINS)
    total = np.concatenate([[0.0], np.cumsum(np.cbrt(found))])
    guess: npt.NDArray[np.double] = np.interp(shares * total[-1], total, borders)
    return guess


def round_to_levels(values: Floats, scales: Floats, levels: Levels) -> Floats:
    """Return the nearest levels, as floats."""
    wide = levels.astype(np.float32)
    ratio = values / scales
    found: Floats = wide[np.searchsorted((wide[1:] + wide[:-1]) / 2, ratio)]
    return found


def codes_of(chosen: npt.NDArray[np.int8], levels: Levels) -> npt.NDArray[np.uint8]:
    """Return which level each of the chosen ones is; of equal ones the first."""
    return np.searchsorted(levels, chosen).astype(np.uint8)
