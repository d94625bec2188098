"""What a trial that broke the budget teaches the fitter."""

from dataclasses import replace
from pathlib import Path

import pytest

import edgeopt
from edgeopt.artifact import Measurement, Model
from edgeopt.budget import Budget
from edgeopt.compress import apply_plan, make_plan, pace_of
from edgeopt.compress.pace import Clock, predict_nodes
from edgeopt.job import Correction, Job, Trial
from edgeopt.learning import correct_times, known_times, learn, predict_time, timers_of
from edgeopt.profile import load_profile
from edgeopt.target import load_target
from edgeopt.tiles import TileKey
from edgeopt.times import KernelTime, Times, WholeTime, name_kernel, write_times
from tests.graphs import text_model
from tests.samples import bundle, measurement, parity


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return text_model(tmp_path)


def job(folder: Path, budget: Budget) -> Job:
    profile = load_profile("balanced").model_copy(update={"budget": budget})
    return Job(
        app="test",
        project=folder,
        model="text.onnx",
        shapes={},
        values={},
        target=load_target("rpi4"),
        profile=profile,
        task=None,
        kind="board",
    )


def trial(seen: Measurement) -> Trial:
    return Trial(measurement=seen, parity=parity())


def test_a_trial_within_the_budget_teaches_nothing(model: Model, tmp_path: Path) -> None:
    asked = job(tmp_path, Budget(latency=30, ram=30_000_000))
    seen = measurement(20_000_000, kind="board", peak=27_500_000)
    assert learn(asked, bundle().footprint, model, trial(seen), Correction()) is None


def test_what_was_too_slow_says_how_fast_the_board_is(model: Model, tmp_path: Path) -> None:
    asked = job(tmp_path, Budget(latency=30))
    seen = measurement(40_000_000, kind="board")
    learned = learn(asked, bundle().footprint, model, trial(seen), Correction())
    assert learned is not None
    assert learned.pace is not None
    again = predict_time(asked, model) * learned.pace
    # Rounded up: the plan that was measured is refused from now on.
    assert 40_000_000 <= again <= 40_000_000 * 1.01
    # A board that seemed slower before is not believed to be faster now.
    slower = Correction(pace=2 * learned.pace)
    kept = learn(asked, bundle().footprint, model, trial(seen), slower)
    assert kept is not None
    assert kept.pace == slower.pace


def test_counted_instructions_are_no_time(model: Model, tmp_path: Path) -> None:
    asked = job(tmp_path, Budget(latency=30))
    seen = measurement(40_000_000, kind="emulated")
    assert learn(asked, bundle().footprint, model, trial(seen), Correction()) is None


def test_memory_beyond_the_limit_is_added_to_what_is_predicted(
    model: Model, tmp_path: Path
) -> None:
    asked, known = job(tmp_path, Budget(ram=20_000_000)), Correction(memory=5, flash=7)
    learned = learn(asked, bundle().footprint, model, trial(measurement(peak=40_000_000)), known)
    # What was predicted has what was known in it.
    assert learned == Correction(memory=5 + 40_000_000 - bundle().footprint.peak, flash=7)


def test_what_took_longer_than_its_kernels_corrects_those_of_its_form_alone(
    model: Model, tmp_path: Path
) -> None:
    plan = make_plan(model, "int8-weights", directory=tmp_path / "int8")
    int8 = apply_plan(model, plan, directory=tmp_path / "int8")
    asked = replace(job(tmp_path, Budget(latency=30)), times=tmp_path / "times.json")
    clock = Clock(pace_of(asked.target, threads=asked.threads))
    kernels = {
        name_kernel(node.key, 0): KernelTime(kind=node.kind, ns=node.bound, bound=node.bound)
        for each in (model, int8)
        for node in predict_nodes(each, clock)
        if node.key
    }
    table = Times(edgeopt=edgeopt.__version__, threads=asked.threads, kernels=kernels)
    write_times(tmp_path / "times.json", table)
    plain, before = (predict_time(asked, each, model.sha256) for each in (model, int8))
    seen = measurement(round(1.2 * before), kind="board")
    correct_times(asked, model, int8, seen)
    assert predict_time(asked, int8, model.sha256) == pytest.approx(1.2 * before, rel=0.01)
    assert predict_time(asked, model, model.sha256) == plain
    # Kernels with other tiles were not measured.
    tuned = {TileKey("gemm", 4, 8, 8, "float32"): (2, 8)}
    assert known_times(asked) is not None
    assert known_times(replace(asked, tiles=tuned)) is None
    # The limit is about that plan from now on: nothing is left to be corrected.
    known = (tmp_path / "times.json").read_bytes()
    correct_times(asked, model, int8, seen)
    assert (tmp_path / "times.json").read_bytes() == known
    # Neither does what is close enough, nor what was throttled, nor instructions.
    for each in (
        measurement(round(1.24 * before), kind="board"),
        measurement(round(2 * before), kind="emulated"),
        measurement(round(2 * before), kind="board").model_copy(update={"invalid": ("hot",)}),
    ):
        correct_times(asked, model, int8, each)
    assert (tmp_path / "times.json").read_bytes() == known


def test_a_limit_is_about_the_slow_inferences_that_the_last_deployments_had(
    model: Model, tmp_path: Path
) -> None:
    asked = replace(job(tmp_path, Budget(latency=30)), times=tmp_path / "times.json")
    clock = Clock(pace_of(asked.target, threads=asked.threads))
    kernels = {
        name_kernel(node.key, 0): KernelTime(kind=node.kind, ns=node.bound, bound=node.bound)
        for node in predict_nodes(model, clock)
        if node.key
    }
    rest = sum(each.bound for each in predict_nodes(model, clock) if not each.key)
    whole = WholeTime(methods=("float32",), ns=rest, bound=rest, tail=1.1)
    table = Times(edgeopt=edgeopt.__version__, threads=asked.threads, kernels=kernels)
    write_times(tmp_path / "times.json", table.model_copy(update={"wholes": {model.sha256: whole}}))

    def tail() -> float:
        found = known_times(asked)
        assert found is not None
        return found.tail(model.sha256)

    usual = round(predict_time(asked, model, model.sha256))
    slow = measurement(usual, kind="board").model_copy(
        update={"samples_ns": (usual,) * 8 + (2 * usual,) * 2}
    )
    before = timers_of(asked, Correction(), model.sha256)[:1]
    correct_times(asked, model, model, slow)
    assert tail() == pytest.approx(1.55)
    after = timers_of(asked, Correction(), model.sha256)[:1]
    ratios = [now(model) / then(model) for now, then in zip(after, before, strict=True)]
    assert ratios == [pytest.approx(1.55 / 1.1)]
    # One bad minute is forgotten.
    for _ in range(5):
        correct_times(asked, model, model, measurement(usual, kind="board"))
    assert tail() < 1.1
