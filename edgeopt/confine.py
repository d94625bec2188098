"""Find the least memory in which a release runs, by limits that the board's kernel enforces."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.artifact import Bundle, Release
from edgeopt.board import Board
from edgeopt.board.canary import try_memory_limit
from edgeopt.errors import BoardIncompatible, BudgetExceeded
from edgeopt.program import run_within
from edgeopt.surroundings import Confinement

#: The search ends when limits that pass and that do not are as close as this share, or these bytes.
_SHARE, _BYTES = 0.02, 1 << 18
#: Twice the measured peak passes unless the board runs out of memory itself.
_ENOUGH = 2.0
_PAGE = 4096


def confine_release(
    release: Release,
    bundle: Bundle,
    board: Board,
    *,
    feeds: Mapping[str, NDArray[Any]],
    threads: int,
    peak: int,
    directory: Path,
) -> Confinement:
    """Return the smallest memory.max (cgroup v2) within which the samples run, one launch a try.

    peak: bytes that it was measured to take. Pages of files can be read again, so that the limit
    may lie below the peak. BoardIncompatible where the kernel was not seen to enforce limits.
    """
    state = try_memory_limit(board)
    if state != "enforced":
        raise BoardIncompatible(
            f"{board.name}: no memory limit can be proved",
            why=f"limits are {state}",
            fix="boot with cgroup_enable=memory, and let systemd delegate memory to this account; "
            "or deploy without --confine",
        )

    def passes(limit: int) -> bool:
        try:
            run_within(
                limit, release, bundle, board, feeds=feeds, threads=threads, directory=directory
            )
        except BudgetExceeded:
            return False
        return True

    smallest, tries = find_smallest(passes, round(peak * _ENOUGH))
    if smallest is None:
        raise BudgetExceeded(
            "the release does not run in twice the memory that it was measured to take",
            why=f"measured {peak} bytes",
            fix="measure it again while nothing else runs on the board",
        )
    return Confinement(smallest=smallest, tries=tries)


def find_smallest(passes: Callable[[int], bool], enough: int) -> tuple[int | None, int]:
    """Bisect for the smallest limit that passes, to 2 %; None when not even enough does.

    >>> find_smallest(lambda limit: limit >= 5_000_000, 20_000_000)
    (5152768, 8)
    """
    low, high, tries = 0, enough // _PAGE * _PAGE, 1
    if not passes(high):
        return None, tries
    while high - low > max(_BYTES, _SHARE * high):
        middle = (low + high) // 2 // _PAGE * _PAGE
        tries += 1
        if passes(middle):
            high = middle
        else:
            low = middle
    return high, tries
