"""A fit as a file: enough to make the same model again, and to compare it with another one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from edgeopt.artifact import Choice, Entry, Fact, Line, Model, Plan
from edgeopt.compress.candidate import Fit
from edgeopt.compress.cost import pushed_bytes
from edgeopt.errors import ConfigError
from edgeopt.model.skim import skim_model

#: Its name in the folder that edgeopt fit writes.
FILE = "fit.json"


class FitRecord(Fact):
    """What the fitter decided for a target, and what that costs."""

    schema_version: Literal[1] = 1
    target: str
    #: Digest of the model that the plan is for, normalized and trimmed, before its cuts.
    source: str
    #: Digest of what the plan makes of it.
    result: str
    plan: Plan
    #: Predicted, in bytes.
    flash: int
    peak: int
    #: On the task's samples for validation; None without a task.
    accuracy: float | None
    drop: float | None
    #: Bytes stored for each weight that has a form, by its name.
    sizes: Mapping[str, int]
    entries: tuple[Entry, ...] = ()
    ledger: tuple[Line, ...] = ()
    #: False: the search was stopped, and this is the best plan that it had verified.
    finished: bool = True


class CutDifference(Fact):
    """One group of units that two plans cut differently; None where a plan keeps all of them."""

    group: str
    #: Units that are left.
    first: int | None
    second: int | None
    #: Units that are left in both; None where one of them keeps all.
    both: int | None


class Difference(Fact):
    """One weight that two plans treat differently; None where a plan leaves it as it is."""

    weight: str
    first: Choice | None
    second: Choice | None
    first_bytes: int | None
    second_bytes: int | None


def record_fit(fit: Fit, source: Model, target: str, ledger: tuple[Line, ...] = ()) -> FitRecord:
    """Describe a fit of a model for a target, with the ledger of its plan."""
    chosen = fit.chosen
    return FitRecord(
        target=target,
        source=source.sha256,
        result=fit.model.sha256,
        plan=fit.plan,
        flash=chosen.footprint.flash,
        peak=chosen.footprint.peak,
        accuracy=chosen.accuracy,
        drop=chosen.drop,
        sizes=_sizes(fit.model, fit.plan),
        entries=fit.entries,
        ledger=ledger,
        finished=fit.finished,
    )


def read_record(path: Path) -> FitRecord:
    """Read a record, or that of a folder; raises ConfigError when it is none."""
    file = path / FILE if path.is_dir() else path
    try:
        return FitRecord.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no record of a fit"
        raise ConfigError(
            f"{file} cannot be read",
            why=why or str(error),
            fix="name a folder that edgeopt fit --output wrote",
        ) from error


def compare_records(first: FitRecord, second: FitRecord) -> tuple[Difference, ...]:
    """List the weights that two plans treat differently, those of most bytes first.

    Raises ConfigError for plans of two models.
    """
    if first.source != second.source:
        raise ConfigError(
            "the two plans are not of one model",
            why=f"one is of {first.source[:12]}, the other of {second.source[:12]}",
            fix="fit the same model twice: edgeopt fit --output",
        )
    before, after = ({each.weight: each for each in it.plan.choices} for it in (first, second))
    found = [
        Difference(
            weight=name,
            first=before.get(name),
            second=after.get(name),
            first_bytes=first.sizes.get(name),
            second_bytes=second.sizes.get(name),
        )
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    return tuple(
        sorted(found, key=lambda each: -max(each.first_bytes or 0, each.second_bytes or 0))
    )


def compare_cuts(first: FitRecord, second: FitRecord) -> tuple[CutDifference, ...]:
    """List the groups of units that two plans of one model cut differently, by their names."""
    before, after = ({each.group: each.kept for each in it.plan.cuts} for it in (first, second))
    found = []
    for group in sorted({*before, *after}):
        one, other = before.get(group), after.get(group)
        if one == other:
            continue
        left, right = (None if each is None else len(each) for each in (one, other))
        both = None if one is None or other is None else len(set(one) & set(other))
        found.append(CutDifference(group=group, first=left, second=right, both=both))
    return tuple(found)


def _sizes(model: Model, plan: Plan) -> dict[str, int]:
    """Add up what is stored for each weight: forms name their parts after it."""
    names = {each.weight for each in plan.choices}
    sizes = dict.fromkeys(sorted(names), 0)
    for name, size in pushed_bytes(skim_model(model.path).graph).items():
        owner = name
        while owner not in names and "." in owner:
            owner = owner.rpartition(".")[0]
        if owner in names:
            sizes[owner] += size
    return sizes
