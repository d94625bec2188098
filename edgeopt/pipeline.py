"""The whole flow, in one direction: only this module knows the order of the stages."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgeopt.artifact import (
    Bundle,
    Method,
    Model,
    Plan,
    Release,
    Report,
    Row,
    Tried,
    Vocabulary,
)
from edgeopt.board import Board
from edgeopt.budget import Budget
from edgeopt.building import (
    ROUNDS,
    Built,
    Within,
    compile_plan,
    cut_until,
    draw_samples,
    fit_within,
    learn_from,
)
from edgeopt.errors import BoardIncompatible, BudgetExceeded, ParityBroken
from edgeopt.fitting import (
    choose_plan,
    describe_judging,
    draw_front,
    draw_ledger,
    replay,
)
from edgeopt.job import Correction, Deployed, Job, Run, Samples, Trial
from edgeopt.learning import known_times, learn_pace
from edgeopt.measure import summarize_samples
from edgeopt.prepare import (
    keep_vocabulary,
    prepare_model,
    prune_units,
    shrink_model,
    trim_model,
)
from edgeopt.profile import Profile
from edgeopt.units import format_millis
from edgeopt.verdict import (
    check_figures,
    check_trial,
    make_report,
    tried_of,
)

if TYPE_CHECKING:
    from edgeopt.board.lease import Lease
    from edgeopt.compress import Candidate, Fit
    from edgeopt.trial import Seat

#: What choosing a plan imports, and what compiling it does.
_FITTING = ("edgeopt.compress.fit",)
_COMPILING = (*_FITTING, "edgeopt.compile")
#: Seconds that the board stays ours when this process dies without a word.
LEASE_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Original:
    """The model as it was, compiled, with the samples that it takes."""

    run: Run
    model: Model
    samples: Samples
    bundle: Bundle


def deploy(
    run: Run,
    connect: Callable[[], Board],
    *,
    reference: bool = True,
    held: "Lease | None" = None,
    wait: float = 0.0,
) -> Deployed:
    """Fit, compile, refuse what cannot fit, prove the rest on the board, and keep it.

    A board that somebody else holds is waited for, for at most wait seconds. A caller that holds
    its lease already gives it, and keeps it.
    """
    from edgeopt.board.facts import read_facts
    from edgeopt.board.lease import hold
    from edgeopt.trial import ROOT, Seat

    whole = prepare_model(run, ahead=_COMPILING)
    short, model = shrink_model(run, whole)
    samples = draw_samples(short, model)
    _measure_kernels(short, connect, model, samples, wait=wait, held=held)
    first = fit_within(short, model, samples)
    original = None
    if reference and first.built.fit.model.sha256 != whole.sha256:
        # With its whole vocabulary it takes other token ids.
        trimmed = short.job.vocabulary is not run.job.vocabulary
        original = _compile_original(run, whole, None if trimmed else samples)
    board = connect()
    try:
        owner = f"edgeopt deploy {run.job.app}"
        holding = hold(board, ROOT, owner=owner, seconds=LEASE_SECONDS, wait=wait, waiting=run.wait)
        with nullcontext(held) if held else holding as lease:
            live = board if held else lease.board
            seat = Seat(short, live, read_facts(live), samples)
            done = _deploy_on(seat, lease, model, first, original)
            return done.model_copy(
                update={"report": done.report.model_copy(update={"fence": lease.fence})}
            )
    finally:
        board.close()


def _measure_kernels(
    run: Run,
    connect: Callable[[], Board],
    model: Model,
    samples: Samples,
    *,
    wait: float,
    held: "Lease | None",
) -> None:
    """Measure what a limit on latency is judged by, on a board that tells times."""
    from edgeopt.board.lease import hold
    from edgeopt.timing import is_known, measure_times
    from edgeopt.trial import ROOT

    job = run.job
    if job.times is None or job.kind == "emulated" or job.profile.budget.latency is None:
        return
    if is_known(run, model):
        return
    whole = compile_plan(run, model, samples)
    started, board = time.monotonic(), connect()
    try:
        owner = f"edgeopt deploy {job.app}"
        holding = hold(board, ROOT, owner=owner, seconds=LEASE_SECONDS, wait=wait, waiting=run.wait)
        with nullcontext(held) if held else holding as lease:
            run.begin("times")
            live = board if held else lease.board
            renew = partial(lease.renew, LEASE_SECONDS)
            count = measure_times(run, live, model, whole, renew=renew)
        run.note("times", f"{count} kernels", cached=False, seconds=time.monotonic() - started)
    finally:
        board.close()


def _compile_original(run: Run, model: Model, samples: Samples | None) -> Original:
    run = keep_vocabulary(run)
    samples = samples or draw_samples(run, model)
    return Original(run, model, samples, compile_plan(run, model, samples))


def _deploy_on(
    seat: "Seat", lease: "Lease", model: Model, first: Within, original: Original | None
) -> Deployed:
    from edgeopt.deploy import discard_release
    from edgeopt.trial import activate

    whole, board, samples = seat.run, seat.board, seat.samples
    before = _reference_row(seat, original, first.built)
    # Of a model that was cut, the run has other facts.
    seat, built = replace(seat, run=first.run), first.built
    release, trial = _try(seat, built)
    correction, remark = Correction(), ""
    if before is not None and original is not None and before.measurement is not None:
        correction = learn_pace(
            original.run.job,
            original.model,
            before.measurement,
            correction,
            source=original.model.sha256,
        )
    for _ in range(ROUNDS - 1):
        learned = learn_from(seat.run.job, built, trial, correction)
        if learned is None:
            remark = ""
            break
        correction = learned
        lease.renew(LEASE_SECONDS)
        try:
            again = fit_within(whole, model, samples, correction=correction)
        except BudgetExceeded as error:
            if correction.pace is None:
                raise
            # What ran is the best answer there is. A minute in which the board had other work tells
            # little: it runs once more, and the report says by how much it is too slow then.
            ran_again, remark = bool(remark), f"{error.what}: {error.why}"
            if ran_again:
                break
            run, slow = seat.run, summarize_samples(trial.measurement.samples_ns).p95 / 1e6
            run.note("again", f"p95 was {format_millis(slow)}", cached=False, seconds=0.0)
            release, trial = _try(seat, built)
            continue
        discard_release(release, board)
        seat, built = replace(seat, run=again.run), again.built
        release, trial = _try(seat, built)
    report = _conclude(seat, built, trial, before, remark)
    learn_from(seat.run.job, built, trial, correction)
    report = report.model_copy(update={"pace": _pace_of(seat.run.job, built, trial, correction)})
    if report.kept:
        # A run that outlived its lease must not undo what the next holder did.
        lease.confirm()
        activate(seat, release, built.bundle, built.fit.model)
    else:
        discard_release(release, board)
    return Deployed(
        report=report,
        release=release,
        bundle=built.bundle,
        model=built.fit.model,
        samples=samples,
    )


def _pace_of(job: Job, built: Built, trial: Trial, known: Correction) -> float | None:
    """Return what plans without the times of kernels start from: the ratio to the graph's."""
    if known_times(job):
        known = Correction()
    untimed = replace(job, times=None)
    return learn_pace(untimed, built.fit.model, trial.measurement, known).pace


def _reference_row(seat: "Seat", original: Original | None, built: Built) -> Row | None:
    """Measure the model as it was; a board that is too small for it is told so, not an error."""
    from edgeopt.trial import try_reference

    if original is None or original.bundle.digest == built.bundle.digest:
        return None
    trial, note = None, ""
    seat = replace(seat, run=original.run, samples=original.samples)
    try:
        trial = try_reference(seat, original.bundle, original.model)
    except (BoardIncompatible, BudgetExceeded) as error:
        note = f"not run on the board: {error.why or error.what}"
    return Row(
        plan="float32",
        role="reference",
        footprint=original.bundle.footprint,
        metric_host=built.fit.baseline,
        measurement=trial.measurement if trial else None,
        parity=trial.parity if trial else None,
        note=note,
    )


def _try(seat: "Seat", built: Built) -> tuple[Release, Trial]:
    """Try a bundle; outputs that are no numbers at all are traced to their node at once."""
    from edgeopt.trial import try_bundle

    try:
        return try_bundle(seat, built.bundle, built.fit.model)
    except ParityBroken as error:
        where = _locate(seat, built.fit.model, None, 1.0)
        raise ParityBroken(error.what, why=f"{error.why}; {where}", fix=error.fix) from error


def _locate(seat: "Seat", model: Model, sample: int | None, tolerance: float) -> str:
    """Find the first node that the board computes differently."""
    from edgeopt.compile import compile_model
    from edgeopt.divergence import locate_divergence

    run = seat.run

    def build(cut: Model, folder: Path) -> Bundle:
        return compile_model(
            cut,
            run.job.target,
            directory=folder,
            cache=run.store.root,
            threads=run.job.threads,
            # A cut may leave little but what has no fast kernel.
            allow_unscheduled=True,
            tiles=run.job.tiles,
        )

    return locate_divergence(seat, model, sample=sample, tolerance=tolerance, build=build)


def _conclude(seat: "Seat", built: Built, trial: Trial, before: Row | None, remark: str) -> Report:
    run, parity = seat.run, trial.parity
    tried = tried_of(built.fit.candidates)
    reference = None
    if before is not None and before.measurement is not None and before.parity is not None:
        reference = Trial(measurement=before.measurement, parity=before.parity)
    checks = check_trial(
        run, bundle=built.bundle, trial=trial, tried=tried[-1], reference=reference
    )
    chosen = Row(
        plan=tried[-1].plan,
        role="chosen",
        footprint=built.bundle.footprint,
        metric_host=built.fit.chosen.accuracy,
        measurement=trial.measurement,
        parity=trial.parity,
    )
    rows = (chosen,) if before is None else (before, chosen)
    if not parity.max_rel <= parity.limit:
        remark = _locate(seat, built.fit.model, parity.worst_sample, parity.limit)
    report = make_report(
        run,
        rows=rows,
        tried=tried,
        checks=checks,
        bundle=built.bundle,
        board=seat.board.name,
        remark=remark,
    )
    return report.model_copy(
        update={
            "ledger": draw_ledger(run.job, built.fit, built.source),
            "judged_by": describe_judging(built.fit, run.job),
        }
    )


def plan(run: Run) -> Built:
    """Fit and compile, and refuse what cannot fit: what deploy would send, without a board."""
    run, model = shrink_model(run, prepare_model(run, ahead=_COMPILING))
    return fit_within(run, model, draw_samples(run, model), measured=False).built


def survey_plans(run: Run) -> tuple[Tried, ...]:
    """Try every plan there is against the job's budget, also those that the profile leaves out."""
    run, model = shrink_model(run, prepare_model(run))
    samples = draw_samples(run, model)
    found: list[Candidate] = []
    for method in get_args(Method):
        free = run.job.profile.model_copy(update={"methods": (method,), "budget": Budget()})
        alone = replace(run, job=replace(run.job, profile=free))
        chosen = choose_plan(alone, model, samples, Correction()).chosen
        # Without zeros, a method that leaves them out is another one.
        if all(chosen.plan.choices != each.plan.choices for each in found):
            found.append(chosen)
    return tried_of(_checked(found, run.job.profile.budget))


def survey_front(run: Run, points: int) -> tuple[Tried, ...]:
    """Try the best mixture at so many sizes, of all forms there are, against the job's budget."""
    run, model = shrink_model(run, prepare_model(run))
    job = run.job
    free = replace(run, job=replace(job, profile=_every_method(job)))
    found = draw_front(free, model, draw_samples(run, model), points)
    return tried_of(_checked(found, job.profile.budget))


def _every_method(job: Job) -> Profile:
    return job.profile.model_copy(update={"methods": get_args(Method)})


def _checked(found: "Sequence[Candidate]", budget: Budget) -> "list[Candidate]":
    """Compare candidates with limits that did not choose them."""
    return [
        each.model_copy(update={"checks": check_figures(each.footprint, each.drop, budget)})
        for each in found
    ]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit, the model that its plan is for, not cut yet, and the vocabulary when trimmed."""

    fit: "Fit"
    source: Model
    vocabulary: Vocabulary | None


def fit_model(run: Run, plan: Plan | None = None) -> Fitted:
    """Return the model that deploy would compile, or what a plan made before makes of it.

    A search that is stopped gives the best plan that it had verified, marked as unfinished.
    """
    run, model = trim_model(run, prepare_model(run, ahead=_FITTING))
    from edgeopt.compress import Stopped

    cut, smaller = prune_units(run, model, None if plan is None else plan.cuts)
    samples = draw_samples(cut, smaller)
    if plan is not None:
        return Fitted(replay(cut, smaller, samples, plan), model, run.job.vocabulary)

    def attempt(run: Run, model: Model) -> "Fit":
        return choose_plan(run, model, samples, Correction())

    try:
        found = cut_until(cut, smaller, attempt)
    except Stopped as error:
        found = error.fit
    return Fitted(found, model, run.job.vocabulary)
