"""The fit stage: what the search is given, and where its parts are kept."""

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import edgeopt
from edgeopt.artifact import Choice, Footprint, Line, Model, Plan
from edgeopt.cut import Cut
from edgeopt.job import Correction, Job, Program, Run, Samples, digest_task
from edgeopt.learning import clock_of, known_times, last_pace, timers_of
from edgeopt.scratch import scratch
from edgeopt.store import digest_tree

if TYPE_CHECKING:
    from edgeopt.compress import Candidate, Fit, Sensitivity
    from edgeopt.compress.sensitivity import Calibration, Keep


def choose_plan(run: Run, model: Model, samples: Samples, correction: Correction) -> "Fit":
    """Find the plan with the least harm whose predicted footprint and accuracy are allowed."""
    from edgeopt.compress import Cost, Fit, Infeasible, Search, Stopped, fit_plan, infeasible
    from edgeopt.compress.mixable import can_mix

    job = run.job
    target, profile = job.target, job.profile
    times = known_times(job)
    if profile.budget.latency is None:
        # What no limit asks for must not make a second deploy fit again.
        correction, times = correction.model_copy(update={"pace": None}), None
    key = {
        "model": model.sha256,
        "target": target.model_dump(mode="json"),
        "methods": profile.methods,
        "mixed": profile.mixed,
        "recipe": profile.recipe.model_dump(mode="json"),
        "zeros": None if profile.sparsify is None else profile.sparsify.model_dump(mode="json"),
        "budget": profile.budget.model_dump(mode="json"),
        "task": digest_task(job),
        "samples": samples.sha256,
        "baseline": job.baseline,
        "effort": job.effort.model_dump(mode="json"),
        "correction": correction.model_dump(mode="json"),
        "times": None if times is None else times.model_dump(mode="json"),
    }

    program = _device_program(run)
    mixes = profile.mixed and can_mix(profile.methods)

    def fit(folder: Path) -> Fit:
        return fit_plan(
            model,
            profile.methods,
            profile.budget,
            job.task,
            cost=Cost(
                _predictor(job, samples, correction=correction, program=program),
                *timers_of(job, correction, model.sha256),
            ),
            directory=folder,
            search=Search(
                (lambda: measure_harm(run, model)) if mixes else None,
                job.effort,
                lambda share: run.advance("repair", share),
                profile.recipe,
                profile.sparsify,
            ),
            baseline=job.baseline,
        )

    try:
        return _with_cuts(run.stage("fit", key, Fit, fit, detail=job.effort.name), job)
    except Stopped as error:
        raise Stopped(_with_cuts(error.fit, job)) from None
    except Infeasible as error:
        if job.pruning is None:
            raise
        cut = _cut_candidates(error.candidates, job.pruning.cuts)
        raise infeasible(cut, reach=error.reach) from error


def _with_cuts(fit: "Fit", job: Job) -> "Fit":
    """Give plans the cuts that were made before them, so that each is all that was done."""
    if job.pruning is None:
        return fit
    cuts = job.pruning.cuts
    (chosen,) = _cut_candidates([fit.chosen], cuts)
    return fit.model_copy(
        update={"chosen": chosen, "candidates": _cut_candidates(fit.candidates, cuts)}
    )


def _cut_candidates(
    candidates: "Sequence[Candidate]", cuts: tuple[Cut, ...]
) -> "tuple[Candidate, ...]":
    return tuple(
        each.model_copy(update={"plan": each.plan.model_copy(update={"cuts": cuts})})
        for each in candidates
    )


def replay(run: Run, model: Model, samples: Samples, plan: Plan) -> "Fit":
    """Apply a plan that was made before."""
    from edgeopt.compress import Cost, Fit, replay_plan

    job = run.job
    program = _device_program(run)
    # These were made before: the model is what they left.
    plan = plan.model_copy(update={"cuts": ()})

    def apply(folder: Path) -> Fit:
        return replay_plan(
            model,
            plan,
            job.task,
            cost=Cost(_predictor(job, samples, correction=Correction(), program=program)),
            directory=folder,
            baseline=job.baseline,
        )

    key = [model.sha256, plan.model_dump(mode="json"), digest_task(job), samples.sha256]
    target = job.target.model_dump(mode="json")
    found = run.stage("replay", [*key, target, job.baseline], Fit, apply, detail=plan.name)
    return _with_cuts(found, job)


def draw_ledger(job: Job, fit: "Fit", source: Model) -> tuple[Line, ...]:
    """Say of each weight of a plan what was done to it and why; times by the job's pace, if any."""
    from edgeopt.compress.ledger import write_ledger

    lines = write_ledger(fit, source, clock_of(job, source.sha256))
    pace = last_pace(job) or 1.0
    return tuple(
        each.model_copy(
            update={
                "predicted_before": each.predicted_before * pace,
                "predicted_after": each.predicted_after * pace,
            }
        )
        for each in lines
    )


def describe_judging(fit: "Fit", job: Job) -> str:
    """Say in a sentence what is judged where there are no labels; nothing where there are."""
    if fit.baseline is not None:
        return ""
    chosen = fit.chosen
    if job.task is None:
        return "there is no task: what the plan keeps is not known"
    if chosen.drop is None:
        return "the task has no labels and the model no classes: harm is all that is known"
    divergence = "" if chosen.divergence is None else f", KL {chosen.divergence:.1e} nats"
    return (
        "the task has no labels: plans are judged by the original's answers; this one agrees in "
        f"{1 - chosen.drop:.2%} of the samples{divergence}"
    )


def draw_front(run: Run, model: Model, samples: Samples, points: int) -> "tuple[Candidate, ...]":
    """Find the mixtures of least harm at so many sizes, of all forms that weights can have."""
    from edgeopt.compress import Cost, Search, trace_front

    job = run.job
    program = _device_program(run)
    with scratch() as folder:
        return trace_front(
            model,
            job.profile.methods,
            job.task,
            Search(lambda: measure_harm(run, model), job.effort),
            cost=Cost(_predictor(job, samples, correction=Correction(), program=program)),
            directory=folder,
            points=points,
            baseline=job.baseline,
        )


def measure_harm(run: Run, model: Model) -> "Sensitivity":
    """Measure what each form of each weight does to the outputs, whatever the budget is.

    What was measured of a form is kept at once, under the digests of the model, of the samples and
    of the code that measures: a search that was stopped goes on behind it, and one of another
    profile, effort or project begins with it.
    """
    from edgeopt.compress import Sensitivity, draw_calibration, measure_sensitivity
    from edgeopt.compress.host import require_memory
    from edgeopt.compress.mixable import mixable_choices

    job = run.job

    def measure(folder: Path) -> Sensitivity:
        calibration = draw_calibration(model, job.task, effort=job.effort)
        fitted = calibration.fitted is not None
        methods = job.profile.methods
        choices = mixable_choices(model, methods, reconstruct=fitted, effort=job.effort)
        require_memory(model, choices)
        return measure_sensitivity(
            model,
            choices,
            calibration,
            directory=folder,
            keep=_keeper(run, model, calibration),
            advance=lambda share: run.advance("harm", share),
        )

    key = [model.sha256, job.profile.methods, digest_task(job), job.effort.model_dump(mode="json")]
    return run.stage("harm", key, Sensitivity, measure, detail="of every form of every weight")


def _keeper(run: Run, model: Model, calibration: "Calibration") -> "Keep":
    """Return what keeps the harm of each form in the store, whatever else the job says."""
    from edgeopt.compress.sensitivity import Measured

    samples = calibration.digest()
    # A change anywhere else in edgeopt is no reason to measure again.
    package = Path(edgeopt.__file__).parent
    tools = {name: digest_tree(package / name) for name in ("compress", "model")}
    tools |= {name: metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")}

    def keep(form: Choice, names: Sequence[str], measure: Callable[[], Measured]) -> Measured:
        key = [model.sha256, form.model_dump(mode="json"), list(names), samples]
        fresh = run.job.fresh
        return run.store.stage(
            "forms", key, Measured, lambda _: measure(), fresh=fresh, tools=tools
        ).value

    return keep


def predictor(run: Run, samples: Samples) -> Callable[[Model], Footprint]:
    """Return what predicts a model's footprint on the run's target before it is compiled."""
    program = _device_program(run)
    return _predictor(run.job, samples, correction=Correction(), program=program)


def _predictor(
    job: Job, samples: Samples, *, correction: Correction, program: Program
) -> Callable[[Model], Footprint]:
    """Return what predicts a model's footprint before it is compiled."""
    from edgeopt.compress import predict_footprint
    from edgeopt.runner import runtime_bytes
    from edgeopt.trial import read_samples

    target = job.target
    runtime = runtime_bytes(target.isa.machine, target.software.linkage) + correction.memory
    size = program.size + correction.flash + (job.vocabulary.size if job.vocabulary else 0)
    feeds, _ = read_samples(samples)
    return lambda model: predict_footprint(
        model, target, runtime=runtime, program=size, samples=feeds
    )


def _device_program(run: Run) -> Program:
    """Build the device program once per machine: it is what takes longest on a new computer."""
    machine = run.job.target.isa.machine

    def work(_folder: Path) -> Program:
        from edgeopt.runner import build_program

        path = build_program(machine, "dynamic", cache=run.store.root)
        return Program(size=path.stat().st_size)

    return run.stage("program", machine, Program, work, detail=f"TVM's runtime for {machine}")
