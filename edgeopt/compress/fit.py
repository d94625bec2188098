"""Choose the plan with the least harm that meets the budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgeopt.artifact import MIXED, Check, Choice, Entry, Fact, Footprint, Method, Model, Plan
from edgeopt.budget import Budget
from edgeopt.compress.mix import Mixer
from edgeopt.compress.plan import apply_plan, make_plan
from edgeopt.compress.sensitivity import (
    CALIBRATION,
    Sensitivity,
    draw_calibration,
    measure_distance,
)
from edgeopt.errors import BudgetExceeded
from edgeopt.model.extra import runs_in_torch
from edgeopt.model.oracle import Array, run_samples
from edgeopt.task import Task, labelled, samples, score
from edgeopt.units import format_figure

#: Methods that need samples: without a task they are left out, unless there is no other.
_CALIBRATED: tuple[Method, ...] = ("int8-static",)


class Candidate(Fact):
    """One plan, with what it was predicted to need and what accuracy it was measured to keep."""

    plan: Plan
    #: Place in the order of harm, from 0.
    harm: int
    footprint: Footprint
    #: Of the task's metric on its samples for validation; None without a task, and where what the
    #: plan needs refuses it.
    accuracy: float | None
    #: The fit's baseline minus this accuracy.
    drop: float | None
    #: Predicted, in ms; None where no measurement says how fast the device is.
    latency: float | None = None
    checks: tuple[Check, ...]

    @property
    def broken(self) -> tuple[Check, ...]:
        """The limits that it does not meet."""
        return tuple(each for each in self.checks if each.met is False)

    @property
    def slow(self) -> bool:
        """Whether it is predicted to be slower than the budget allows."""
        return any(each.name == "latency" for each in self.broken)


class Fit(Fact):
    """What the fitter decided, and what it looked at, in the order of harm."""

    chosen: Candidate
    #: What the chosen plan makes of the model.
    model: Model
    candidates: tuple[Candidate, ...]
    #: Accuracy that drops count from: the float32 model's, with its whole vocabulary; None without
    #: a task.
    baseline: float | None
    #: What was done to each weight, where each has a form of its own.
    entries: tuple[Entry, ...] = ()

    @property
    def plan(self) -> Plan:
        """The chosen plan."""
        return self.chosen.plan


@dataclass(frozen=True, slots=True)
class Cost:
    """What predicts the needs of a compressed model."""

    footprint: Callable[[Model], Footprint]
    #: In ms; None where no measurement says how fast the device is: it then refuses nothing.
    latency: Callable[[Model], float] | None = None


class Infeasible(BudgetExceeded):
    """No plan meets the budget; the candidates say how near each one came."""

    def __init__(self, what: str, *, why: str, fix: str, candidates: tuple[Candidate, ...]) -> None:
        super().__init__(what, why=why, fix=fix)
        self.candidates = candidates


@dataclass(frozen=True, slots=True)
class _Bench:
    """What every plan is judged by."""

    model: Model
    task: Task | None
    budget: Budget
    cost: Cost
    directory: Path
    measure: Callable[[Model], float | None]
    #: What the model keeps as it is, and what drops count from.
    own: float | None
    baseline: float | None

    def judge(self, plan: Plan, made: Model, harm: int) -> Candidate:
        """Predict what a plan needs, and measure what it loses unless it is refused anyway."""
        footprint = self.cost.footprint(made)
        latency = None if self.cost.latency is None else self.cost.latency(made)
        refused = any(each.met is False for each in _checks(footprint, None, latency, self.budget))
        if made.sha256 == self.model.sha256:
            accuracy = self.own
        else:
            accuracy = None if refused else self.measure(made)
        drop = None if self.baseline is None or accuracy is None else self.baseline - accuracy
        return Candidate(
            plan=plan,
            harm=harm,
            footprint=footprint,
            accuracy=accuracy,
            drop=drop,
            latency=latency,
            checks=_checks(footprint, drop, latency, self.budget),
        )


def fit_plan(
    model: Model,
    methods: Sequence[Method],
    budget: Budget,
    task: Task | None,
    *,
    cost: Cost,
    directory: Path,
    search: Callable[[], Sensitivity] | None = None,
    baseline: float | None = None,
) -> Fit:
    """Return the plan of least harm that meets the budget.

    Methods are tried on the whole model first, from the least harm to the most. Where none meets
    the budget, or the one that does loses accuracy, a form is chosen for every weight instead, if
    the outputs then move less on samples held back; search measures what each form does to the
    outputs (None: whole plans only).

    Footprints and latencies are predicted by cost; accuracy is measured with onnxruntime on the
    task's samples for validation, and drops count from baseline (None: from what the model keeps
    now). A mixture is no faster than the fastest of the whole plans: where all are too slow, none
    is searched.
    Raises Infeasible, exit code 3, when no plan meets the budget.
    """
    bench = _set_up(model, task, budget, cost, directory, baseline)
    left_out = [each for each in methods if task is None and each in _CALIBRATED]
    tried = [each for each in methods if each not in left_out] or list(methods)
    found, candidates = _climb(bench, methods, tried)
    slow = all(each.slow for each in candidates)
    if search is not None and not slow and (found is None or not _is_harmless(found)):
        mixed = _mix(bench, search(), plain="float32" in methods, harm=len(methods))
        candidates.append(mixed.chosen)
        better = found is None or _is_better(bench, mixed.model, found.model)
        if not mixed.chosen.broken and better:
            if found is not None:
                found.model.path.unlink()
            return mixed.model_copy(update={"candidates": tuple(candidates)})
        mixed.model.path.unlink()
    if found is None:
        raise infeasible(tuple(candidates), left_out)
    return found


def replay_plan(
    model: Model,
    plan: Plan,
    task: Task | None,
    *,
    cost: Cost,
    directory: Path,
    baseline: float | None = None,
) -> Fit:
    """Apply a plan that was made before, and judge it without any limit.

    The same model and plan give the same bytes. Raises ConfigError where it is another model's.
    """
    bench = _set_up(model, task, Budget(), cost, directory, baseline)
    samples = draw_calibration(model, task).fitted
    made = apply_plan(model, plan, directory=directory, samples=samples)
    return _fit(bench, bench.judge(plan, made, 0), made, ())


def trace_front(
    model: Model,
    methods: Sequence[Method],
    task: Task | None,
    sensitivity: Sensitivity,
    *,
    cost: Cost,
    directory: Path,
    points: int,
    baseline: float | None = None,
) -> tuple[Candidate, ...]:
    """Return the mixtures of least harm at so many sizes, from the model's own to the smallest.

    Sizes that the same mixture is best at count once.
    """
    bench = _set_up(model, task, Budget(), cost, directory, baseline)
    mixer = _mixer(bench, sensitivity, plain="float32" in methods)
    least = mixer.smallest(directory / "least")
    limits = np.geomspace(cost.footprint(model).flash, least.footprint.flash, points)[:-1]
    found: dict[tuple[Choice, ...], Candidate] = {}
    for limit in limits:
        mixture = mixer.mix(Budget(flash=math.ceil(limit)), directory / MIXED)
        # Judged at once, as the next one is written over it.
        if mixture is not None and mixture.plan.choices not in found:
            judged = bench.judge(mixture.plan, mixture.model, len(found))
            found[mixture.plan.choices] = judged
    if least.plan.choices not in found:
        found[least.plan.choices] = bench.judge(least.plan, least.model, len(found))
    return tuple(found.values())


def _set_up(
    model: Model,
    task: Task | None,
    budget: Budget,
    cost: Cost,
    directory: Path,
    baseline: float | None,
) -> _Bench:
    """Measure what the model keeps as it is; without a baseline drops count from that."""
    measure = _scorer(model, task)
    own = measure(model)
    baseline = own if baseline is None else baseline
    return _Bench(model, task, budget, cost, directory, measure, own, baseline)


def _mixer(bench: _Bench, sensitivity: Sensitivity, *, plain: bool) -> Mixer:
    fitted = draw_calibration(bench.model, bench.task).fitted
    return Mixer(
        bench.model,
        sensitivity,
        bench.cost.footprint,
        samples=fitted,
        plain=plain,
        in_turn=fitted is not None and runs_in_torch(bench.model),
    )


def _climb(
    bench: _Bench, methods: Sequence[Method], tried: Sequence[Method]
) -> tuple[Fit | None, list[Candidate]]:
    """Try methods on the whole model until one meets the budget; return it and all candidates."""
    candidates: list[Candidate] = []
    for method in tried:
        folder = bench.directory / method
        needed = _calibration(bench.model, method, bench.task)
        plan = make_plan(bench.model, method, samples=needed, directory=folder)
        made = apply_plan(bench.model, plan, directory=folder)
        candidates.append(bench.judge(plan, made, methods.index(method)))
        if not candidates[-1].broken:
            return _fit(bench, candidates[-1], made, candidates), candidates
        # Of what is passed over, the plan is enough to make it again.
        made.path.unlink()
    return None, candidates


def _mix(bench: _Bench, sensitivity: Sensitivity, *, plain: bool, harm: int) -> Fit:
    """Return the best mixture within the budget; the smallest of all where none is."""
    mixer = _mixer(bench, sensitivity, plain=plain)
    folder = bench.directory / MIXED
    mixture = mixer.mix(bench.budget, folder) or mixer.smallest(folder)
    chosen = bench.judge(mixture.plan, mixture.model, harm)
    return _fit(bench, chosen, mixture.model, (), mixture.entries)


def _fit(
    bench: _Bench,
    chosen: Candidate,
    made: Model,
    candidates: Sequence[Candidate],
    entries: tuple[Entry, ...] = (),
) -> Fit:
    return Fit(
        chosen=chosen,
        model=made,
        candidates=tuple(candidates),
        baseline=bench.baseline,
        entries=entries,
    )


def _is_harmless(found: Fit) -> bool:
    """Tell whether a plan is not worth improving on: nothing is lost, as far as is known."""
    drop = found.chosen.drop
    return found.chosen.harm == 0 or drop is None or drop <= 0


def _is_better(bench: _Bench, made: Model, other: Model) -> bool:
    """Compare two plans on samples that neither was chosen or fitted on."""
    calibration = draw_calibration(bench.model, bench.task)
    expected = run_samples(bench.model, calibration.held)
    first, second = (
        measure_distance(run_samples(each, calibration.held), expected, classes=calibration.classes)
        for each in (made, other)
    )
    return first < second


def _scorer(model: Model, task: Task | None) -> Callable[[Model], float | None]:
    """Return what measures a model's accuracy; it answers None without labelled samples."""
    if task is None:
        return lambda _: None
    found = labelled(task, None, inputs=model.inputs, part="validation")
    if found is None:
        return lambda _: None
    feeds, labels = found
    return lambda each: score(task, run_samples(each, feeds), labels)


def _calibration(model: Model, method: Method, task: Task | None) -> dict[str, Array] | None:
    """Return the samples that a method needs ranges of; None when it needs none."""
    if method not in _CALIBRATED or task is None:
        return None
    return samples(task, CALIBRATION, inputs=model.inputs)


def _checks(
    footprint: Footprint, drop: float | None, latency: float | None, budget: Budget
) -> tuple[Check, ...]:
    """Compare each figure with its limit; accuracy counts as predicted until a board confirms."""
    return (
        _check("flash", "bytes", footprint.flash, budget.flash),
        _check("ram", "bytes", footprint.peak, budget.ram),
        _check("accuracy drop", "fraction", drop, budget.accuracy_drop),
        _check("latency", "ms", latency, budget.latency),
    )


def _check(
    name: str,
    unit: Literal["bytes", "fraction", "ms"],
    predicted: float | None,
    limit: float | None,
) -> Check:
    return Check(name=name, unit=unit, predicted=predicted, measured=None, limit=limit)


def infeasible(candidates: tuple[Candidate, ...], left_out: Sequence[Method] = ()) -> Infeasible:
    """Say which limit binds, how near the best plan came, and what would be enough."""
    best = min(candidates, key=_excess)
    binding = max(best.broken, key=_overrun)
    hint = f"; or add a [task]: {', '.join(left_out)} needs samples" if left_out else ""
    asked = " ".join(_relaxed(each) for each in best.broken)
    return Infeasible(
        f"no plan fits the budget: the limit on {binding.name} binds",
        why="; ".join(
            f"the best plan, {best.plan.title}, needs {_printed(each, each.predicted)} of"
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
    if check.name == "latency":
        return f"--latency {math.ceil(check.predicted * 10 - 1e-9) / 10:g}ms"
    unit, scale = ("MB", 10**6) if check.predicted >= 10**6 else ("kB", 10**3)
    return f"--{check.name} {math.ceil(check.predicted / scale)}{unit}"


def _printed(check: Check, figure: float | None) -> str:
    """Print a figure in the unit of its check."""
    assert figure is not None
    return f"{figure:.2%}" if check.unit == "fraction" else format_figure(figure, check.unit)
