"""The ledger of a plan: for each weight what was done, its bytes, its time, its harm, and why."""

from collections.abc import Iterator

from edgeopt.artifact import MIXED, Choice, Entry, Line, Model
from edgeopt.compress.candidate import Fit
from edgeopt.compress.cost import filed_bytes
from edgeopt.compress.pace import Clock, predict_weights, sum_by_weight
from edgeopt.compress.sparse import BLOCKS
from edgeopt.model.skim import skim_model
from edgeopt.model.sparse import find_sparse
from edgeopt.units import format_bytes

#: Times that differ by less are the same: what is predicted is no closer.
_SAME = 0.01


def write_ledger(fit: Fit, source: Model, clock: Clock) -> tuple[Line, ...]:
    """Return a line for each weight of a fit's plan, those of most bytes first.

    source is the model that the plan was made for, after its cuts.
    """
    choices = {each.weight: each for each in fit.plan.choices}
    entries = {each.choice.weight: each for each in fit.entries}
    sizes = [sum_by_weight(_sizes(each), choices) for each in (source, fit.model)]
    times = [predict_weights(each, clock, list(choices)) for each in (source, fit.model)]
    left_out = _left_out(fit.model)
    lines = [
        Line(
            weight=name,
            form=choice.title,
            before=int(sizes[0][name]),
            after=int(sizes[1][name]),
            predicted_before=times[0][name],
            predicted_after=times[1][name],
            harm=entries[name].harm if name in entries else None,
            reason=_reason(
                fit, choice, entries.get(name), before=times[0][name], after=times[1][name]
            )
            + left_out.get(name, ""),
        )
        for name, choice in choices.items()
    ]
    return tuple(sorted(lines, key=lambda line: -line.before))


def _left_out(model: Model) -> dict[str, str]:
    """Say of each weight that is stored without blocks of zeros how many these are."""
    return {
        each.blocks.removesuffix(BLOCKS): f"; {1 - each.share:.0%} of its blocks of {each.width}"
        " columns are zeros, which are neither stored nor multiplied"
        for each in find_sparse(skim_model(model.path).graph).values()
    }


def _sizes(model: Model) -> Iterator[tuple[str, float]]:
    for name, size in filed_bytes(skim_model(model.path).graph).items():
        yield name, float(size)


def _reason(fit: Fit, choice: Choice, entry: Entry | None, *, before: float, after: float) -> str:
    """Say in a sentence why a weight has its form."""
    if choice.method == "float32" and choice.rank is None and choice.like is None:
        if choice.weight in fit.slower:
            share = fit.slower[choice.weight]
            return (
                f"{fit.plan.name} is {share:.0%} slower on this device, and the limits on bytes"
                " leave room"
            )
        kept = "the budget leaves room for it as it came"
        return kept if fit.plan.name == MIXED else f"{fit.plan.name} has no other form for it"
    if entry is None:
        why = f"{fit.plan.name} is the first plan of the profile that meets every limit"
    elif entry.more_bytes is None:
        why = "no larger form harms less"
    else:
        why = (
            f"the next larger form takes {format_bytes(entry.more_bytes)} more than the budget has"
            f" for it and saves {entry.less_harm:.1e} of harm"
        )
    # Looking rows up counts as nothing: what decodes them has nothing to be compared with.
    if before and after > before * (1 + _SAME):
        why += f"; {after / before - 1:.0%} slower than as it came, taken for its bytes alone"
    return why
