"""Choose the plan with the least harm that meets the budget."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from edgeopt.artifact import Check, Fact, Footprint, Method, Model, Plan
from edgeopt.budget import Budget
from edgeopt.compress.plan import apply_plan, make_plan
from edgeopt.errors import BudgetExceeded
from edgeopt.model.oracle import Array, run_samples
from edgeopt.target import Target
from edgeopt.task import Task, labelled, samples, score
from edgeopt.units import format_bytes

#: Calibration samples: on the example, 32, 128 and 512 keep the same accuracy within 0.5 %.
CALIBRATION = 128
#: Methods that need samples: without a task they are left out, unless there is no other.
_CALIBRATED: tuple[Method, ...] = ("int8-static",)


class Candidate(Fact):
    """One plan, with what it was predicted to need and what accuracy it was measured to keep."""

    plan: Plan
    #: Place in the order of harm, from 0.
    harm: int
    footprint: Footprint
    #: Of the task's metric on its labelled samples; None without a task.
    accuracy: float | None
    #: The fit's baseline minus this accuracy.
    drop: float | None
    checks: tuple[Check, ...]

    @property
    def broken(self) -> tuple[Check, ...]:
        """The limits that it does not meet."""
        return tuple(each for each in self.checks if each.met is False)


class Fit(Fact):
    """What the fitter decided, and what it looked at, in the order of harm."""

    chosen: Candidate
    #: What the chosen plan makes of the model.
    model: Model
    candidates: tuple[Candidate, ...]
    #: Accuracy that drops count from: the float32 model's, with its whole vocabulary; None without
    #: a task.
    baseline: float | None

    @property
    def plan(self) -> Plan:
        """The chosen plan."""
        return self.chosen.plan


class Infeasible(BudgetExceeded):
    """No plan meets the budget; the candidates say how near each one came."""

    def __init__(self, what: str, *, why: str, fix: str, candidates: tuple[Candidate, ...]) -> None:
        super().__init__(what, why=why, fix=fix)
        self.candidates = candidates


def fit_plan(  # noqa: PLR0913  (what a fit depends on)
    model: Model,
    target: Target,
    methods: Sequence[Method],
    budget: Budget,
    task: Task | None,
    *,
    cost: Callable[[Model], Footprint],
    directory: Path,
    scored: int | None = None,
    baseline: float | None = None,
) -> Fit:
    """Return the first method, from the least harm to the most, that meets the budget.

    Footprints are predicted by cost; accuracy is measured with onnxruntime on the task's first
    scored labelled samples (None: all); drops count from baseline (None: from what model keeps
    now). Latency is not predicted here, so it refuses nothing.
    Raises Infeasible, exit code 3, when no method meets the budget.
    """
    measure = _scorer(model, task, scored)
    own = measure(model)
    baseline = own if baseline is None else baseline
    candidates: list[Candidate] = []
    left_out = [each for each in methods if task is None and each in _CALIBRATED]
    for harm, method in enumerate(methods):
        if method in left_out and len(methods) > len(left_out):
            continue
        plan = make_plan(
            model, method, samples=_calibration(model, method, task), directory=directory / method
        )
        made = apply_plan(model, plan, directory=directory / method)
        accuracy = own if made.sha256 == model.sha256 else measure(made)
        drop = None if baseline is None or accuracy is None else baseline - accuracy
        footprint = cost(made)
        candidate = Candidate(
            plan=plan,
            harm=harm,
            footprint=footprint,
            accuracy=accuracy,
            drop=drop,
            checks=_checks(footprint, drop, budget),
        )
        candidates.append(candidate)
        if not candidate.broken:
            return Fit(
                chosen=candidate, model=made, candidates=tuple(candidates), baseline=baseline
            )
        # Of what is passed over, the plan is enough to make it again.
        made.path.unlink()
    raise _infeasible(tuple(candidates), target, left_out)


def _scorer(model: Model, task: Task | None, scored: int | None) -> Callable[[Model], float | None]:
    """Return what measures a model's accuracy; it answers None without labelled samples."""
    found = None if task is None else labelled(task, scored, inputs=model.inputs)
    if task is None or found is None:
        return lambda _: None
    feeds, labels = found
    return lambda each: score(task, run_samples(each, feeds), labels)


def _calibration(model: Model, method: Method, task: Task | None) -> dict[str, Array] | None:
    """Return the samples that a method needs ranges of; None when it needs none."""
    if method not in _CALIBRATED or task is None:
        return None
    return samples(task, CALIBRATION, inputs=model.inputs)


def _checks(footprint: Footprint, drop: float | None, budget: Budget) -> tuple[Check, ...]:
    """Compare each figure with its limit; accuracy counts as predicted until a board confirms."""
    return (
        _check("flash", "bytes", footprint.flash, budget.flash),
        _check("ram", "bytes", footprint.peak, budget.ram),
        _check("accuracy drop", "fraction", drop, budget.accuracy_drop),
    )


def _check(
    name: str, unit: Literal["bytes", "fraction"], predicted: float | None, limit: float | None
) -> Check:
    return Check(name=name, unit=unit, predicted=predicted, measured=None, limit=limit)


def _infeasible(
    candidates: tuple[Candidate, ...], target: Target, left_out: Sequence[Method]
) -> Infeasible:
    """Say which limit binds, how near the best plan came, and what would be enough."""
    best = min(candidates, key=_excess)
    binding = max(best.broken, key=_overrun)
    hint = f"; or add a [task]: {', '.join(left_out)} needs samples" if left_out else ""
    asked = " ".join(_relaxed(each) for each in best.broken)
    return Infeasible(
        f"no plan fits the budget on {target.name}: the limit on {binding.name} binds",
        why="; ".join(
            f"the best plan, {best.plan.name}, needs {_printed(each, each.predicted)} of"
            f" {each.name}, allowed is {_printed(each, each.limit)}"
            for each in best.broken
        ),
        fix=f"the smallest relaxation that works is {asked}{hint}",
        candidates=candidates,
    )


def _excess(candidate: Candidate) -> tuple[float, int]:
    """Order candidates by their worst overrun, then by harm."""
    return max(_overrun(each) for each in candidate.broken), candidate.harm


def _overrun(check: Check) -> float:
    """Return how many times its limit a figure is."""
    assert check.predicted is not None
    assert check.limit is not None
    return check.predicted / check.limit if check.limit else math.inf


def _relaxed(check: Check) -> str:
    """Return the option that would be enough, rounded up to what a person types."""
    assert check.predicted is not None
    if check.name == "accuracy drop":
        return f"--max-drop {math.ceil(check.predicted * 1000 - 1e-9) / 10:g}%"
    unit, scale = ("MB", 10**6) if check.predicted >= 10**6 else ("kB", 10**3)
    return f"--{check.name} {math.ceil(check.predicted / scale)}{unit}"


def _printed(check: Check, figure: float | None) -> str:
    """Print a figure in the unit of its check."""
    assert figure is not None
    return format_bytes(figure) if check.unit == "bytes" else f"{figure:.2%}"
