"""Embedding tables: which constants are read by rows, and how many of their pages that touches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Tables below this size are read like any other weight: most of their pages are touched anyway.
LARGE_TABLE = 64 * 1024
#: The weights file aligns tables to the largest page of any board we describe.
ALIGNMENT = 16384


@dataclass(frozen=True, slots=True)
class Table:
    """One Gather of rows: the table's digest, and where the row numbers come from."""

    digest: str
    rows: int
    row_bytes: int
    #: The model's input that holds the row numbers, or "" when they are constant or computed.
    source: str
    #: Constant row numbers; empty when they are not constant.
    constant: tuple[int, ...]
    #: How many row numbers one inference reads.
    reads: int


def touched_bytes(
    tables: Sequence[Table], samples: Mapping[str, np.ndarray] | None, page: int
) -> int:
    """Count the bytes of one table's pages that its gathers make resident.

    With samples, exactly the pages that their rows lie in; without, one row touches as many pages
    as it spans and no two rows share one, up to the whole table.
    """
    first = tables[0]
    whole = -(-first.rows * first.row_bytes // page) * page
    pages: set[int] = set()
    unknown = 0
    for table in tables:
        rows = _known_rows(table, samples)
        if rows is None:
            unknown += table.reads * (-(-table.row_bytes // page) + 1)
        else:
            pages.update(_pages_of(rows, table.row_bytes, page))
    return min(whole, (len(pages) + unknown) * page)


def _known_rows(table: Table, samples: Mapping[str, np.ndarray] | None) -> np.ndarray | None:
    if table.constant:
        return np.asarray(table.constant, np.int64)
    if samples is not None and table.source in samples:
        return np.unique(samples[table.source]).astype(np.int64)
    return None


def _pages_of(rows: np.ndarray, row_bytes: int, page: int) -> set[int]:
    rows = rows[rows >= 0]
    first = rows * row_bytes // page
    last = ((rows + 1) * row_bytes - 1) // page
    return {
        number
        for low, high in zip(first.tolist(), last.tolist(), strict=True)
        for number in range(low, high + 1)
    }
