"""Compare what was predicted and seen with what was asked, and say what to type next."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgeopt.artifact import Bundle, Check, Footprint, Report, Row, Tried
from edgeopt.budget import Budget
from edgeopt.errors import (
    AccuracyLost,
    BudgetExceeded,
    EdgeoptError,
    MeasurementNoisy,
)
from edgeopt.job import Run, Trial, plan_title
from edgeopt.measure import disturbances, require_steady, summarize_samples
from edgeopt.units import format_figure
from edgeopt.verify import parity_error

if TYPE_CHECKING:
    from edgeopt.compress import Candidate

#: Fewer samples on the board than this do not carry a percentage of their own.
_SAMPLES_FOR_METRIC = 100


def tried_of(candidates: "Iterable[Candidate]") -> tuple[Tried, ...]:
    """Return what the fitter looked at, in the order of harm; the last one was chosen."""
    return tuple(
        Tried(
            plan=plan_title(each.plan),
            flash=each.footprint.flash,
            peak=each.footprint.peak,
            metric=each.accuracy,
            drop=each.drop,
            latency=each.latency,
            broken=tuple(describe_check(check) for check in each.broken),
        )
        for each in candidates
    )


def check_figures(need: Footprint, drop: float | None, budget: Budget) -> tuple[Check, ...]:
    """Compare a plan's predicted footprint and measured loss with the budget."""
    return (
        _check("flash", "bytes", need.flash, None, budget.flash),
        _check("peak memory", "bytes", need.peak, None, budget.ram),
        _check("accuracy drop", "fraction", drop, None, budget.accuracy_drop),
    )


def check_footprint(bundle: Bundle, budget: Budget) -> tuple[Check, ...]:
    """Compare what a bundle will need with the budget, before anything is sent."""
    return check_figures(bundle.footprint, None, budget)


def check_trial(
    run: Run, *, bundle: Bundle, trial: Trial, tried: Tried, reference: Trial | None
) -> tuple[Check, ...]:
    """Compare every limit of the budget with what was predicted and what was seen."""
    budget, kind = run.job.profile.budget, trial.measurement.kind
    need, seen = bundle.footprint, trial.measurement
    statistics = summarize_samples(seen.samples_ns)
    checks = [
        _check("flash", "bytes", tried.flash, need.flash, budget.flash),
        _check("peak memory", "bytes", need.peak, seen.memory.peak, budget.ram),
    ]
    if seen.confined is not None:
        smallest = seen.confined.smallest
        checks.append(_check("memory it runs in", "bytes", None, smallest, budget.ram))
    if kind == "emulated":
        checks.append(_check("instructions", "instructions", None, statistics.p50, None))
        if budget.latency is not None:
            checks.append(_check("latency p95", "ms", None, None, budget.latency))
    else:
        p95 = statistics.p95 / 1e6
        checks.append(_check("latency p95", "ms", tried.latency, p95, budget.latency))
    if tried.drop is not None or budget.accuracy_drop is not None:
        drop = _drop_on_board(trial, reference)
        checks.append(_check("accuracy drop", "fraction", tried.drop, drop, budget.accuracy_drop))
    checks.append(_check("parity", "ratio", None, trial.parity.max_rel, trial.parity.limit))
    return tuple(checks)


def _check(
    name: str, unit: str, predicted: float | None, measured: float | None, limit: float | None
) -> Check:
    return Check.model_validate(
        {"name": name, "unit": unit, "predicted": predicted, "measured": measured, "limit": limit}
    )


def _drop_on_board(trial: Trial, reference: Trial | None) -> float | None:
    """Return the loss on the samples that ran on the board; None for too few of them."""
    if reference is None or trial.parity.metric_samples < _SAMPLES_FOR_METRIC:
        return None
    before, after = reference.parity.metric_board, trial.parity.metric_board
    return None if before is None or after is None else before - after


def failure_of(checks: tuple[Check, ...]) -> EdgeoptError | None:
    """Return the gravest gate that failed: parity, then accuracy, then the rest of the budget."""
    broken = {each.name: each for each in checks if each.met is False}
    if "parity" in broken:
        return parity_error(describe_check(broken["parity"]))
    if "accuracy drop" in broken:
        return AccuracyLost(
            "the model loses more than the budget allows",
            why=describe_check(broken["accuracy drop"]),
            fix="allow more with --max-drop, or choose a profile with less harm",
        )
    if broken:
        return BudgetExceeded(
            "the budget is not met",
            why="; ".join(describe_check(each) for each in broken.values()),
            fix="raise the limit, or choose a smaller profile (edgeopt profiles list)",
        )
    return None


def describe_check(check: Check) -> str:
    """Say a limit and its figure in words.

    >>> describe_check(Check(name="flash", unit="bytes", predicted=2e6, measured=None, limit=1e6))
    'flash is 2 MB, the limit is 1 MB'
    """
    figure = check.measured if check.measured is not None else check.predicted
    shown, limit = format_figure(figure, check.unit), format_figure(check.limit, check.unit)
    return f"{check.name} is {shown}, the limit is {limit}"


def make_report(
    run: Run,
    *,
    rows: tuple[Row, ...],
    tried: tuple[Tried, ...],
    checks: tuple[Check, ...],
    bundle: Bundle,
    board: str,
    remark: str = "",
) -> Report:
    """Put all of a run into one report; `kept` and the exit code follow from the checks.

    remark: added to what failed, such as where outputs begin to differ.
    """
    job = run.job
    failure = failure_of(checks) or _noise(run, rows)
    emulation = job.target.emulation if job.kind == "emulated" else None
    follow = f"edgeopt status --target {job.target.name}"
    follow += f" --board {board}" if job.kind == "board" else ""
    return Report(
        app=job.app,
        target=job.target.name,
        profile=job.profile.name,
        board=board,
        kind=job.kind,
        caveat=emulation.caveat if emulation else "",
        digest=bundle.digest,
        kept=failure is None,
        checks=checks,
        rows=rows,
        tried=tried,
        vocabulary=job.vocabulary,
        pruning=job.pruning,
        stages=tuple(run.records),
        warnings=_warnings(bundle, rows),
        exit_code=failure.exit_code if failure else 0,
        failure=_describe_failure(failure, remark) if failure else "",
        next_command=failure.fix if failure else follow,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _describe_failure(failure: EdgeoptError, remark: str) -> str:
    return "; ".join(part for part in (f"{failure.what}: {failure.why}", remark) if part)


def _noise(run: Run, rows: tuple[Row, ...]) -> EdgeoptError | None:
    """Return why a limit on latency cannot be said to hold, although the samples are within it."""
    if run.job.profile.budget.latency is None or not rows or rows[-1].measurement is None:
        return None
    try:
        require_steady(rows[-1].measurement)
    except MeasurementNoisy as error:
        return error
    return None


def _warnings(bundle: Bundle, rows: tuple[Row, ...]) -> tuple[str, ...]:
    slow = [
        f"{each.function} has no fast kernel and is {each.flops_share:.1%} of the arithmetic"
        for each in bundle.unscheduled
    ]
    unsteady = [
        f"{row.plan}: {reason}"
        for row in rows
        if row.measurement
        for reason in (
            *row.measurement.invalid,
            *(f"a launch was repeated: {each}" for each in row.measurement.set_aside),
            *disturbances(row.measurement),
        )
    ]
    return (*slow, *unsteady)
