"""codebook-rows: groups of neighbouring values of a table's row, each one of 256 vectors.

Product quantization (Jegou et al. 2011, TPAMI 33(1); of embeddings: Chen et al. 2020, arXiv
1908.09756): the vectors of a group of columns are the centres of k-means (Lloyd 1982) over what all
rows hold there, so that one byte stands for a group. Rows that are read often weigh more.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgeopt.compress.codes import Floats, is_blank
from edgeopt.compress.edit import Edit
from edgeopt.model.graph import Weight

#: Values that one byte stands for: two bits a value and fewer.
GROUPS = (4, 6, 8, 12, 16, 24)
#: Vectors of each group of columns: as many as a byte can tell apart.
VECTORS = 256
#: Rows that k-means looks at in each step, and how many steps it makes.
_MOST_ROWS = 8192
_STEPS = 12
#: Points that are looked at together: their distances stay in a core's own cache.
_PIECE = 1024

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Grouped:
    """Codes [V, groups] and what they stand for: vectors [groups, VECTORS, values]."""

    codes: Bytes
    vectors: Floats


def possible_groups(weight: Weight) -> tuple[int, ...]:
    """List the sizes of groups at which a table takes less than 4 bits a value with its vectors."""
    if weight.role != "table":
        return ()
    rows, width = weight.shape
    return tuple(
        each
        for each in GROUPS
        if width % each == 0 and rows * width // each + 2 * VECTORS * width < rows * width // 2
    )


def encode_groups(values: Floats, *, group: int, importance: Floats | None = None) -> Grouped:
    """Return codes and vectors of a table [V, D].

    importance [V], above 0: how much each row counts; None: all as much. The vectors are float32
    numbers that float16 holds, unless the table has too large ones. The same table and importance
    give the same bytes.
    """
    rows, width = values.shape
    if is_blank(values):
        # As where only sizes count: there is nothing to tell apart.
        codes = np.zeros((rows, width // group), np.uint8)
        return Grouped(codes, np.zeros((width // group, VECTORS, group), np.float32))
    weights = np.ones(rows, np.float32) if importance is None else importance
    chosen, weights = _thin(weights)
    half = float(np.abs(values).max(initial=0)) < float(np.finfo(np.float16).max)
    codes = np.empty((rows, width // group), np.uint8)
    vectors = np.empty((width // group, VECTORS, group), np.float32)

    def encode(place: int) -> None:
        part = np.ascontiguousarray(values[:, place * group : (place + 1) * group])
        found = find_centres(part[chosen], weights, VECTORS)
        found = found.astype(np.float16).astype(np.float32) if half else found
        vectors[place] = found
        codes[:, place] = nearest_centres(part, found)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # As a list, so that what failed in a thread is raised here.
        list(pool.map(encode, range(width // group)))
    return Grouped(codes, vectors)


def decode_groups(grouped: Grouped) -> Floats:
    """Return the table [V, D] that codes and vectors stand for."""
    parts = [vectors[grouped.codes[:, at]] for at, vectors in enumerate(grouped.vectors)]
    return np.concatenate(parts, axis=1)


def _thin(weights: Floats) -> tuple[npt.NDArray[np.intp], Floats]:
    """Choose at most about _MOST_ROWS rows whose weights stand for those of all.

    Threshold sampling (Duffield et al. 2007, JACM 54(6)): rows above a threshold are taken with
    their weight, others with a chance in proportion to it, and then count as much as the threshold.
    """
    rows = len(weights)
    if rows <= _MOST_ROWS:
        return np.arange(rows), weights
    low, high = 0.0, float(weights.sum())
    for _ in range(60):
        threshold = (low + high) / 2
        expected = np.minimum(weights / threshold, 1.0).sum()
        low, high = (threshold, high) if expected > _MOST_ROWS else (low, threshold)
    chances = np.minimum(weights / high, 1.0)
    chosen = np.flatnonzero(np.random.default_rng(0).random(rows) < chances)
    return chosen, np.maximum(weights[chosen], high).astype(np.float32)


def find_centres(points: Floats, weights: Floats, count: int) -> Floats:
    """Return centres [count, d] of points [n, d] by k-means; those of few points keep theirs."""
    random = np.random.default_rng(0)
    shares = weights / weights.sum(dtype=np.float64)
    first = np.arange(count) % len(points)
    if len(points) > count:
        first = random.choice(len(points), count, replace=False, p=shares)
    centres = points[first].astype(np.float32)
    for _ in range(_STEPS):
        nearest = nearest_centres(points, centres)
        total = np.bincount(nearest, weights, count)
        sums = [np.bincount(nearest, weights * column, count) for column in points.T]
        used = total > 0
        centres[used] = (np.stack(sums, axis=1)[used] / total[used, None]).astype(np.float32)
    return centres


def nearest_centres(points: Floats, centres: Floats) -> Bytes:
    """Return which of at most 256 centres [count, d] each point [n, d] is nearest to."""
    # Of |p - c|^2, what does not depend on c is left out.
    sizes = np.square(centres).sum(axis=1)
    turned = np.ascontiguousarray((-2 * centres).T)
    nearest = np.empty(len(points), np.uint8)
    distances = np.empty((min(_PIECE, len(points)), len(centres)), np.float32)
    for first in range(0, len(points), _PIECE):
        piece = points[first : first + _PIECE]
        found = distances[: len(piece)]
        np.matmul(piece, turned, out=found)
        found += sizes
        nearest[first : first + _PIECE] = found.argmin(axis=1)
    return nearest


def store_groups(edit: Edit, weight: Weight, grouped: Grouped) -> None:
    """Look up a row's codes, then the vectors that they stand for: only rows read are decoded."""
    groups, count, width = grouped.vectors.shape
    codes = edit.store(f"{weight.name}.codes", grouped.codes)
    flat = grouped.vectors.reshape(groups * count, width)
    with np.errstate(over="ignore"):
        half = flat.astype(np.float16)
    exact = np.array_equal(half, flat)
    vectors = edit.store(f"{weight.name}.vectors", half if exact else flat)
    first = edit.store(f"{weight.name}.first", np.arange(groups, dtype=np.int32) * count)
    for node in edit.readers(weight.name):
        output, indices = edit.replace(node), node.input[1]
        rows = edit.insert(node, "Gather", (codes, indices), f"{output}.codes", axis=0)
        numbers = edit.insert(node, "Cast", (rows,), f"{output}.numbers", to=TensorProto.INT32)
        places = edit.insert(node, "Add", (numbers, first), f"{output}.places")
        parts = edit.insert(node, "Gather", (vectors, places), f"{output}.parts", axis=0)
        if exact:
            parts = edit.insert(node, "Cast", (parts,), f"{output}.cast", to=TensorProto.FLOAT)
        # Zero keeps an axis of the indices; the last one takes all groups and their values.
        shape = np.array([0] * edit.rank(indices) + [groups * width], np.int64)
        target = edit.store(f"{output}.shape", shape)
        edit.insert(node, "Reshape", (parts, target), output)
    edit.forget(weight)
