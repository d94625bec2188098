"""Try a bundle on its board before anyone relies on it: install, run, measure, compare."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifact import Arithmetic, Bundle, Fact, Model, Parity, Release
from edgeopt.board import Board
from edgeopt.board.facts import BoardFacts
from edgeopt.confine import confine_release
from edgeopt.deploy import Smoke, activate_release, discard_release, smoke_release, stage_bundle
from edgeopt.energy import measure_energy
from edgeopt.job import Job, Run, Samples, Trial, plan_name
from edgeopt.measure import measure_release
from edgeopt.program import run_program
from edgeopt.scratch import scratch
from edgeopt.steady import Seen, measure_steadily
from edgeopt.store import digest_file
from edgeopt.task import Task, labelled, samples, score
from edgeopt.units import format_bytes
from edgeopt.verify import make_parity

#: Where releases live, below the home directory of the board's user.
ROOT = PurePosixPath("~/.edgeopt")

#: Samples of a launch that only repeats what is timed: the outputs of all are there already.
_REPEATED = 8

Arrays = dict[str, NDArray[Any]]


class Expected(Fact):
    """What onnxruntime computes for all samples on the host, in one .npz file."""

    path: Path
    arithmetic: Arithmetic


@dataclass(frozen=True, slots=True)
class Golden:
    """The outputs [S, *shape] that the host expects, and what they were computed with."""

    outputs: list[NDArray[Any]]
    arithmetic: Arithmetic


@dataclass(frozen=True, slots=True)
class Seat:
    """A board that is ours for now, and the samples that run there."""

    run: Run
    board: Board
    facts: BoardFacts
    samples: Samples


def try_bundle(seat: Seat, bundle: Bundle, model: Model) -> tuple[Release, Trial]:
    """Install a bundle without making it current, run all samples on it, and compare.

    On an emulated board figures repeat exactly: those of the same bundle, samples and boot are
    found again, and one sample shows that the release still runs.
    """
    started = time.monotonic()
    seat.run.begin("push")
    release = _stage(seat, bundle)
    detail = f"{bundle.digest[:12]}, {format_bytes(release.sent)} sent"
    seat.run.note("push", detail, cached=release.sent == 0, seconds=time.monotonic() - started)
    expected = _expect(seat.run, seat.samples, model)
    made: list[Trial] = []

    def measure(folder: Path) -> Trial:
        made.append(_measure(seat, release, bundle, expected, folder))
        return made[-1]

    trial = _remember(seat, bundle, model, measure)
    if not made:
        _smoke(seat, release, bundle, expected)
    return release, trial


def try_reference(seat: Seat, bundle: Bundle, model: Model) -> Trial:
    """Try the model as it was, for comparison, and leave nothing of it on the board."""

    def measure(folder: Path) -> Trial:
        release = _stage(seat, bundle)
        try:
            expected = _expect(seat.run, seat.samples, model)
            return _measure(seat, release, bundle, expected, folder)
        finally:
            discard_release(release, seat.board)

    return _remember(seat, bundle, model, measure)


def run_once(seat: Seat, bundle: Bundle, feeds: Arrays, folder: Path) -> list[NDArray[Any]]:
    """Run every sample once on the board, feeds of shape [S, *input], and leave nothing there."""
    release = _stage(seat, bundle)
    try:
        run = run_program(
            release,
            bundle,
            seat.board,
            feeds=feeds,
            warmup=0,
            iterations=len(next(iter(feeds.values()))),
            threads=seat.run.job.threads,
            directory=folder,
        )
    finally:
        discard_release(release, seat.board)
    return list(run.outputs)


def _remember(seat: Seat, bundle: Bundle, model: Model, measure: Callable[[Path], Trial]) -> Trial:
    job = seat.run.job
    if seat.board.kind != "emulated":
        started = time.monotonic()
        with scratch() as folder:
            trial = measure(folder)
        seat.run.note("measure", plan_name(model), cached=False, seconds=time.monotonic() - started)
        return trial
    key: dict[str, object] = {
        "digest": bundle.digest,
        "boot": seat.facts.boot_id,
        "samples": seat.samples.sha256,
        "warmup": job.warmup,
        "iterations": job.iterations,
    }
    if job.confine:
        key["confine"] = True
    return seat.run.stage("measure", key, Trial, measure, detail=plan_name(model))


def _stage(seat: Seat, bundle: Bundle) -> Release:
    app = seat.run.job.app
    return stage_bundle(bundle, seat.board, facts=seat.facts, app=app, root=ROOT)


def _measure(seat: Seat, release: Release, bundle: Bundle, expected: Golden, folder: Path) -> Trial:
    job = seat.run.job
    feeds, labels = read_samples(seat.samples)
    few = {name: values[:_REPEATED] for name, values in feeds.items()}

    def launch(first: bool) -> Seen:
        return measure_release(
            release,
            bundle,
            seat.board,
            feeds=feeds if first else few,
            warmup=job.warmup,
            iterations=job.iterations,
            threads=job.threads,
            directory=folder,
        )

    measurement, outputs = measure_steadily(launch, most=job.launches)
    if job.confine:
        confined = confine_release(
            release,
            bundle,
            seat.board,
            feeds=few,
            threads=job.threads,
            peak=measurement.memory.peak,
            directory=folder,
        )
        measurement = measurement.model_copy(update={"confined": confined})
    measurement = measure_energy(
        release, bundle, seat.board, feeds=few, measurement=measurement, directory=folder
    )
    names = [each.name for each in bundle.outputs]
    return Trial(
        measurement=measurement, parity=_compare(job.task, labels, outputs, expected, names)
    )


def _compare(
    task: Task | None,
    labels: NDArray[Any] | None,
    outputs: Sequence[NDArray[Any]],
    expected: Golden,
    names: list[str],
) -> Parity:
    if task is None or labels is None:
        return make_parity(outputs, expected.outputs, names=names, arithmetic=expected.arithmetic)
    return make_parity(
        outputs,
        expected.outputs,
        names=names,
        arithmetic=expected.arithmetic,
        metric=task.metric,
        score=lambda found: score(task, found, labels),
    )


def make_smoke(run: Run, drawn: Samples, model: Model) -> Smoke:
    """Take one sample with what onnxruntime makes of it, for a run that proves little but life."""
    return _smoke_of(run, drawn, _expect(run, drawn, model))


def _smoke_of(run: Run, drawn: Samples, expected: Golden) -> Smoke:
    feeds, _ = read_samples(drawn)
    return Smoke(
        feeds={name: values[:1] for name, values in feeds.items()},
        expected=[each[:1] for each in expected.outputs],
        tolerance=0.1,
        threads=run.job.threads,
    )


def _smoke(
    seat: Seat, release: Release, bundle: Bundle, expected: Golden, *, name: str = "smoke"
) -> None:
    started = time.monotonic()
    smoke = _smoke_of(seat.run, seat.samples, expected)
    with scratch() as folder:
        smoke_release(release, bundle, seat.board, smoke=smoke, directory=folder)
    seat.run.note(name, "one sample", cached=False, seconds=time.monotonic() - started)


def activate(seat: Seat, release: Release, bundle: Bundle, model: Model) -> None:
    """Make a release current, signed where the job has a signer, and tell who verified that.

    It runs once more when it is current; one that fails then is taken back.
    """
    started = time.monotonic()
    signed = seat.run.job.sign(release.digest)

    def health() -> None:
        _smoke(seat, release, bundle, _expect(seat.run, seat.samples, model), name="health")

    done = activate_release(release, seat.board, signed=signed, health=health)
    seconds = time.monotonic() - started
    if signed is not None:
        who = "here and by the board" if done.verified else "here; the board has no ssh-keygen"
        seat.run.note("sign", f"verified {who}", cached=False, seconds=seconds)
    if done.left:
        left = f"older releases stay until the next deploy: {done.left}"
        seat.run.note("collect", left, cached=False, seconds=seconds)


def _expect(run: Run, drawn: Samples, model: Model) -> Golden:
    halves = run.job.target.multiplies_halves

    def compute(folder: Path) -> Expected:
        from edgeopt.model.graph import read_arithmetic
        from edgeopt.model.oracle import run_samples

        feeds, _ = read_samples(drawn)
        outputs = run_samples(model, feeds)
        path = folder / "expected.npz"
        np.savez(path, *outputs)
        arithmetic = read_arithmetic(model.path, multiplies_halves=halves)
        return Expected(path=path, arithmetic=arithmetic)

    key = [model.sha256, drawn.sha256, halves]
    found = run.stage("expect", key, Expected, compute, detail="onnxruntime's outputs")
    with np.load(found.path, allow_pickle=False) as stored:
        outputs = [stored[f"arr_{index}"] for index in range(len(stored.files))]
    return Golden(outputs, found.arithmetic)


def make_samples(job: Job, model: Model, folder: Path) -> Samples:
    """Draw the inputs that run on the board: labelled ones first, else seeded noise."""
    from edgeopt.model.oracle import seeded_inputs

    drawn = labelled(job.task, job.sample_count, inputs=model.inputs) if job.task else None
    extra: Arrays = {}
    if drawn is not None:
        feeds, extra["labels"] = dict(drawn[0]), drawn[1]
    elif job.task is not None:
        feeds = samples(job.task, job.sample_count, inputs=model.inputs)
    else:
        each = [seeded_inputs(model, seed) for seed in range(job.sample_count)]
        feeds = {spec.name: np.stack([one[spec.name] for one in each]) for spec in model.inputs}
    path = folder / "samples.npz"
    named: dict[str, Any] = {f"in.{name}": values for name, values in feeds.items()}
    np.savez(path, **(named | extra))
    count = len(next(iter(feeds.values())))
    return Samples(path=path, sha256=digest_file(path), count=count, labelled="labels" in extra)


def read_samples(drawn: Samples) -> tuple[Arrays, NDArray[Any] | None]:
    """Return every input as [count, *shape], and the class indices [count] where known."""
    with np.load(drawn.path, allow_pickle=False) as stored:
        feeds = {
            name.removeprefix("in."): stored[name]
            for name in stored.files
            if name.startswith("in.")
        }
        return feeds, stored["labels"] if drawn.labelled else None
