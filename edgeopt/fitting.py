"""The fit stage: what the search is given, and where its parts are kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import edgeopt
from edgeopt.artifact import Choice, Footprint, Line, Measurement, Model, Plan
from edgeopt.cut import Cut
from edgeopt.job import Correction, Job, Program, Run, Samples, Trial, digest_task
from edgeopt.measure import summarize_samples
from edgeopt.scratch import scratch
from edgeopt.store import digest_tree
from edgeopt.tiles import digest_tiles
from edgeopt.times import Times, read_times, write_times

_Whole = Callable[[Model], float]
_Parts = Callable[[Model, Sequence[str]], Mapping[str, float]]
#: A deployment that is no further from its prediction, as a share, corrects nothing.
_CLOSE = 0.05

if TYPE_CHECKING:
    from edgeopt.compress import Candidate, Fit, Sensitivity
    from edgeopt.compress.pace import Clock
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


def predict_time(job: Job, model: Model, source: str = "") -> float:
    """Predict the ns of an inference on the job's target, before any correction.

    source: the sha256 of the model that its plan is for.
    """
    from edgeopt.compress import predict_latency

    return predict_latency(model, clock_of(job, source))


def clock_of(job: Job, source: str = "") -> "Clock":
    """Return what times are predicted by, for plans of a model of this sha256."""
    from edgeopt.compress import pace_of
    from edgeopt.compress.pace import Clock

    return Clock(pace_of(job.target, threads=job.threads), known_times(job), source)


def last_pace(job: Job) -> float | None:
    """Return the pace of the last deploy, which counts where no kernels were measured."""
    return None if known_times(job) else job.pace


def known_times(job: Job) -> Times | None:
    """Read what was measured on such boards; None where nothing was."""
    if job.times is None or job.kind == "emulated":
        return None
    version, tiles = edgeopt.__version__, digest_tiles(job.tiles)
    found = read_times(job.times, edgeopt=version, threads=job.threads, tiles=tiles)
    return found if found.kernels else None


def learn(
    job: Job,
    predicted: Footprint,
    model: Model,
    trial: Trial,
    known: Correction,
    *,
    source: str = "",
) -> Correction | None:
    """Return what a trial teaches the fitter, if it broke the budget; else None.

    predicted: by the fitter, corrected by what is known. Never less than that is returned: a plan
    that was refused must not be chosen again.
    """
    budget, seen = job.profile.budget, trial.measurement
    slow = _is_timed(seen) and budget.latency is not None
    slow = slow and summarize_samples(seen.samples_ns).p95 / 1e6 > (budget.latency or 0)
    large = budget.ram is not None and seen.memory.peak > budget.ram
    if large:
        excess = max(seen.memory.peak - predicted.peak, 1)
        known = known.model_copy(update={"memory": known.memory + excess})
    if slow:
        known = learn_pace(job, model, seen, known, source=source)
    return known if large or slow else None


def learn_pace(
    job: Job, model: Model, seen: Measurement, known: Correction, *, source: str = ""
) -> Correction:
    """Return what is known with the board's pace at a model that was measured, if it was slower.

    source: the sha256 of the model that its plan is for.
    """
    if not _is_timed(seen):
        return known
    pace = summarize_samples(seen.samples_ns).p95 / predict_time(job, model, source)
    # In steps of a hundredth, so that a second deploy finds the same fit.
    pace = math.ceil(pace * 100) / 100
    return known.model_copy(update={"pace": max(pace, known.pace or 0.0)})


def _is_timed(seen: Measurement) -> bool:
    """Tell whether samples are times: an emulated board counts instructions."""
    return seen.kind != "emulated"


def correct_times(job: Job, source: Model, model: Model, seen: Measurement) -> None:
    """Correct what is known of the kernels of a plan for a model by what it took as a whole.

    Only of what the model as it came has not: of the others more was measured.
    """
    from edgeopt.compress.pace import predict_nodes, sum_changed

    times = known_times(job)
    if times is None or job.times is None or not _is_timed(seen) or seen.invalid:
        return
    clock = clock_of(job, source.sha256)
    nodes = list(predict_nodes(model, clock))
    missing = min(seen.samples_ns) - sum(each.time for each in nodes)
    if abs(missing) <= _CLOSE * min(seen.samples_ns):
        return
    shares = sum_changed(predict_nodes(source, clock), nodes)
    write_times(job.times, times.corrected(shares, missing))


def timers_of(job: Job, correction: Correction, source: str) -> "tuple[_Whole, _Parts] | tuple[()]":
    """Return what predicts the ms of a model and of its weights, once the board was measured.

    Limits are about the 95th percentile: predictions are of the shortest inference.
    """
    from edgeopt.compress.pace import predict_latency, predict_weights

    clock = clock_of(job, source)
    pace = correction.pace
    if clock.times is not None:
        pace = max(pace or 0.0, clock.times.tail(source))
    if pace is None or job.profile.budget.latency is None:
        return ()
    scale = pace / 1e6

    def parts(model: Model, names: Sequence[str]) -> Mapping[str, float]:
        return {name: ns * scale for name, ns in predict_weights(model, clock, names).items()}

    return lambda model: predict_latency(model, clock) * scale, parts


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
