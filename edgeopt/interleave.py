"""Let two releases take turns on one board, so that a drift of the board meets both alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from edgeopt.artifact import Bundle, Measurement, Release
from edgeopt.board import Board
from edgeopt.board.facts import BoardFacts
from edgeopt.compare import COUNTED_LAUNCHES, Comparison, compare_blocks, compare_counts
from edgeopt.deploy import discard_release, stage_bundle
from edgeopt.measure import measure_release

#: Blocks of A B B A; with fewer than four there is no verdict.
BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its bundle, where it was installed, and its inputs [S, *shape]."""

    release: Release
    bundle: Bundle
    feeds: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How often both are launched, and how many inferences each launch is."""

    warmup: int
    iterations: int
    threads: int
    blocks: int = BLOCKS
    #: Called before every launch: a lease is renewed there.
    between: Callable[[], None] = lambda: None


def take_turns(
    board: Board,
    base: Side,
    other: Side,
    *,
    facts: BoardFacts,
    schedule: Schedule,
    directory: Path,
    tolerance: float = 0.0,
) -> Comparison:
    """Launch both as A B B A, block after block, and compare; the caller holds the lease.

    An emulated board counts, so that a few launches are enough. What spoils any launch
    (throttling, a reboot) leaves no verdict.
    """
    count = COUNTED_LAUNCHES if board.kind == "emulated" else 2 * schedule.blocks
    taken: dict[bool, list[Measurement]] = {False: [], True: []}
    sides = {False: _installed(base, board, facts), True: _installed(other, board, facts)}
    try:
        for second in turns(count):
            schedule.between()
            side = sides[second]
            measurement, _ = measure_release(
                side.release,
                side.bundle,
                board,
                feeds=side.feeds,
                warmup=schedule.warmup,
                iterations=schedule.iterations,
                threads=schedule.threads,
                directory=directory,
            )
            taken[second].append(measurement)
    finally:
        for side in sides.values():
            # What is current or previous stays.
            discard_release(side.release, board)
    samples = [[each.samples_ns for each in taken[second]] for second in (False, True)]
    compare = compare_counts if board.kind == "emulated" else compare_blocks
    found = compare(samples[0], samples[1], tolerance=tolerance)
    reasons = {reason for each in taken.values() for one in each for reason in one.invalid}
    return found.model_copy(update={"reasons": (*found.reasons, *sorted(reasons))})


def turns(count: int) -> tuple[bool, ...]:
    """Return whose turn it is, the second one's where True, for so many launches of each.

    >>> "".join("AB"[each] for each in turns(3)), "".join("AB"[each] for each in turns(4))
    ('ABBAAB', 'ABBAABBA')
    """
    return ((False, True, True, False) * count)[: 2 * count]


def _installed(side: Side, board: Board, facts: BoardFacts) -> Side:
    """Install it once more where a later deploy has removed it."""
    root = PurePosixPath(side.release.path).parents[3]
    release = stage_bundle(side.bundle, board, facts=facts, app=side.release.app, root=root)
    return Side(release, side.bundle, side.feeds)
