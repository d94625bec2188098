"""Where tensors lie in one arena: those that are needed at the same time never overlap.

Greedy by size with best fit (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
Inference", 2020), in several orders; whatever sticks out is then placed earlier, again and again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from edgeopt.compile.weights import ALIGNMENT

#: Pairs of tensors that may be compared before the best arena so far is taken: about a second.
_EFFORT = 4_000_000


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A tensor's bytes and the first and the last step that it is needed in."""

    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Arena:
    """The offset of every tensor, in bytes, and the bytes of the whole."""

    offsets: tuple[int, ...]
    size: int


def aligned_size(size: int) -> int:
    """Round up to what a tensor takes in the arena, where the next one is aligned again."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def largest_live_set(lifetimes: Sequence[Lifetime]) -> int:
    """Return the most bytes that are needed in one step: no arena can be smaller."""
    return max(_live_sets(lifetimes), default=0)


def place_tensors(lifetimes: Sequence[Lifetime]) -> Arena:
    """Place tensors at multiples of the alignment in an arena as small as can be found.

    The same lifetimes give the same offsets.
    """
    bound = largest_live_set(lifetimes)
    best = Arena((), 0)
    rounds = max(8, _EFFORT // max(len(lifetimes), 1) ** 2)
    for order in _orders(lifetimes):
        arena = _improve(lifetimes, order, bound=bound, rounds=rounds // 4)
        if not best.offsets or arena.size < best.size:
            best = arena
        if best.size == bound:
            break
    return best


def _live_sets(lifetimes: Sequence[Lifetime]) -> list[int]:
    """Add up what is needed in every step."""
    changes = [0] * (max((each.last for each in lifetimes), default=0) + 2)
    for each in lifetimes:
        changes[each.first] += aligned_size(each.size)
        changes[each.last + 1] -= aligned_size(each.size)
    return list(accumulate(changes))


def _orders(lifetimes: Sequence[Lifetime]) -> list[list[int]]:
    """List orders in which to place: by size, by the steps that need most, by time, by area."""
    live = _live_sets(lifetimes)

    def breadth(index: int) -> int:
        each = lifetimes[index]
        return max(live[each.first : each.last + 1])

    def area(index: int) -> int:
        each = lifetimes[index]
        return each.size * (each.last - each.first + 1)

    indices = range(len(lifetimes))
    return [
        sorted(indices, key=lambda i: (-lifetimes[i].size, lifetimes[i].first, i)),
        sorted(indices, key=lambda i: (-breadth(i), -lifetimes[i].size, i)),
        sorted(indices, key=lambda i: (lifetimes[i].first - lifetimes[i].last, i)),
        sorted(indices, key=lambda i: (-area(i), i)),
    ]


def _improve(lifetimes: Sequence[Lifetime], order: list[int], *, bound: int, rounds: int) -> Arena:
    """Place in an order; move what reaches the top to its front, and place again."""
    best = _place(lifetimes, order)
    arena = best
    seen = {tuple(order)}
    for _ in range(rounds):
        if best.size == bound:
            break
        top = [i for i in order if arena.offsets[i] + aligned_size(lifetimes[i].size) == arena.size]
        order = top + [i for i in order if i not in top]
        if tuple(order) in seen:
            break
        seen.add(tuple(order))
        arena = _place(lifetimes, order)
        best = min(best, arena, key=lambda each: each.size)
    return best


def _place(lifetimes: Sequence[Lifetime], order: Sequence[int]) -> Arena:
    """Put each tensor into the smallest gap that it fits in, or behind all others."""
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, int, int, int]] = []
    for index in order:
        each = lifetimes[index]
        size = aligned_size(each.size)
        taken = [
            (start, end)
            for start, end, first, last in placed
            if first <= each.last and each.first <= last
        ]
        offsets[index] = _best_gap(taken, size)
        placed.append((offsets[index], offsets[index] + size, each.first, each.last))
        placed.sort()
    return Arena(tuple(offsets), max((end for _, end, _, _ in placed), default=0))


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Find where the smallest sufficient gap starts between ranges in order of their starts."""
    best: tuple[int, int] | None = None
    position = 0
    for start, end in taken:
        gap = start - position
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, position)
        position = max(position, end)
    return position if best is None else best[1]
