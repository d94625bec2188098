"""What accuracy is kept at what size: edgeopt's mixtures and onnxruntime's own quantizers.

    python -m tests.bench.accuracy PROJECT ... [--share 12.5%] [--plans] [--keep FILE]

All start from the same normalized model and, where they need them, the same calibration samples
from the training file; all are scored on the test file, which nothing was chosen on. Of several
projects (the same one from several seeds) the means are printed. "bytes" are those of the ONNX
file, of a mixture all that is pushed but the device program (the tokenizer, if it was trimmed).
What --keep names holds the results of each project; those that are there are not measured again.
"""

import argparse
import contextlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import get_args

import numpy as np
import onnxruntime

from edgeopt.artifact import Fact, Method, Model
from edgeopt.budget import Budget
from edgeopt.building import draw_samples
from edgeopt.cli.request import Request, make_order, started
from edgeopt.compress.mix import Mixer
from edgeopt.compress.sensitivity import draw_calibration
from edgeopt.fitting import _device_program, _predictor, choose_plan, measure_harm
from edgeopt.job import Correction, Run
from edgeopt.model.extra import runs_in_torch
from edgeopt.model.oracle import Array, Feeds, run_samples
from edgeopt.prepare import prepare_model
from edgeopt.report import format_columns
from edgeopt.task import Task, TextClassification, labelled, read_texts, samples, score
from edgeopt.units import parse_fraction
from tests.bench.quantizers import QUANTIZERS, Quantizer
from tests.bench.words import score_words

#: As many as edgeopt takes for its own static plan.
_CALIBRATION = 128
_FLOOR = "TF-IDF + logistic regression"
#: Shares of the float32 file that mixtures are made for.
_SHARES = ("26%", "18%", "13.6%", "12.5%", "9%", "6%", "4%")


class Result(Fact):
    """What one tool made of one project's model."""

    project: str
    tool: str
    #: None for what is no ONNX model.
    size: int | None
    accuracy: float


@dataclass(frozen=True, slots=True)
class Bench:
    """A project's model with its test set."""

    run: Run
    task: Task
    model: Model
    feeds: Feeds
    labels: Array

    def score(self, outputs: Sequence[Array]) -> float:
        """Return the accuracy of outputs on the test set."""
        return score(self.task, outputs, self.labels)


@contextlib.contextmanager
def open_project(folder: Path, target: str) -> Iterator[Bench]:
    """Load a project's model and test set."""
    with started(make_order(Request(target=target, project=folder, on_board=False))) as run:
        model = prepare_model(run)
        if (
            run.job.task is None
            or (found := labelled(run.job.task, None, inputs=model.inputs)) is None
        ):
            raise SystemExit(f"{folder}: there is no [task] with labelled test samples")
        yield Bench(run, run.job.task, model, *found)


class _Journal:
    """Results that are printed as they come, and found again in a file."""

    def __init__(self, project: str, path: Path | None) -> None:
        self._project, self._path = project, path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        known = [Result.model_validate_json(line) for line in lines]
        self._known = {each.tool: each for each in known if each.project == project}
        self.results: list[Result] = []

    def take(self, tool: str, measure: Callable[[], tuple[int | None, float]]) -> None:
        """Measure what a tool makes, as bytes and accuracy, unless that is known."""
        found = self._known.get(tool)
        if found is None:
            size, accuracy = measure()
            found = Result(project=self._project, tool=tool, size=size, accuracy=accuracy)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(found.model_dump_json() + "\n")
        print(found, file=sys.stderr, flush=True)
        self.results.append(found)


def measure_project(
    folder: Path, target: str, shares: Sequence[str], *, plans: bool, keep: Path | None
) -> list[Result]:
    """Measure mixtures, every quantizer and the floor on one project; every whole plan if asked."""
    journal = _Journal(str(folder), keep)
    with open_project(folder, target) as bench:
        journal.take("float32", partial(_score_float, bench))
        _measure_quantizers(bench, journal)
        _measure_floor(bench, journal)
        _measure_mixtures(bench, journal, shares)
        if plans:
            _measure_plans(bench, journal)
    return journal.results


def _score_float(bench: Bench) -> tuple[int, float]:
    outputs = run_samples(bench.model, bench.feeds)
    return bench.model.path.stat().st_size, bench.score(outputs)


def _measure_mixtures(bench: Bench, journal: _Journal, shares: Sequence[str]) -> None:
    """Choose a form for each weight, of all there are, within shares of the float32 file."""
    whole = bench.model.path.stat().st_size
    drawn, program = draw_samples(bench.run, bench.model), _device_program(bench.run)
    profile = bench.run.job.profile.model_copy(update={"methods": get_args(Method)})
    every = replace(bench.run, job=replace(bench.run.job, profile=profile))

    def mixer() -> Mixer:
        return Mixer(
            bench.model,
            measure_harm(every, bench.model),
            _predictor(every.job, drawn, correction=Correction(), program=program),
            samples=draw_calibration(bench.model, bench.task).fitted,
            plain=True,
            in_turn=runs_in_torch(bench.model),
        )

    def measure(share: str) -> tuple[int, float]:
        budget = Budget(flash=int(parse_fraction(share) * whole) + program.size)
        with tempfile.TemporaryDirectory(prefix="edgeopt-accuracy-") as folder:
            found = mixer().mix(budget, Path(folder))
            if found is None:
                raise SystemExit(f"no mixture takes {share} of {bench.model.path}")
            accuracy = bench.score(run_samples(found.model, bench.feeds))
        return found.footprint.flash - program.size, accuracy

    for share in shares:
        journal.take(f"edgeopt mixed {share}", partial(measure, share))


def _measure_plans(bench: Bench, journal: _Journal) -> None:
    drawn = draw_samples(bench.run, bench.model)

    def measure(method: Method) -> tuple[int, float]:
        profile = bench.run.job.profile.model_copy(
            update={"methods": (method,), "budget": Budget()}
        )
        alone = replace(bench.run, job=replace(bench.run.job, profile=profile))
        made = choose_plan(alone, bench.model, drawn, Correction()).model
        return made.path.stat().st_size, bench.score(run_samples(made, bench.feeds))

    for method in get_args(Method):
        journal.take(f"edgeopt {method}", partial(measure, method))


def _measure_quantizers(bench: Bench, journal: _Journal) -> None:
    calibration = samples(bench.task, _CALIBRATION, inputs=bench.model.inputs)

    def measure(quantize: Quantizer) -> tuple[int, float]:
        with tempfile.TemporaryDirectory(prefix="edgeopt-accuracy-") as folder:
            path = Path(folder) / "quantized.onnx"
            quantize(bench.model.path, path, calibration)
            return path.stat().st_size, bench.score(_run_plainly(path, bench.feeds))

    for name, quantize in QUANTIZERS.items():
        journal.take(f"onnxruntime {name}", partial(measure, quantize))


def _run_plainly(path: Path, feeds: Feeds) -> list[Array]:
    """Run every sample in a session as onnxruntime makes it when nothing is asked of it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    rows = [
        session.run(None, {name: values[index] for name, values in feeds.items()})
        for index in range(count)
    ]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _measure_floor(bench: Bench, journal: _Journal) -> None:
    """Fit word frequencies and a linear model: what an encoder has to beat."""
    task = bench.task
    if not isinstance(task, TextClassification):
        return
    journal.take(_FLOOR, partial(_fit_words, task))


def _fit_words(task: TextClassification) -> tuple[None, float]:
    train = read_texts(task.train, task.labels)
    test = read_texts(task.test, task.labels)
    return None, score_words(train, test)


def format_results(projects: Sequence[Sequence[Result]]) -> str:
    """Print the means over projects, and how far the drops of several projects spread.

    Beside a mixture stands the best that onnxruntime's quantizers keep in as many bytes.

    >>> def result(tool: str, size: int, accuracy: float) -> Result:
    ...     return Result(project="a", tool=tool, size=size, accuracy=accuracy)
    >>> print(format_results([[result("float32", 4_000_000, 0.95),
    ...     result("onnxruntime x", 1_000_000, 0.93), result("edgeopt mixed", 1_100_000, 0.94)]]))
      tool            bytes   share  accuracy   drop  best of onnxruntime
      float32        4.0 MB  100.0%    0.9500  0.00%                    -
      onnxruntime x  1.0 MB   25.0%    0.9300  2.00%                    -
      edgeopt mixed  1.1 MB   27.5%    0.9400  1.00%               0.9300
    """
    rows = [("tool", "bytes", "share", "accuracy", "drop", "best of onnxruntime")]
    plain = _mean_size([each[0] for each in projects])
    columns = [[each[at] for each in projects] for at in range(len(projects[0]))]
    for found in columns:
        drops = [each[0].accuracy - one.accuracy for each, one in zip(projects, found, strict=True)]
        spread = f" ± {stdev(drops):.2%}" if len(drops) > 1 else ""
        size = _mean_size(found)
        printed = f"{size / 1e6:.1f} MB" if size else "-"
        share = f"{size / plain:.1%}" if size and plain else "-"
        drop = f"{fmean(drops):.2%}{spread}"
        best = _best_rival(columns, size) if found[0].tool.startswith("edgeopt") else "-"
        rows.append((found[0].tool, printed, share, f"{_mean(found):.4f}", drop, best))
    return format_columns(rows)


def _mean(found: Sequence[Result]) -> float:
    return fmean(each.accuracy for each in found)


def _mean_size(found: Sequence[Result]) -> float | None:
    sizes = [each.size for each in found if each.size is not None]
    return fmean(sizes) if sizes else None


def _best_rival(columns: Sequence[Sequence[Result]], size: float | None) -> str:
    """Return the best accuracy of what onnxruntime makes no larger; the floor where it has none."""
    rivals = [each for each in columns if each[0].tool.startswith("onnxruntime")]
    small = [each for each in rivals if size and (_mean_size(each) or 0) <= size]
    floor = [each for each in columns if each[0].tool == _FLOOR]
    kept = [_mean(each) for each in small or floor]
    return f"{max(kept):.4f}" if kept else "-"


def main() -> None:
    """Measure the projects named on the command line and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path, nargs="+")
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--share", action="append", dest="shares")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    # The quantizers warn of what they do to every node.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    shares = options.shares or _SHARES
    projects = [
        measure_project(folder, options.target, shares, plans=options.plans, keep=options.keep)
        for folder in options.project
    ]
    print(format_results(projects))


if __name__ == "__main__":
    main()
