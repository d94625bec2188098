"""What is computed of Hessians and weights alone, once for all forms that are made of them."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgeopt.compress.codes import Floats

Doubles = npt.NDArray[np.float64]
#: Of a table, the rows that are kept, and the place of each id's row among them.
Rows: TypeAlias = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]

#: Share of the mean of H's diagonal that is added to it, as GPTQ does.
DAMPING = 0.01


class Factors:
    """Factors of some Hessians, found when they are first asked for.

    Of others they are computed each time: only those that are kept cannot be mistaken.
    """

    def __init__(self, kept: Iterable[Doubles] = ()) -> None:
        self._kept = {id(each): each for each in kept}
        self._inverse: dict[int, Doubles] = {}
        self._directions: dict[tuple[int | None, bytes], Doubles] = {}
        self._rows: dict[tuple[int, bytes], Rows] = {}

    def keep(self, hessian: Doubles) -> None:
        """Find factors of one more Hessian once only."""
        self._kept[id(hessian)] = hessian

    def inverse(self, hessian: Doubles) -> Doubles:
        """Return its inverse_factor."""
        key = id(hessian)
        if key not in self._kept:
            return inverse_factor(hessian)
        # Query, key and value read the same tensor.
        if key not in self._inverse:
            self._inverse[key] = inverse_factor(hessian)
        return self._inverse[key]

    def directions(self, values: Doubles, hessian: Doubles | None, count: int) -> Doubles:
        """Return the first right singular vectors [count, N] of a weight, see right_vectors."""
        key = None if hessian is None else id(hessian)
        if key is not None and key not in self._kept:
            return right_vectors(values, hessian)[:count]
        content = hashlib.sha256(values.tobytes()).digest()
        found = self._directions.get((key, content))
        if found is None or len(found) < count:
            # Ranks are tried from the highest on.
            found = right_vectors(values, hessian)[:count].copy()
            self._directions[key, content] = found
        return found[:count]

    def shared_rows(
        self, values: Floats, count: int, reads: Floats | None, find: Callable[[], Rows]
    ) -> Rows:
        """Return which rows of a table are shared, found once for all groups of their values."""
        if not values.flags.c_contiguous:
            # Where only sizes count there are no values: that is found faster than known again.
            return find()
        content = hashlib.sha256(values.data)
        if reads is not None:
            content.update(reads.data)
        key = (count, content.digest())
        if key not in self._rows:
            self._rows[key] = find()
        return self._rows[key]


def inverse_factor(hessian: Doubles) -> Doubles:
    """Return the upper Cholesky factor U of the damped inverse: (H + damping)^-1 = U^T U.

    Row k of U, divided by its first element, says how the error of column k is best made up for
    by the columns after it once those before are fixed.
    """
    damped = hessian.copy()
    mean = float(np.diag(damped).mean())
    # An input that is zero on all samples tells nothing: its weights are rounded to the nearest.
    damped[np.diag_indices_from(damped)] += DAMPING * mean if mean > 0 else 1.0
    factor: Doubles = np.linalg.cholesky(np.linalg.inv(damped)).T
    return factor


def right_vectors(values: Doubles, hessian: Doubles | None) -> Doubles:
    """Return V^T of the singular value decomposition of L^T W, in falling order of singular values.

    W is [K, N], and L L^T its damped hessian; None: the identity.
    """
    seen = values
    if hessian is not None:
        damped = hessian + np.eye(len(hessian)) * max(DAMPING * np.diag(hessian).mean(), 1e-12)
        seen = np.linalg.cholesky(damped).T @ values
    rows, columns = seen.shape
    vectors: Doubles
    if rows < 4 * columns:
        vectors = np.linalg.svd(seen, full_matrices=False)[2]
    else:
        # Of a table only the small product is decomposed: squared values are exact enough here.
        vectors = np.linalg.eigh(seen.T @ seen)[1].T[::-1]
    return vectors
