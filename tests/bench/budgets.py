"""Random budgets: does the plan that is returned meet them as measured, and are figures right?

    python -m tests.bench.budgets trec silero [--count 20] [--effort quick] [--seed 0]

Names are those of tests.bench.harm. Limits on flash, peak memory and latency are drawn between the
least that any plan reaches and a little more than what the model needs as it is; each is fitted,
compiled, deployed to this machine as edgeopt deploy does, and measured there. Flash is every byte
pushed. Times are compared by the shortest inference of each, predicted before the plan ran.
A busy machine measures what else it does: the error of times is then no error of the prediction.
"""

import argparse
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgeopt.budget import Budget
from edgeopt.building import draw_samples
from edgeopt.cli.places import cache_folder
from edgeopt.cli.request import Request, make_order, started
from edgeopt.compress import Infeasible, predict_latency
from edgeopt.compress.forecast import Timer
from edgeopt.compress.mix import Mixer
from edgeopt.errors import BudgetExceeded
from edgeopt.fitting import measure_harm, predictor
from edgeopt.job import Correction, Run
from edgeopt.learning import clock_of, timers_of
from edgeopt.measure import summarize_samples
from edgeopt.pipeline import deploy
from edgeopt.prepare import prepare_model
from edgeopt.units import format_bytes, format_millis
from tests.bench.harm import request_of
from tests.bench.prepare import print_table


@dataclass(frozen=True, slots=True)
class Case:
    """One budget, and what became of it; None: called infeasible."""

    budget: Budget
    plan: str
    #: Predicted by the fitter before compiling, and measured.
    flash: tuple[int, int] | None = None
    peak: tuple[int, int] | None = None
    #: ns predicted of the shortest inference before any ran, and those of the shortest measured.
    time: tuple[float, int] | None = None
    #: 95th percentile in ms, which the limit is about.
    p95: float | None = None
    #: Whether it was kept: what breaks a limit as measured is refused, with the figures.
    kept: bool = True

    @property
    def met(self) -> bool:
        """Whether every limit holds as measured."""
        pairs = ((self.flash, self.budget.flash), (self.peak, self.budget.ram))
        slow = self.p95 is not None and self.p95 > (self.budget.latency or math.inf)
        return not slow and all(
            found is None or most is None or found[1] <= most for found, most in pairs
        )


def try_budgets(request: Request, *, count: int, seed: int) -> Iterator[Case]:
    """Draw budgets until so many were met; those below the least reachable count besides."""
    generator = random.Random(seed)
    request = replace(request, board="local", on_board=True)
    # What measures the kernels once.
    _try(request, Budget(latency=1e9))
    with started(make_order(request)) as run:
        limits = _reachable(run)
    done = 0
    while done < count:
        budget = _draw(generator, limits)
        case = _try(request, budget)
        done += case.flash is not None
        yield case


@dataclass(frozen=True, slots=True)
class _Range:
    """Least and most of each figure that a budget is drawn from: bytes, and ms."""

    flash: tuple[float, float]
    peak: tuple[float, float]
    time: tuple[float, float]


def _reachable(run: Run) -> _Range:
    """Predict the least of each, and what the model needs as it is."""
    model = prepare_model(run)
    cost = predictor(run, draw_samples(run, model))
    own = cost(model)
    limited = run.job.profile.model_copy(update={"budget": Budget(latency=1e9)})
    timers = timers_of(replace(run.job, profile=limited), Correction(), model.sha256)
    assert timers
    mixer = Mixer(
        model, measure_harm(run, model), cost, samples=None, plain=True, timer=Timer(*timers)
    )
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        flash = mixer.least("flash", Budget(), Path(folder))
        peak = mixer.least("ram", Budget(), Path(folder))
        time = mixer.least("latency", Budget(), Path(folder))
    assert flash is not None
    assert peak is not None
    assert time is not None
    return _Range((flash, own.flash), (peak, own.peak), (time, timers[0](model)))


def _draw(generator: random.Random, limits: _Range) -> Budget:
    """Draw one limit on bytes or both, and one on time for each second of them.

    One in ten or so is below what can be reached.
    """

    def between(least: float, most: float) -> float:
        return least + generator.uniform(-0.1, 1.05) * (most - least)

    flash, peak = (round(between(*each)) for each in (limits.flash, limits.peak))
    kind, timed = generator.randrange(3), generator.randrange(2)
    # All forms of a model may take much the same: what is allowed is up to half more than the most.
    time = between(limits.time[0], 1.5 * limits.time[1])
    return Budget(
        flash=None if kind == 1 else flash,
        ram=None if kind == 0 else peak,
        latency=time if timed else None,
    )


def _try(request: Request, budget: Budget) -> Case:
    order = make_order(request)
    free = order.job.profile.model_copy(update={"budget": budget, "prune_most": None})
    try:
        with started(order) as run:
            run.job = replace(run.job, profile=free)
            model = prepare_model(run)
            clock = clock_of(run.job, model.sha256)
            done = deploy(run, order.connect, reference=False)
    except Infeasible:
        return Case(budget, "infeasible")
    except BudgetExceeded as error:
        return Case(budget, f"refused: {error.what}")
    checks = {each.name: each for each in done.report.checks}
    seen = done.report.rows[-1].measurement
    assert seen is not None
    return Case(
        budget,
        done.report.rows[-1].plan,
        _pair(checks["flash"].predicted, sum(each.size for each in done.bundle.files)),
        _pair(checks["peak memory"].predicted, seen.memory.peak),
        (predict_latency(done.model, clock), min(seen.samples_ns)),
        summarize_samples(seen.samples_ns).p95 / 1e6,
        done.report.kept,
    )


def _pair(predicted: float | None, measured: int) -> tuple[int, int]:
    assert predicted is not None
    return int(predicted), measured


def rows_of(cases: list[Case]) -> list[tuple[str, ...]]:
    """Print each case, and the worst error of each figure."""
    rows: list[tuple[str, ...]] = [
        ("limits", "plan", "flash", "error", "peak", "error", "p95", "time error", "met")
    ]
    for each in cases:
        limits = ", ".join(
            f"{name} {format_bytes(most)}"
            for name, most in (("flash", each.budget.flash), ("ram", each.budget.ram))
            if most is not None
        )
        if each.budget.latency is not None:
            limits += f", latency {format_millis(each.budget.latency)}"
        if each.flash is None or each.peak is None or each.time is None:
            rows.append((limits, each.plan, *["-"] * 7))
            continue
        rows.append(
            (
                limits,
                each.plan,
                format_bytes(each.flash[1]),
                f"{each.flash[0] / each.flash[1] - 1:+.2%}",
                format_bytes(each.peak[1]),
                f"{each.peak[0] / each.peak[1] - 1:+.2%}",
                format_millis(each.p95 or 0.0),
                f"{each.time[0] / each.time[1] - 1:+.0%}",
                "yes" if each.met else "NO" if each.kept else "refused",
            )
        )
    return rows


def main() -> None:
    """Try budgets for the subjects named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", default="standard")
    parser.add_argument("--target", default="x86-64")
    options = parser.parse_args()
    # Releases go to a home of their own.
    os.environ["EDGEOPT_CACHE_DIR"] = str(cache_folder())
    os.environ["EDGEOPT_DATA_DIR"] = str(cache_folder() / "bench")
    for subject in options.subjects:
        with tempfile.TemporaryDirectory(prefix="edgeopt-home-") as home:
            os.environ["HOME"] = home
            request = request_of(
                str(Path(subject).absolute()) if Path(subject).is_dir() else subject,
                target=options.target,
                effort=options.effort,
            )
            cases = []
            for each in try_budgets(request, count=options.count, seed=options.seed):
                print(each, file=sys.stderr, flush=True)
                cases.append(each)
        print(f"{Path(subject).name}: {sum(each.met for each in cases if each.flash)} of "
              f"{sum(each.flash is not None for each in cases)} met, "
              f"{sum(each.flash is None for each in cases)} infeasible")  # fmt: skip
        print_table(rows_of(cases))


if __name__ == "__main__":
    main()
