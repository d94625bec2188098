"""Launch a program until its figures can be relied on: what is invalid is never averaged in."""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from edgeopt.artifact import Measurement
from edgeopt.measure import is_noisy, summarize_samples

#: Launches that a figure of time comes from at least: what differs between launches (the layout of
#: memory, a neighbour) no number of samples of one shows.
FEWEST = 3
#: Half width of the median's interval, as a share of it, at which no further launch is needed.
_AIM = 0.01
#: Launches that may be set aside before the board is taken for what it is, and the seconds of rest
#: after each: a board that is too hot cools within minutes, not seconds.
_ASIDE, _REST = 2, 20.0

Seen: TypeAlias = tuple[Measurement, Sequence[NDArray[Any]]]


def measure_steadily(
    launch: Callable[[bool], Seen], *, most: int, rest: Callable[[float], object] = time.sleep
) -> Seen:
    """Launch at least three times, and until the median is known to 1 % or most launches were made.

    launch: told whether it is the first one, whose outputs [S, *shape] are returned. A launch
    that is invalid is set aside, the board rests, and another takes its place; after three of
    them in all, or most launches, the invalid one is what is returned. Instructions repeat: of an
    emulated board, and with most = 1, one launch is enough.
    """
    kept: list[Measurement] = []
    aside: list[str] = []
    first, outputs = launch(True)
    last, memory = first, first.memory
    while True:
        # What made times invalid took no memory away, and only the first launch has all samples.
        memory = max(memory, last.memory, key=lambda each: each.peak)
        if last.invalid and last.kind != "emulated":
            aside.append("; ".join(last.invalid))
        else:
            kept.append(last)
        if last.kind == "emulated" or len(kept) + len(aside) >= most or len(aside) > _ASIDE:
            break
        if len(kept) >= FEWEST and not is_noisy(summarize_samples(_samples(kept)), limit=_AIM):
            break
        if last.invalid:
            rest(_REST * len(aside))
        last, _ = launch(False)
    if not kept or len(aside) > _ASIDE:
        left = {"set_aside": tuple(aside[:-1]), "memory": memory}
        return last.model_copy(update=left), outputs
    return _together(kept, aside).model_copy(update={"memory": memory}), outputs


def _samples(launches: Sequence[Measurement]) -> tuple[int, ...]:
    return tuple(sample for each in launches for sample in each.samples_ns)


def _together(kept: Sequence[Measurement], aside: Sequence[str]) -> Measurement:
    """Return launches as one measurement; phases and memory are the first's."""
    if len(kept) == 1:
        return kept[0].model_copy(update={"set_aside": tuple(aside)})
    switches = {
        name: sum(getattr(each.process, name) for each in kept)
        if all(getattr(each.process, name) >= 0 for each in kept)
        else -1
        for name in ("voluntary", "involuntary")
    }
    around = kept[0].around.model_copy(
        update={
            "governors_after": kept[-1].around.governors_after,
            "load_after": kept[-1].around.load_after,
            "pressure_us": _sum([each.around.pressure_us for each in kept]),
            "seconds": _sum([each.around.seconds for each in kept]),
        }
    )
    return kept[0].model_copy(
        update={
            "samples_ns": _samples(kept),
            "launches": tuple(len(each.samples_ns) for each in kept),
            "drift_ns": max((each.drift_ns for each in kept), key=abs),
            "after": kept[-1].after,
            "around": around,
            "process": kept[0].process.model_copy(update=switches),
            "set_aside": tuple(aside),
        }
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) if len(known) == len(values) else None
