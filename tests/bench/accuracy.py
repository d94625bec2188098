"""What accuracy is kept at what size: edgeopt's plans and onnxruntime's own quantizers.

    python -m tests.bench.accuracy PROJECT ... [--target rpi4]

All start from the same normalized model and, where they need them, the same calibration samples
from the training file; all are scored on the test file, which nothing was chosen on. Of several
projects (the same one from several seeds) the means are printed. "file" is the ONNX file.
"""

import argparse
import contextlib
import importlib
import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

import numpy as np
import onnxruntime

from edgeopt.artifact import Method, Model
from edgeopt.budget import Budget
from edgeopt.building import draw_samples
from edgeopt.cli.request import Request, make_order, started
from edgeopt.fitting import choose_plan
from edgeopt.job import Correction, Run
from edgeopt.model.oracle import Array, Feeds, run_samples
from edgeopt.prepare import prepare_model
from edgeopt.report import format_columns
from edgeopt.task import Task, TextClassification, labelled, read_texts, samples, score
from tests.bench.quantizers import QUANTIZERS

#: As many as edgeopt takes for its own static plan.
_CALIBRATION = 128


@dataclass(frozen=True, slots=True)
class Result:
    """What one tool made of one project's model."""

    tool: str
    #: Of the ONNX file; None for what is no ONNX model.
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


def measure_project(folder: Path, target: str) -> Iterator[Result]:
    """Measure every plan, every quantizer and the floor on one project."""
    with open_project(folder, target) as bench:
        yield from _measure_plans(bench)
        yield from _measure_quantizers(bench)
        yield from _measure_floor(bench)


def _measure_plans(bench: Bench) -> Iterator[Result]:
    drawn = draw_samples(bench.run, bench.model)
    for method in get_args(Method):
        profile = bench.run.job.profile.model_copy(
            update={"methods": (method,), "budget": Budget()}
        )
        alone = replace(bench.run, job=replace(bench.run.job, profile=profile))
        made = choose_plan(alone, bench.model, drawn, Correction()).model
        accuracy = bench.score(run_samples(made, bench.feeds))
        yield Result(f"edgeopt {method}", made.path.stat().st_size, accuracy)


def _measure_quantizers(bench: Bench) -> Iterator[Result]:
    calibration = samples(bench.task, _CALIBRATION, inputs=bench.model.inputs)
    for name, quantize in QUANTIZERS.items():
        with tempfile.TemporaryDirectory(prefix="edgeopt-accuracy-") as folder:
            path = Path(folder) / "quantized.onnx"
            quantize(bench.model.path, path, calibration)
            accuracy = bench.score(_run_plainly(path, bench.feeds))
            yield Result(f"onnxruntime {name}", path.stat().st_size, accuracy)


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


def _measure_floor(bench: Bench) -> Iterator[Result]:
    """Fit word frequencies and a linear model: what an encoder has to beat."""
    if not isinstance(bench.task, TextClassification):
        return
    if importlib.util.find_spec("sklearn") is None:
        print("no scikit-learn here: TF-IDF + logistic regression is left out", file=sys.stderr)
        return
    train = read_texts(bench.task.train, bench.task.labels)
    test = read_texts(bench.task.test, bench.task.labels)
    text: Any = importlib.import_module("sklearn.feature_extraction.text")
    linear: Any = importlib.import_module("sklearn.linear_model")
    words = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = linear.LogisticRegression(C=10.0, max_iter=1000)
    model.fit(words.fit_transform([each for each, _ in train]), [label for _, label in train])
    accuracy = model.score(
        words.transform([each for each, _ in test]), [label for _, label in test]
    )
    yield Result("TF-IDF + logistic regression", None, accuracy)


def format_results(projects: Sequence[Sequence[Result]]) -> str:
    """Print the means over projects, and how far the drops of several projects spread.

    >>> plain, small = Result("a", 4_000_000, 0.95), Result("b", 1_000_000, 0.94)
    >>> print(format_results([[plain, small]]))
      tool    file   share  accuracy   drop
      a     4.0 MB  100.0%    0.9500  0.00%
      b     1.0 MB   25.0%    0.9400  1.00%
    """
    rows = [("tool", "file", "share", "accuracy", "drop")]
    for position, first in enumerate(projects[0]):
        found = [each[position] for each in projects]
        drops = [each[0].accuracy - each[position].accuracy for each in projects]
        spread = f" ± {stdev(drops):.2%}" if len(drops) > 1 else ""
        sizes = [each.size for each in found if each.size is not None]
        plain = projects[0][0].size
        size = f"{fmean(sizes) / 1e6:.1f} MB" if sizes else "-"
        share = f"{fmean(sizes) / plain:.1%}" if sizes and plain else "-"
        accuracy = f"{fmean(each.accuracy for each in found):.4f}"
        rows.append((first.tool, size, share, accuracy, f"{fmean(drops):.2%}{spread}"))
    return format_columns(rows)


def main() -> None:
    """Measure the projects named on the command line and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path, nargs="+")
    parser.add_argument("--target", default="rpi4")
    options = parser.parse_args()
    # The quantizers warn of what they do to every node.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    projects: list[list[Result]] = []
    for folder in options.project:
        projects.append([])
        for each in measure_project(folder, options.target):
            print(f"{folder}: {each}", file=sys.stderr, flush=True)
            projects[-1].append(each)
    print(format_results(projects))


if __name__ == "__main__":
    main()
