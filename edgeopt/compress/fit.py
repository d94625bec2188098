"""Choose the plan with the least harm that meets the budget."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from edgeopt.artifact import MIXED, Choice, Entry, Method, Model, Plan, Recipe
from edgeopt.budget import Budget
from edgeopt.compress.candidate import Candidate, Cost, Fit, Stopped
from edgeopt.compress.forecast import Timer, nearest
from edgeopt.compress.hollow import hollow_model
from edgeopt.compress.judge import Bench, set_up
from edgeopt.compress.mix import Mixer, Mixture
from edgeopt.compress.plan import apply_plan, make_plan
from edgeopt.compress.repair import repair_choice
from edgeopt.compress.sensitivity import CALIBRATION, Advance, Sensitivity, draw_calibration
from edgeopt.compress.shortfall import explain_shortfall
from edgeopt.compress.spare import spare_slow
from edgeopt.compress.sparse_choices import zeroed_weights
from edgeopt.effort import STANDARD, Effort
from edgeopt.model.extra import runs_in_torch
from edgeopt.model.oracle import Array
from edgeopt.sparsify import Sparsify
from edgeopt.task import Task, samples

#: Methods that need samples: without a task they are left out, unless there is no other.
_CALIBRATED: tuple[Method, ...] = ("int8-static",)
#: Of a whole plan, the squared error of outputs relative to their squares that nobody will notice:
#: about what rounding all weights to 8 bits makes of them.
_HARMLESS = 1e-4


@dataclass(frozen=True, slots=True)
class Search:
    """How hard a plan is looked for."""

    #: Measures what each form of each weight does to the outputs; None: whole plans only.
    harm: Callable[[], Sensitivity] | None = None
    effort: Effort = STANDARD
    #: Told how much of what repairs a mixture is done.
    advance: Advance = lambda _share: None
    #: What is done around methods of 8 bits, where whole plans have them.
    recipe: Recipe = field(default_factory=Recipe)
    #: What sparse methods set to zero first, where whole plans have them; None: nothing.
    zeros: Sparsify | None = None


def fit_plan(
    model: Model,
    methods: Sequence[Method],
    budget: Budget,
    task: Task | None,
    *,
    cost: Cost,
    directory: Path,
    search: Search = Search(),
    baseline: float | None = None,
) -> Fit:
    """Return the plan of least harm that meets the budget.

    Methods are tried on the whole model first, from the least harm to the most. Where none meets
    the budget, or the outputs of the one that does move, a form is chosen for every weight instead,
    if they then move less on samples held back.

    Footprints and latencies are predicted by cost; accuracy is measured with onnxruntime on the
    task's samples for validation, and drops count from baseline (None: from what the model keeps
    now). A mixture is no faster than the fastest of the whole plans: where all are too slow, none
    is searched.
    Raises Infeasible, exit code 3, when no plan meets the budget; Stopped, exit code 130, when it
    is interrupted with a plan in hand that does.
    """
    # Verified plans that meet the budget, the best one last.
    best: list[Fit] = []
    try:
        with set_up(
            model,
            task,
            budget,
            cost=cost,
            effort=search.effort,
            directory=directory,
            baseline=baseline,
        ) as bench:
            return _search(bench, methods, search, best)
    except KeyboardInterrupt:
        if not best:
            raise
        raise Stopped(best[-1].model_copy(update={"finished": False})) from None


def _search(bench: Bench, methods: Sequence[Method], search: Search, best: list[Fit]) -> Fit:
    left_out = [each for each in methods if bench.task is None and each in _CALIBRATED]
    allowed = [each for each in methods if each in (bench.effort.methods or methods)]
    tried = [each for each in allowed if each not in left_out] or allowed or list(methods)
    candidates = _climb(bench, methods, tried, best, search)
    slow = all(each.slow for each in candidates)
    found = best[-1] if best else None
    mixer = None
    enough = slow or (found is not None and _is_harmless(bench, found))
    if search.harm is not None and not enough:
        mixer = _mixer(bench, search.harm(), plain="float32" in methods)
        for mixture in _mixtures(bench, mixer, search.advance):
            judged = bench.judge(mixture.plan, mixture.model, len(methods))
            tried_so_far = [*candidates, judged]
            if not judged.broken and (not best or bench.is_better(mixture.model, best[-1].model)):
                best.append(_fit(bench, judged, mixture.model, tried_so_far, mixture.entries))
            nearest = judged
        if not best:
            candidates.append(nearest)
    if not best:
        raise explain_shortfall(bench, tuple(candidates), left_out, mixer)
    for each in best[:-1]:
        # Of what is passed over, the plan is enough to make it again.
        each.model.path.unlink()
    return best[-1]


def _mixtures(bench: Bench, mixer: Mixer, advance: Advance) -> Iterator[Mixture]:
    """Yield the best mixture within the budget, then what repairing makes of it, if anything.

    Where there is none, the smallest of all.
    """
    folder = bench.directory / MIXED
    chosen = mixer.choose(bench.budget, folder)
    if chosen is None:
        yield mixer.smallest(folder)
        return
    yield mixer.make(chosen.places, folder)
    places = repair_choice(
        mixer,
        chosen,
        bench.calibration(),
        tries=bench.effort.swaps,
        directory=bench.directory / "repair",
        advance=advance,
    )
    if places != chosen.places:
        yield mixer.make(places, bench.directory / "repaired")


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
    with set_up(
        model, task, Budget(), cost=cost, effort=STANDARD, directory=directory, baseline=baseline
    ) as bench:
        needed = any(each.learns for each in plan.choices) or bool(plan.cuts)
        needed = needed or plan.in_turn or plan.recipe.needs_samples
        fitted = draw_calibration(model, task).fitted if needed else None
        made = apply_plan(model, plan, directory=directory, samples=fitted)
        return _fit(bench, bench.judge(plan, made, 0), made, ())


def trace_front(
    model: Model,
    methods: Sequence[Method],
    task: Task | None,
    search: Search,
    *,
    cost: Cost,
    directory: Path,
    points: int,
    baseline: float | None = None,
) -> tuple[Candidate, ...]:
    """Return the mixtures of least harm at so many sizes, from the model's own to the smallest.

    Sizes that the same mixture is best at count once.
    """
    assert search.harm is not None
    with set_up(
        model,
        task,
        Budget(),
        cost=cost,
        effort=search.effort,
        directory=directory,
        baseline=baseline,
    ) as bench:
        mixer = _mixer(bench, search.harm(), plain="float32" in methods)
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


def _mixer(bench: Bench, sensitivity: Sensitivity, *, plain: bool) -> Mixer:
    fitted = bench.calibration().fitted
    return Mixer(
        bench.model,
        sensitivity,
        bench.cost.footprint,
        samples=fitted,
        plain=plain,
        seconds=bench.effort.seconds,
        in_turn=fitted is not None and runs_in_torch(bench.model),
        timer=_timer(bench.cost),
    )


def _timer(cost: Cost) -> Timer | None:
    if cost.latency is None or cost.parts is None:
        return None
    return Timer(cost.latency, cost.parts)


def _rules(
    bench: Bench, search: Search
) -> tuple[Recipe, Sparsify | None, Mapping[str, Array] | None]:
    """Return what is done around methods, and the samples that it needs, if any."""
    recipe, zeros = search.recipe, search.zeros
    if zeros is not None and bench.effort.data_free:
        zeros = zeros.by_size()
    needs_samples = recipe.needs_samples or (zeros is not None and zeros.needs_samples)
    fitted = bench.calibration().fitted if needs_samples else None
    if fitted is None:
        recipe = recipe.model_copy(update={"smooth": None, "correct_bias": False})
    return recipe, zeros, fitted


def _climb(
    bench: Bench,
    methods: Sequence[Method],
    tried: Sequence[Method],
    best: list[Fit],
    search: Search,
) -> list[Candidate]:
    """Try methods on the whole model until one meets the budget, which is then the best.

    What a method needs is predicted on zeros: one that is refused for that is never made.
    """
    candidates: list[Candidate] = []
    refused: list[Callable[[], Candidate]] = []
    recipe, zeros, fitted = _rules(bench, search)
    loaded = onnx.load(bench.model.path)
    plain = make_plan(bench.model, "float32", directory=bench.directory, loaded=loaded)
    every = [each.weight for each in plain.choices]
    kept = zeroed_weights(loaded)
    hollow = hollow_model(bench.model, every, bench.directory / "hollow", kept=kept)
    for method in tried:
        folder = bench.directory / method
        needed = fitted or _calibration(bench.model, method, bench.task)
        plan = make_plan(
            bench.model,
            method,
            samples=needed,
            directory=folder,
            recipe=recipe,
            zeros=zeros,
            loaded=loaded,
        )
        choices = tuple(map(nearest, plan.choices))
        bare = plan.model_copy(update={"recipe": Recipe(), "choices": choices})
        # How many values are below a threshold only they say.
        counted = any(each.zeros is not None and not each.zeros.known for each in choices)
        empty = bench.model if counted else hollow
        shape = apply_plan(empty, bare, directory=bench.directory / "hollow")
        needs = bench.predict(shape)
        if bench.refuses(needs):
            # What changes nothing keeps what the model does, which is known.
            shown = bench.model if shape.sha256 == hollow.sha256 else shape
            # Not judged yet, for what the model keeps is still being measured.
            refused.append(partial(bench.judge, plan, shown, methods.index(method), needs))
            continue
        spared = spare_slow(bench, bare, empty, bench.directory / "hollow")
        plan = plan.model_copy(update={"choices": spared.leave(plan.choices)})
        made = apply_plan(bench.model, plan, directory=folder, samples=fitted)
        # A recipe adds a few numbers for each channel.
        known = needs if plan.recipe == bare.recipe and not (spared.slower or counted) else None
        candidates += [judge() for judge in refused]
        refused.clear()
        candidates.append(bench.judge(plan, made, methods.index(method), known))
        if not candidates[-1].broken:
            found = _fit(bench, candidates[-1], made, candidates)
            best.append(found.model_copy(update={"slower": spared.slower}))
            break
        # Of what is passed over, the plan is enough to make it again.
        made.path.unlink()
    return [*candidates, *(judge() for judge in refused)]


def _fit(
    bench: Bench,
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


def _is_harmless(bench: Bench, found: Fit) -> bool:
    """Tell whether a plan is not worth improving on.

    That no sample for validation is lost says little: outputs that move turn others.
    """
    if found.chosen.harm == 0:
        return True
    # Also where it is known already: a mixture will be compared with both, which are open now.
    harm = bench.harm(found.model)
    return (found.chosen.drop or 0.0) <= 0 and harm <= _HARMLESS


def _calibration(model: Model, method: Method, task: Task | None) -> dict[str, Array] | None:
    """Return the samples that a method needs ranges of; None when it needs none."""
    if method not in _CALIBRATED or task is None:
        return None
    return samples(task, CALIBRATION, inputs=model.inputs)
