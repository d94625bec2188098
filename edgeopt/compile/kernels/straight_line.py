"""Assembly without branches from values by name: which instruction next, and in which register.

Cores in program order wait for what is not ready, so that independent chains of work are woven
into one another; a register is free again after the last instruction that reads it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Registers that a piece of work leaves to those before it, which could not end without.
_RESERVE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One instruction: its text has a place for the register of the result, and for each read."""

    result: str
    text: str
    reads: tuple[str, ...]
    #: Cycles until the result can be read.
    latency: int
    #: Whether the result overwrites the first value that is read, as a multiply-add does.
    replaces: bool = False
    #: Number of the piece of work that it belongs to; earlier ones come first.
    piece: int = 0


def arrange_steps(
    steps: Sequence[Step], homes: Mapping[str, int], free: Sequence[int]
) -> list[str]:
    """Order steps and give their values registers: homes where they name one, else free ones.

    Homes of values that no step makes hold these from the start.
    """
    work = _Work(list(steps), dict(homes), sorted(free))
    lines = []
    while work.waiting:
        lines.append(work.take(work.choose()))
    return lines


class _Work:
    """What is left to do, and what the registers hold."""

    def __init__(self, steps: list[Step], homes: dict[str, int], free: list[int]) -> None:
        made = {each.result for each in steps}
        self.waiting = steps
        self.homes = homes
        self.free = free
        self.kept = {homes[name] for name in made if name in homes}
        self.readers = Counter(name for each in steps for name in set(each.reads))
        self.places = {
            name: home for name, home in homes.items() if name not in made and name in self.readers
        }
        self.ready_at = dict.fromkeys(self.places, 0)
        self.clock = 0

    def choose(self) -> Step:
        """Choose the step that can start first; of several, that of the earliest piece."""
        oldest = min(each.piece for each in self.waiting)
        able = [each for each in self.waiting if self._is_able(each, oldest)]
        assert able, "too few registers for the values that are alive"
        return min(able, key=lambda each: (max(self._start(each), self.clock), each.piece))

    def _start(self, step: Step) -> int:
        return max(self.ready_at[name] for name in step.reads)

    def _dies(self, name: str) -> bool:
        return self.readers[name] == 1

    def _is_able(self, step: Step, oldest: int) -> bool:
        """Tell whether a step's values are made and there is a register for its result."""
        if not all(name in self.places for name in step.reads):
            return False
        if step.replaces and not self._dies(step.reads[0]):
            return False
        if step.result in self.homes:
            home = self.homes[step.result]
            held = [name for name, place in self.places.items() if place == home]
            return all(name in step.reads and self._dies(name) for name in held)
        if any(self._dies(name) and self._is_loose(name) for name in step.reads):
            return True
        return len(self.free) > (0 if step.piece == oldest else _RESERVE)

    def _is_loose(self, name: str) -> bool:
        """Tell whether the register of a value is nobody's home."""
        return self.places[name] not in self.kept

    def take(self, step: Step) -> str:
        """Write a step with its registers and note what it frees."""
        self.waiting.remove(step)
        self.clock = max(self._start(step), self.clock) + 1
        self.ready_at[step.result] = self.clock - 1 + step.latency
        read = [self.places[name] for name in step.reads]
        for name in dict.fromkeys(step.reads):
            self.readers[name] -= 1
            if not self.readers[name]:
                place = self.places.pop(name)
                if place not in self.kept:
                    self.free.insert(0, place)
        if step.result in self.homes:
            place = self.homes[step.result]
        elif step.replaces:
            place = read[0]
            self.free.remove(place)
        else:
            place = self.free.pop(0)
        self.places[step.result] = place
        return step.text.format(place, *read)
