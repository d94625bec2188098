"""What predicts times, and what trials teach of a board: the part of fitting that learns."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import edgeopt
from edgeopt.artifact import Footprint, Measurement, Model
from edgeopt.job import Correction, Job, Trial
from edgeopt.measure import summarize_samples
from edgeopt.tiles import digest_tiles
from edgeopt.times import Times, read_times, write_times

if TYPE_CHECKING:
    from edgeopt.compress.pace import Clock

_Whole = Callable[[Model], float]
_Parts = Callable[[Model, Sequence[str]], Mapping[str, float]]
#: A deployment that is no further from what was known, as a share, corrects nothing.
_CLOSE = 0.05


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

    known = known_times(job)
    if known is None or job.times is None or not _is_timed(seen) or seen.invalid:
        return
    times, shortest = _with_tail(known, source, seen), min(seen.samples_ns)
    clock = clock_of(job, source.sha256)
    nodes = list(predict_nodes(model, clock))
    missing = shortest - sum(each.time for each in nodes)
    if abs(missing) > _CLOSE * shortest:
        shares = sum_changed(predict_nodes(source, clock), nodes)
        times = times.corrected(source.sha256, shares, missing)
    if times != known:
        write_times(job.times, times)


def _with_tail(times: Times, source: Model, seen: Measurement) -> Times:
    """Move what the slowest inferences are to the shortest half way to what was seen.

    A board's neighbours and temperature change in days; one bad minute is no more than half of it.
    """
    before = times.tail(source.sha256)
    now = summarize_samples(seen.samples_ns).p95 / min(seen.samples_ns)
    if abs(now / before - 1) <= _CLOSE:
        return times
    return times.learned(source.sha256, tail=round((before + now) / 2, 2))


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
