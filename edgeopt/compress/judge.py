"""Judge plans: what they need is predicted, what they keep is measured with onnxruntime."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession

from edgeopt.artifact import Footprint, Model, Plan
from edgeopt.budget import Budget
from edgeopt.compress.candidate import Candidate, Cost, check_needs
from edgeopt.compress.distance import measure_distance, measure_harm
from edgeopt.compress.sensitivity import Calibration, draw_calibration
from edgeopt.effort import Effort
from edgeopt.model.oracle import Array, Running, open_session, run_session
from edgeopt.task import Task, labelled, score

#: Models that stay open: the one that is judged, and the one before it or the original.
_OPEN = 2


@dataclass(frozen=True, slots=True)
class Kept:
    """What a plan keeps: with labels its accuracy, without how often it agrees."""

    accuracy: float | None = None
    #: Share of samples whose largest score is the original's.
    agreement: float | None = None
    #: Of its class probabilities from the original's, in nats.
    divergence: float | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a plan is predicted to need, ms included where the device's pace is known."""

    footprint: Footprint
    latency: float | None


@dataclass(frozen=True, slots=True)
class Bench:
    """What every plan of one search is judged by."""

    model: Model
    task: Task | None
    budget: Budget
    cost: Cost
    effort: Effort
    directory: Path
    measure: Callable[[Model], Kept]
    #: Waits for what the model keeps as it is.
    own: Callable[[], Kept]
    #: What drops count from; None: from what the model keeps as it is.
    given: float | None
    #: Draws the samples that this effort may use, once.
    calibration: Callable[[], Calibration]
    #: Returns the outputs of a model on those of them that are held back, computed once.
    run_held: Callable[[Model], Sequence[Array]]

    @property
    def baseline(self) -> float | None:
        """The accuracy that drops count from; None without labels."""
        return self.own().accuracy if self.given is None else self.given

    def predict(self, made: Model) -> Needs:
        """Predict what a model needs; the values of its weights do not matter."""
        latency = None if self.cost.latency is None else self.cost.latency(made)
        return Needs(self.cost.footprint(made), latency)

    def refuses(self, needs: Needs) -> bool:
        """Tell whether a limit is broken whatever the plan keeps."""
        checks = check_needs(needs.footprint, None, needs.latency, self.budget)
        return any(each.met is False for each in checks)

    def judge(self, plan: Plan, made: Model, harm: int, needs: Needs | None = None) -> Candidate:
        """Measure what a plan loses, unless what it needs (None: is predicted) refuses it."""
        needs = needs or self.predict(made)
        if made.sha256 == self.model.sha256:
            kept = self.own()
        else:
            kept = Kept() if self.refuses(needs) else self.measure(made)
        drop = None if kept.agreement is None else 1 - kept.agreement
        if kept.accuracy is not None and self.baseline is not None:
            drop = self.baseline - kept.accuracy
        return Candidate(
            plan=plan,
            harm=harm,
            footprint=needs.footprint,
            accuracy=kept.accuracy,
            drop=drop,
            divergence=kept.divergence,
            latency=needs.latency,
            checks=check_needs(needs.footprint, drop, needs.latency, self.budget),
        )

    def harm(self, made: Model) -> float:
        """Return how far a plan moves the outputs on samples that it was not fitted on."""
        classes = self.calibration().classes
        return measure_harm(self.run_held(made), self.expected(), classes=classes)

    def is_better(self, made: Model, other: Model) -> bool:
        """Compare two plans on samples that neither was fitted on."""
        classes = self.calibration().classes
        first, second = (
            measure_distance(self.run_held(each), self.expected(), classes=classes)
            for each in (made, other)
        )
        return first < second

    def expected(self) -> Sequence[Array]:
        """Return the model's own outputs on the samples that are held back."""
        return self.run_held(self.model)


@contextmanager
def set_up(
    model: Model,
    task: Task | None,
    budget: Budget,
    *,
    cost: Cost,
    effort: Effort,
    directory: Path,
    baseline: float | None,
) -> Iterator[Bench]:
    """Begin to measure what the model keeps as it is, which goes on while plans are made.

    Without a baseline drops count from that. What runs is stopped when this is left.
    """

    @lru_cache(maxsize=_OPEN)
    def opened(made: Model) -> InferenceSession:
        return open_session(made.path)

    begin = _scorer(model, task, effort.scored, opened)
    scoring = begin(model)

    @cache
    def calibration() -> Calibration:
        return draw_calibration(model, task, effort=effort)

    @cache
    def run_held(made: Model) -> Sequence[Array]:
        return run_session(opened(made), calibration().held)

    def measure(made: Model) -> Kept:
        begun = begin(made)
        try:
            return begun.result()
        finally:
            begun.stop()

    try:
        yield Bench(
            model=model,
            task=task,
            budget=budget,
            cost=cost,
            effort=effort,
            directory=directory,
            measure=measure,
            own=cache(scoring.result),
            given=baseline,
            calibration=calibration,
            run_held=run_held,
        )
    finally:
        scoring.stop()


@dataclass(frozen=True, slots=True)
class _Scoring:
    """Samples that run through a model, and what their outputs say; None: nothing is known."""

    running: Running | None = None
    read: Callable[[Sequence[Array]], Kept] = lambda _: Kept()

    def result(self) -> Kept:
        """Wait for what the model keeps, once."""
        return Kept() if self.running is None else self.read(self.running.outputs())

    def stop(self) -> None:
        """Let no other sample begin."""
        if self.running is not None:
            self.running.stop()


def _scorer(
    model: Model,
    task: Task | None,
    count: int | None,
    opened: Callable[[Model], InferenceSession],
) -> Callable[[Model], _Scoring]:
    """Return what begins to measure what a model keeps; it knows nothing without a task."""
    if task is None:
        return lambda _: _Scoring()
    found = labelled(task, count, inputs=model.inputs, part="validation")
    if found is not None:
        feeds, labels = found

        def read(outputs: Sequence[Array]) -> Kept:
            return Kept(accuracy=score(task, list(outputs), labels))

        return lambda each: _Scoring(Running(opened(each), feeds), read)
    held = draw_calibration(model, task).held
    expected = run_session(opened(model), held)[0]
    if expected.shape[-1] < 2:
        # One number a sample is no choice among classes.
        return lambda _: _Scoring()

    def compare(outputs: Sequence[Array]) -> Kept:
        return compare_scores(outputs[0], expected)

    return lambda each: _Scoring(Running(opened(each), held), compare)


def compare_scores(found: Array, expected: Array) -> Kept:
    """Compare scores [S, ..., C] of classes with the original's: agreement and divergence.

    Scores that are probabilities already count as they are. NaN never agrees.
    """
    valid = np.isfinite(found).all(axis=-1)
    same = (found.argmax(axis=-1) == expected.argmax(axis=-1)) & valid
    sums = expected.sum(axis=-1)
    if expected.min() >= 0 and np.allclose(sums, 1, atol=1e-3):
        found, expected = (np.log(np.maximum(each, 1e-12)) for each in (found, expected))
    return Kept(
        agreement=float(same.mean()),
        divergence=measure_distance([found], [expected], classes=True) if valid.all() else None,
    )
