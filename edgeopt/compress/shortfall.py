"""Say why no plan meets a budget, how near the best ones come, and what would be enough."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from edgeopt.artifact import MIXED, Check, Method
from edgeopt.budget import Budget
from edgeopt.compress.candidate import Candidate, Infeasible, check_needs
from edgeopt.compress.judge import Bench
from edgeopt.compress.mix import Mixer
from edgeopt.compress.plan import apply_plan
from edgeopt.units import format_figure

_Size = Literal["flash", "ram"]
_SIZES: tuple[_Size, ...] = ("flash", "ram")
#: Whole plans that are measured, those that come nearest first, to know what a relaxation loses.
_VERIFIED = 3
#: What a board measures of memory may exceed what was predicted by as much: a limit that is named
#: as enough has to hold there too.
_MEASURED = 1.03


def explain_shortfall(
    bench: Bench,
    candidates: tuple[Candidate, ...],
    left_out: Sequence[Method],
    mixer: Mixer | None,
) -> Infeasible:
    """Say which limit binds, the least that each limit could be, and the cheapest relaxation.

    A relaxation counts once its plan was measured: what needs more bytes may lose too much.
    """
    folder = bench.directory / "shortfall"
    relaxed = tuple(_relax_one(bench, mixer, len(candidates), folder)) if mixer else ()
    known = (*_verified(bench, candidates, folder), *relaxed)
    reach = ", ".join(_reachable(bench, (*candidates, *known), mixer, folder))
    return infeasible((*candidates, *relaxed), known, left_out=left_out, reach=reach)


def infeasible(
    candidates: tuple[Candidate, ...],
    known: Sequence[Candidate] = (),
    *,
    left_out: Sequence[Method] = (),
    reach: str = "",
) -> Infeasible:
    """Put it in words; a relaxation is that of one of the known plans, or of all candidates."""
    best = min(known or candidates, key=_excess)
    binding = max(best.broken, key=_overrun)
    hint = f"; or add a [task]: {', '.join(left_out)} needs samples" if left_out else ""
    asked = " ".join(_option(each) for each in best.broken)
    why = [
        f"the best plan, {best.plan.title}, needs {_printed(each, each.predicted)} of"
        f" {each.name}, allowed is {_printed(each, each.limit)}"
        for each in best.broken
    ]
    if reach:
        why.append(f"the least that any plan reaches, each limit by itself: {reach}")
    return Infeasible(
        f"no plan fits the budget: the limit on {binding.name} binds",
        why="; ".join(why),
        fix=f"the smallest relaxation that works is {asked}{hint}",
        candidates=candidates,
        reach=reach,
    )


def _relax_one(bench: Bench, mixer: Mixer, harm: int, folder: Path) -> Iterator[Candidate]:
    """Judge, for each limit on bytes, the mixture that needs the least of it within the others."""
    for name in _SIZES:
        limit = getattr(bench.budget, name)
        if limit is None:
            continue
        least = mixer.least(name, bench.budget.model_copy(update={name: None}), folder)
        if least is None or least <= limit:
            continue
        free = bench.budget.model_copy(update={name: math.ceil(least)})
        mixture = mixer.mix(free, folder / MIXED)
        if mixture is None:
            continue
        judged = replace(bench, budget=free).judge(mixture.plan, mixture.model, harm)
        mixture.model.path.unlink()
        yield _against(judged, bench.budget)


def _verified(bench: Bench, candidates: Sequence[Candidate], folder: Path) -> Sequence[Candidate]:
    """Measure what the nearest plans keep that were refused for what they need."""
    if bench.budget.accuracy_drop is None:
        return candidates
    nearest = sorted(candidates, key=_excess)[:_VERIFIED]
    found = [each for each in candidates if each.drop is not None]
    for each in nearest:
        if each.drop is not None or each.plan.name == MIXED:
            continue
        made = apply_plan(bench.model, each.plan, directory=folder)
        judged = replace(bench, budget=Budget()).judge(each.plan, made, each.harm)
        made.path.unlink()
        found.append(_against(judged, bench.budget))
    return found or candidates


def _against(judged: Candidate, budget: Budget) -> Candidate:
    """Compare a plan that was judged within other limits with these."""
    checks = check_needs(judged.footprint, judged.drop, judged.latency, budget)
    return judged.model_copy(update={"checks": checks})


def _reachable(
    bench: Bench, candidates: Sequence[Candidate], mixer: Mixer | None, folder: Path
) -> Iterator[str]:
    """Say the least of each limited figure that any plan has, whatever the other limits are."""
    for name in _SIZES:
        if getattr(bench.budget, name) is None:
            continue
        whole = [each.footprint.flash if name == "flash" else each.footprint.peak
                 for each in candidates]  # fmt: skip
        mixed = mixer.least(name, Budget(), folder) if mixer else None
        least = min([*whole, *([] if mixed is None else [mixed])])
        yield f"{format_figure(least, 'bytes')} of {name}"
    if bench.budget.latency is not None:
        times = [each.latency for each in candidates if each.latency is not None]
        if times:
            yield f"{format_figure(min(times), 'ms')} of latency"
    if bench.budget.accuracy_drop is not None:
        drops = [each.drop for each in candidates if each.drop is not None]
        # The model as it came, whose bytes may be too many, loses nothing.
        yield f"{format_figure(max(min(drops, default=0.0), 0.0), 'fraction')} of accuracy drop"


def _excess(candidate: Candidate) -> tuple[float, int]:
    """Order candidates by their worst overrun, then by harm."""
    return max(map(_overrun, candidate.broken), default=0.0), candidate.harm


def _overrun(check: Check) -> float:
    """Return how many times its limit a figure is."""
    assert check.predicted is not None
    assert check.limit is not None
    return check.predicted / check.limit if check.limit else math.inf


def _option(check: Check) -> str:
    """Return the option that would be enough, rounded up to what a person types."""
    assert check.predicted is not None
    if check.name == "accuracy drop":
        return f"--max-drop {math.ceil(check.predicted * 1000 - 1e-9) / 10:g}%"
    if check.name == "latency":
        return f"--latency {math.ceil(check.predicted * 10 - 1e-9) / 10:g}ms"
    enough = check.predicted * (_MEASURED if check.name == "ram" else 1)
    unit, scale = ("MB", 10**6) if enough >= 10**7 else ("kB", 10**3)
    return f"--{check.name} {math.ceil(enough / scale)}{unit}"


def _printed(check: Check, figure: float | None) -> str:
    """Print a figure in the unit of its check."""
    assert figure is not None
    return format_figure(figure, check.unit)
