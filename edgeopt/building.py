"""A plan that meets the budget, compiled: what the fitter is asked for, and asked again."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgeopt.artifact import Bundle, Model, Vocabulary
from edgeopt.cut import Pruning
from edgeopt.errors import BudgetExceeded, ConfigError, ModelError
from edgeopt.fitting import choose_plan
from edgeopt.job import Correction, Job, Run, Samples, Trial, digest_task, plan_name
from edgeopt.learning import correct_times, last_pace, learn
from edgeopt.prepare import prune_units
from edgeopt.verdict import check_footprint, describe_check

if TYPE_CHECKING:
    from edgeopt.compress import Fit

Made = TypeVar("Made")

#: A figure that breaks the budget corrects the prediction, and the fitter runs again.
ROUNDS = 3
#: Shares of the operations that are cut, one after the other, where no plan meets the budget.
SHARES = (0.3, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class Built:
    """A plan that the budget allows, compiled: nothing was sent yet."""

    fit: "Fit"
    bundle: Bundle
    #: What it will be tried with.
    samples: Samples
    #: The model that the plan is for, after its cuts.
    source: Model
    #: What the predictions of the plan were corrected by.
    correction: Correction
    #: When it was trimmed.
    vocabulary: Vocabulary | None = None
    #: When units were cut.
    pruning: Pruning | None = None


@dataclass(frozen=True, slots=True)
class Within:
    """What meets the budget, and its run: that of a model that was cut, if any was."""

    run: Run
    built: Built


def fit_within(
    run: Run,
    model: Model,
    samples: Samples,
    *,
    correction: Correction | None = None,
    measured: bool = True,
) -> Within:
    """Build the plan of least harm; where there is none, cut as far as the profile allows.

    Without a correction times are those that the last deploy measured. Where all plans are too
    slow by it, and the board will be measured, what would be chosen without is built instead:
    nothing is cut for what may no longer be so. Raises Infeasible, with what was tried, where
    nothing meets the budget.
    """
    from edgeopt.compress import Infeasible

    def attempt(run: Run, model: Model) -> Within:
        return Within(run, build(run, model, samples, correction=correction))

    stale = measured and correction is None and last_pace(run.job) is not None
    if not stale:
        return cut_until(run, model, attempt)
    try:
        return attempt(run, model)
    except Infeasible as error:
        if all(each.slow for each in error.candidates):
            correction = Correction()
    return cut_until(run, model, attempt)


def cut_until(run: Run, model: Model, attempt: Callable[[Run, Model], Made]) -> Made:
    """Return what an attempt makes of a run and its model, or of those that were cut for it.

    Operations are cut where it raises Infeasible, as far as the profile allows; raises the first
    Infeasible where that does not help, or where the effort is for plans without samples: which
    units matter least, samples say.
    """
    from edgeopt.compress import Infeasible

    try:
        return attempt(run, model)
    except Infeasible as error:
        shares = _shares(run)
        if shares and run.job.effort.data_free:
            raise Infeasible(
                error.what,
                why=error.why,
                fix=f"{error.fix}; or let up to {shares[-1]:.0%} of the operations be cut: "
                "leave --effort quick out",
                candidates=error.candidates,
                reach=error.reach,
            ) from error
        for share in shares:
            profile = run.job.profile.model_copy(update={"prune": share})
            try:
                cut = prune_units(replace(run, job=replace(run.job, profile=profile)), model)
            except (ConfigError, ModelError) as obstacle:
                raise Infeasible(
                    error.what,
                    why=f"{error.why}; nothing can be cut: {obstacle.what}",
                    fix=error.fix,
                    candidates=error.candidates,
                ) from obstacle
            with suppress(Infeasible):
                return attempt(*cut)
        raise


def _shares(run: Run) -> list[float]:
    """List how much may be cut where nothing was cut yet."""
    most = run.job.profile.prune_most
    if most is None or run.job.pruning is not None or run.job.task is None:
        return []
    return [each for each in SHARES if each <= most]


def build(
    run: Run, model: Model, samples: Samples, *, correction: Correction | None = None
) -> Built:
    """Choose the plan with the least harm that the budget allows, and compile it.

    The fitter's footprint is an estimate from the graph; when the compiled one breaks a limit
    that the estimate met, the difference is added and the fitter runs again.
    """
    budget = run.job.profile.budget
    correction = correction or Correction(pace=last_pace(run.job))
    for _ in range(ROUNDS):
        fit = choose_plan(run, model, samples, correction)
        bundle = compile_plan(run, fit.model, samples)
        broken = [each for each in check_footprint(bundle, budget) if each.met is False]
        if not broken:
            return Built(
                fit, bundle, samples, model, correction, run.job.vocabulary, run.job.pruning
            )
        correction = correction.after(fit.chosen.footprint, bundle.footprint)
    raise BudgetExceeded(
        f"plan {fit.plan.name} does not fit its budget once compiled",
        why="; ".join(describe_check(each) for each in broken),
        fix="raise the limit, or choose a smaller profile (edgeopt profiles list)",
    )


def learn_from(job: Job, built: Built, trial: Trial, known: Correction) -> Correction | None:
    """Correct the times of kernels, and return what a trial teaches that broke the budget."""
    source, made = built.source, built.fit.model
    correct_times(job, source, made, trial.measurement)
    # The compiler corrected bytes before the board did.
    known = built.correction.model_copy(update={"pace": known.pace})
    return learn(job, built.fit.chosen.footprint, made, trial, known, source=source.sha256)


def draw_samples(run: Run, model: Model) -> Samples:
    """Choose the inputs that will run on the board: labelled where the task has them."""
    from edgeopt.trial import make_samples

    job = run.job
    inputs = [each.model_dump(mode="json") for each in model.inputs]
    key = [inputs, digest_task(job), job.sample_count, model.sha256]
    return run.stage(
        "samples",
        key,
        Samples,
        lambda folder: make_samples(job, model, folder),
        detail=f"{job.sample_count} that run on the board",
    )


def compile_plan(run: Run, model: Model, samples: Samples) -> Bundle:
    """Compile one model for the job's target; the same inputs give the same bytes."""

    def work(folder: Path) -> Bundle:
        from edgeopt.compile import compile_model, ship_tokenizer
        from edgeopt.trial import read_samples

        bundle = compile_model(
            model,
            run.job.target,
            directory=folder,
            cache=run.store.root,
            threads=run.job.threads,
            token_samples=read_samples(samples)[0],
            allow_unscheduled=run.job.allow_unscheduled,
            tiles=run.job.tiles,
        )
        return ship_tokenizer(bundle, vocabulary.tokenizer) if vocabulary else bundle

    vocabulary = run.job.vocabulary
    key = {
        "model": model.sha256,
        "target": run.job.target.model_dump(mode="json"),
        "samples": samples.sha256,
        "threads": run.job.threads,
        "tokenizer": vocabulary.sha256 if vocabulary else None,
        "allow_unscheduled": run.job.allow_unscheduled,
        "tiles": sorted((str(key), tile) for key, tile in run.job.tiles.items()),
    }
    return run.stage("compile", key, Bundle, work, detail=plan_name(model))
