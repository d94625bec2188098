"""Measure a release on its board, and say how far its figures can be trusted."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifact import Bundle, Fact, Measurement, Release
from edgeopt.board import Board
from edgeopt.board.state import BoardState
from edgeopt.errors import ConfigError, MeasurementNoisy
from edgeopt.program import ProgramRun, run_program
from edgeopt.surroundings import Around, Conditions

#: Resamples of the bootstrap: the half width then repeats within a few percent.
_RESAMPLES = 1000
_SEED = 20_240_501
#: Confidence of the interval around the median and of the bound on p95.
_CONFIDENCE = 0.95
#: Modified z-score beyond which a sample is an outlier (Iglewicz and Hoaglin).
_OUTLIER_SCORE = 3.5
#: MAD of a normal distribution in units of its standard deviation.
_MAD_SCALE = 1.4826
#: A lower frequency after the run than before it, by more than this share, is a drop.
_FREQUENCY_DROP = 0.05
#: Bits 0 to 3 of the Raspberry Pi's get_throttled are live; 16 to 19 stay set since boot.
_LIVE_BITS = 0xF
#: Last quarter of the samples against the first: a board that warms up and slows down.
_DRIFT = 0.05
#: Share of the time that programs may wait for a processor, and switches away from ours a second
#: that a board with nothing else to do stays below: a tick of 250 Hz takes no processor away.
_PRESSURE, _SWITCHES = 0.1, 20.0
#: A clock that NTP slews moves by 0.0005 s a second; what is set at once moves further.
_STEP_NS = 50_000_000
#: Half width of the median's interval, as a share of it, that a figure may have.
NOISE_LIMIT = 0.05


_Number = TypeVar("_Number", int, float)


class Statistics(Fact):
    """What raw samples say, in their own unit (ns, or instructions when emulated)."""

    count: int
    minimum: int
    #: Median, and half the width of its 95 % bootstrap interval.
    p50: float
    half_width: float
    #: The smallest sample that at least 95 % of all samples do not exceed.
    p95: int
    #: With 95 % confidence the true p95 is at most this; None below 59 samples.
    p95_bound: int | None
    #: What the true p99 is at most, with 95 % confidence; below 299 samples there is none.
    p99_bound: int | None = None
    #: Median absolute deviation, and how many samples lie far outside of it (none is dropped).
    mad: float
    outliers: int


def measure_release(
    release: Release,
    bundle: Bundle,
    board: Board,
    *,
    feeds: Mapping[str, NDArray[Any]],
    warmup: int,
    iterations: int,
    threads: int,
    directory: Path,
) -> tuple[Measurement, list[NDArray[Any]]]:
    """Run a release on the samples; return what was seen and each output as [S, *shape].

    Feeds are [S, *shape] for each input, with S <= iterations. Local files are written under
    directory. A board that rebooted, throttled or slowed down makes the measurement invalid.
    """
    run = run_program(
        release,
        bundle,
        board,
        feeds=feeds,
        warmup=warmup,
        iterations=iterations,
        threads=threads,
        directory=directory,
    )
    report = run.report
    measurement = Measurement(
        kind=board.kind,
        board=board.name,
        boot_id=run.after.boot_id,
        digest=release.digest,
        threads=report.threads,
        samples_ns=report.samples_ns,
        start_ns=report.start_ns,
        load_ns=report.load_ns,
        first_ns=report.first_ns,
        warm_ns=report.warm_ns,
        drift_ns=report.realtime_drift_ns,
        memory=report.memory,
        before=conditions_of(report.before, run.before),
        after=conditions_of(report.after, run.after),
        around=around_of(run),
        process=report.process,
        sensor=report.sensor or "",
        invalid=_invalid_reasons(run),
    )
    return measurement, list(run.outputs)


def _invalid_reasons(run: ProgramRun) -> tuple[str, ...]:
    reasons = []
    if not run.after.boot_id:
        reasons.append("the board does not tell whether it rebooted")
    elif run.before.boot_id != run.after.boot_id:
        reasons.append("the board rebooted during the measurement")
    reasons += condition_problems(
        conditions_of(run.report.before, run.before), conditions_of(run.report.after, run.after)
    )
    around = around_of(run)
    if around.governors != around.governors_after:
        reasons.append(f"the governor changed to {', '.join(sorted(set(around.governors_after)))}")
    drift = drift_of(run.report.samples_ns)
    if drift > _DRIFT:
        reasons.append(f"the last quarter of the samples is {drift:.0%} slower than the first")
    return tuple(reasons)


def conditions_of(seen: Conditions, state: BoardState) -> Conditions:
    """Return what the program saw; flags that have no file are those that the board was asked."""
    if seen.throttled is not None:
        return seen
    return seen.model_copy(update={"throttled": state.throttled})


def around_of(run: ProgramRun) -> Around:
    """Return what the board was like before and after a run."""
    first, last = run.before, run.after
    return Around(
        governors=first.governors,
        governors_after=last.governors,
        load=first.load,
        load_after=last.load,
        pressure_us=_passed(first.pressure_us, last.pressure_us, int),
        seconds=_passed(first.uptime, last.uptime, float),
    )


def _passed(
    first: _Number | None, last: _Number | None, kind: Callable[[float], _Number]
) -> _Number | None:
    """Return how far a counter went; None where it is not there or was set back by a restart."""
    if first is None or last is None or last < first:
        return None
    return kind(round(last - first, 2))


def condition_problems(before: Conditions, after: Conditions) -> list[str]:
    """Return why the board's state around a run spoils its figures, in words."""
    problems = []
    first, last = _throttle_bits(before.throttled), _throttle_bits(after.throttled)
    if (first | last) & _LIVE_BITS:
        problems.append(f"throttled or short of voltage during the run (0x{first | last:x})")
    elif last & ~first:
        problems.append(f"throttled or short of voltage during the run (0x{last & ~first:x} new)")
    pairs = zip(before.frequency_khz, after.frequency_khz, strict=False)
    drops = [(high, low) for high, low in pairs if low < high * (1 - _FREQUENCY_DROP)]
    if drops:
        high, low = min(drops, key=lambda pair: pair[1] / pair[0])
        problems.append(f"the clock fell from {high // 1000} MHz to {low // 1000} MHz")
    return problems


def disturbances(measurement: Measurement) -> tuple[str, ...]:
    """Say what else went on while a real board measured; figures count, and this explains them."""
    around, found = measurement.around, []
    if measurement.kind == "emulated":
        return ()
    if around.pressure_us is not None and around.seconds:
        share = around.pressure_us / 1e6 / around.seconds
        if share > _PRESSURE:
            found.append(f"programs waited for a processor in {share:.0%} of the time")
    timed = sum(measurement.samples_ns) / 1e9
    lost = measurement.process.involuntary / timed if timed else 0.0
    if lost > _SWITCHES:
        found.append(f"other programs took the processor {lost:.0f} times a second")
    if abs(measurement.drift_ns) > _STEP_NS:
        found.append(f"the clock of the day was set by {measurement.drift_ns / 1e9:+.3g} s")
    if set(around.governors) - {"performance"}:
        found.append(f"governor {', '.join(sorted(set(around.governors)))}: not controlled")
    return tuple(found)


def _throttle_bits(text: str | None) -> int:
    try:
        return int(text or "0", 16)
    except ValueError:
        return 0


def drift_of(samples: Sequence[int]) -> float:
    """Return how much slower the last quarter's median is than the first's; 0 below 40 samples.

    >>> drift_of([100] * 30 + [110] * 10)
    0.1
    """
    quarter = len(samples) // 4
    if quarter < 10:
        return 0.0
    first = float(np.median(samples[:quarter]))
    return round(float(np.median(samples[-quarter:])) / first - 1, 6)


def summarize_samples(samples: Sequence[int]) -> Statistics:
    """Compute the statistics of at least one sample; the same samples give the same figures."""
    values = np.sort(np.asarray(samples, dtype=np.int64))
    if values.size == 0:
        raise ConfigError("there is no sample to summarize", fix="measure at least one iteration")
    median = float(np.median(values))
    deviations = np.abs(values - median)
    mad = float(np.median(deviations))
    far = deviations > _OUTLIER_SCORE * _MAD_SCALE * mad if mad > 0 else deviations > 0
    bound, far_bound = (percentile_bound_rank(values.size, each) for each in (0.95, 0.99))
    return Statistics(
        count=int(values.size),
        minimum=int(values[0]),
        p50=median,
        half_width=_median_half_width(values),
        p95=int(values[math.ceil(0.95 * values.size) - 1]),
        p95_bound=None if bound is None else int(values[bound - 1]),
        p99_bound=None if far_bound is None else int(values[far_bound - 1]),
        mad=mad,
        outliers=int(np.count_nonzero(far)),
    )


def percentile_bound_rank(count: int, fraction: float) -> int | None:
    """Return the lowest rank (from 1) whose sample bounds the percentile with 95 % confidence.

    The number of samples below the percentile is binomial, whatever the distribution. None when
    not even the largest sample is a bound.

    >>> percentile_bound_rank(58, 0.95), percentile_bound_rank(59, 0.95)
    (None, 59)
    >>> percentile_bound_rank(298, 0.99), percentile_bound_rank(299, 0.99)
    (None, 299)
    """
    below = 0.0
    for rank in range(1, count + 1):
        below += _binomial(count, rank - 1, fraction)
        if below >= _CONFIDENCE:
            return rank
    return None


def _binomial(count: int, hits: int, chance: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(ways + hits * math.log(chance) + (count - hits) * math.log1p(-chance))


def _median_half_width(values: NDArray[np.int64]) -> float:
    """Return half the width of the percentile bootstrap's 95 % interval of the median."""
    random = np.random.default_rng(_SEED)
    medians = [float(np.median(random.choice(values, size=values.size))) for _ in range(_RESAMPLES)]
    low, high = np.quantile(medians, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(high - low) / 2


def is_noisy(statistics: Statistics, *, limit: float = NOISE_LIMIT) -> bool:
    """Say whether the median's interval is wider than +- limit (a share of the median)."""
    return statistics.half_width > limit * statistics.p50


def require_steady(measurement: Measurement, *, limit: float = NOISE_LIMIT) -> None:
    """Raise MeasurementNoisy when wall-clock samples do not support a figure.

    Instruction counts of an emulated board repeat; they are never refused.
    """
    if measurement.kind == "emulated":
        return
    statistics = summarize_samples(measurement.samples_ns)
    reasons = list(measurement.invalid)
    if is_noisy(statistics, limit=limit):
        share = statistics.half_width / statistics.p50
        reasons.append(
            f"the median of {statistics.count} samples is known to +-{share:.1%}, "
            f"+-{limit:.0%} is allowed"
        )
    if reasons:
        raise MeasurementNoisy(
            f"the samples of {measurement.board} do not support a figure",
            why="; ".join(reasons),
            fix="let the board cool, stop other programs, or measure more iterations",
        )
