"""Rows that several ids of a table share: two bytes an id, and only so many rows.

The rows that are read most are kept. Every other id gets the kept row that is nearest to its own,
so that no word is lost: it means what the most similar one that the task needs does. Where nothing
is known of reads the first rows are kept, which are the most frequent pieces of tokenizers that
order them so. (Hash embeddings, Svenstrup et al. 2017, arXiv 1709.03933, share rows at random.)
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from edgeopt.artifact import Choice
from edgeopt.compress.codes import Floats, is_blank
from edgeopt.compress.edit import Edit
from edgeopt.compress.factors import Factors, Rows
from edgeopt.model.graph import Weight

#: How many rows are tried.
SHARES = (4096, 8192, 16384)
#: What is looked at to find the nearest row: the directions in which rows differ most.
_DIRECTIONS = 64
#: Distances that are compared at a time: what that needs stays in a core's own cache.
_PIECE = 1 << 19

Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Shared:
    """A model with fewer rows, how these are to be stored, and how often each will be read."""

    model: ModelProto
    choices: tuple[Choice, ...]
    reads: Mapping[str, Floats]


def possible_shares(weight: Weight) -> tuple[int, ...]:
    """List the numbers of rows that are tried: those that a table has twice."""
    rows = weight.shape[0] if weight.role == "table" else 0
    return tuple(each for each in SHARES if 3 * each <= 2 * rows)


def share_rows(
    model: ModelProto,
    wanted: Sequence[tuple[Weight, Choice]],
    reads: Mapping[str, Floats],
    factors: Factors | None = None,
) -> Shared:
    """Replace tables by fewer rows, which a table of 16-bit places leads to.

    reads: how often each row is expected to be read; those of a table that is not there are
    unknown. factors: those that were found before; None: none were.
    """
    if not wanted:
        return Shared(model, (), {})
    edit, factors = Edit(model), factors or Factors()
    choices: list[Choice] = []
    found: dict[str, Floats] = {}
    for weight, choice in wanted:
        assert choice.rows is not None
        values, known = edit.value(weight), reads.get(weight.name)
        find = partial(choose_rows, values, choice.rows, known)
        kept, places = factors.shared_rows(values, choice.rows, known, find)
        name = f"{weight.name}.rows"
        edit.store(name, values[kept])
        _put_places(edit, weight, places, name)
        choices.append(choice.model_copy(update={"weight": name, "rows": None}))
        if known is not None:
            found[name] = np.bincount(places, known, len(kept)).astype(np.float32)
    return Shared(edit.finish(), tuple(choices), found)


def choose_rows(values: Floats, count: int, reads: Floats | None) -> Rows:
    """Return which rows of a table [V, D] are kept, and the place of each id's row among them."""
    order = np.arange(len(values))
    if reads is not None:
        order = np.argsort(-reads, kind="stable")
    kept = np.sort(order[:count])
    rest = np.sort(order[count:])
    places = np.empty(len(values), np.intp)
    places[kept] = np.arange(len(kept))
    places[rest] = nearest_rows(values, rest, kept)
    return kept, places


def nearest_rows(values: Floats, rows: Places, among: Places) -> Places:
    """Return for each of some rows the place of the nearest one among others."""
    if is_blank(values):
        # As where only sizes count: the first one is as near as any.
        return np.zeros(len(rows), np.intp)
    wide = values.astype(np.float64)
    directions = np.linalg.eigh(wide.T @ wide)[1][:, -_DIRECTIONS:]
    seen = (wide @ directions).astype(np.float32)
    del wide
    others = np.ascontiguousarray(seen[among].T)
    size = np.square(others).sum(axis=0)
    nearest = np.empty(len(rows), np.intp)
    step = max(1, _PIECE // len(among))

    def find(first: int) -> None:
        piece = slice(first, first + step)
        distances = -2 * seen[rows[piece]] @ others
        distances += size
        nearest[piece] = distances.argmin(axis=1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # As a list, so that what failed in a thread is raised here.
        list(pool.map(find, range(0, len(rows), step)))
    return nearest


def _put_places(edit: Edit, weight: Weight, places: Places, rows: str) -> None:
    """Look up an id's place before its row."""
    kind = np.uint16 if places.max(initial=0) < 1 << 16 else np.int32
    stored = edit.store(f"{weight.name}.places", places.astype(kind))
    for node in edit.readers(weight.name):
        output = edit.replace(node)
        place = edit.insert(node, "Gather", (stored, node.input[1]), f"{output}.place", axis=0)
        wide = edit.insert(node, "Cast", (place,), f"{output}.row", to=TensorProto.INT32)
        edit.insert(node, "Gather", (rows, wide), output, axis=0)
    edit.forget(weight)
