from pathlib import Path

import pytest

from edgeopt.artifact import Row, Unscheduled
from edgeopt.board import Kind
from edgeopt.budget import Budget
from edgeopt.errors import AccuracyLost, BudgetExceeded, ParityBroken
from edgeopt.job import Job, Run, Trial
from edgeopt.profile import Profile
from edgeopt.report import format_verdict
from edgeopt.store import Store
from edgeopt.target import load_target
from edgeopt.verdict import check_footprint, check_trial, failure_of, make_report
from edgeopt.verify import TOLERANCES
from tests.samples import FOOTPRINT, TRIED, bundle, check, measurement, parity


def run_for(budget: Budget, tmp_path: Path, kind: Kind = "emulated") -> Run:
    profile = Profile(name="mine", title="Mine", methods=("float32",), budget=budget)
    job = Job(
        app="questions",
        project=tmp_path,
        model="m.onnx",
        shapes={},
        values={},
        target=load_target("rpi4"),
        profile=profile,
        task=None,
        kind=kind,
    )
    return Run(job, Store(tmp_path), lambda _record: None)


def verdicts(run: Run, trial: Trial, reference: Trial | None = None) -> dict[str, bool | None]:
    checks = check_trial(run, bundle=bundle(), trial=trial, tried=TRIED, reference=reference)
    return {each.name: each.met for each in checks}


def test_a_footprint_is_compared_before_anything_is_sent() -> None:
    flash, ram, _ = check_footprint(bundle(), Budget(flash=50_000_000, ram=27_000_000))
    assert (flash.met, ram.met) == (True, False)


def test_the_measured_peak_decides_and_not_the_predicted_one(tmp_path: Path) -> None:
    run = run_for(Budget(ram=30_000_000), tmp_path)
    good = Trial(measurement=measurement(peak=29_000_000), parity=parity())
    bad = Trial(measurement=measurement(peak=31_000_000), parity=parity())
    assert verdicts(run, good)["peak memory"] is True
    assert verdicts(run, bad)["peak memory"] is False


def test_an_emulated_board_judges_no_latency(tmp_path: Path) -> None:
    run = run_for(Budget(latency=1.0), tmp_path)
    assert verdicts(run, Trial(measurement=measurement(), parity=parity()))["latency p95"] is None


def test_a_real_board_judges_latency_by_its_p95(tmp_path: Path) -> None:
    run = run_for(Budget(latency=30.0), tmp_path, "board")
    samples = [20_000_000] * 90 + [40_000_000] * 10
    trial = Trial(measurement=measurement(*samples, kind="board"), parity=parity())
    assert verdicts(run, trial)["latency p95"] is False


def test_a_drop_on_a_hundred_samples_of_the_board_decides(tmp_path: Path) -> None:
    run = run_for(Budget(accuracy_drop=0.01), tmp_path)
    before = Trial(measurement=measurement(), parity=parity(samples=100, board=0.85))
    after = Trial(measurement=measurement(), parity=parity(samples=100, board=0.80))
    few = Trial(measurement=measurement(), parity=parity(samples=8, board=0.75))
    assert verdicts(run, after, before)["accuracy drop"] is False
    assert verdicts(run, few, few)["accuracy drop"] is True


def test_integer_models_are_allowed_one_rounding_and_others_are_not(tmp_path: Path) -> None:
    run = run_for(Budget(), tmp_path)
    far = parity(max_rel=1e-2)
    rounded = far.model_copy(update={"limit": TOLERANCES["integer"]})
    assert verdicts(run, Trial(measurement=measurement(), parity=far))["parity"] is False
    assert verdicts(run, Trial(measurement=measurement(), parity=rounded))["parity"] is True


@pytest.mark.parametrize(
    ("broken", "expected", "code"),
    [
        (("flash", "parity", "accuracy drop"), ParityBroken, 5),
        (("flash", "accuracy drop"), AccuracyLost, 4),
        (("flash",), BudgetExceeded, 3),
    ],
)
def test_the_gravest_gate_gives_the_exit_code(
    broken: tuple[str, ...], expected: type[Exception], code: int
) -> None:
    failure = failure_of(tuple(check(name, 2.0, 1.0) for name in broken))
    assert isinstance(failure, expected)
    assert failure.exit_code == code


def test_nothing_failed_when_all_limits_hold_or_are_absent() -> None:
    assert failure_of((check("flash", 1.0, 1.0), check("parity", 1.0, None))) is None


def test_a_slow_function_is_a_warning_of_the_report(tmp_path: Path) -> None:
    slow = bundle(Unscheduled(function="fused_resize", flops_share=0.25))
    made = make_report(
        run_for(Budget(), tmp_path), rows=(), tried=(), checks=(), bundle=slow, board="b"
    )
    assert made.warnings == ("fused_resize has no fast kernel and is 25.0% of the arithmetic",)
    assert made.kept


def chosen(*samples: int) -> Row:
    seen = measurement(*samples, kind="board")
    return Row(plan="float32", role="chosen", footprint=FOOTPRINT, measurement=seen)


@pytest.mark.parametrize(
    ("limit", "row", "code"),
    [
        (30.0, chosen(*[20_000_000] * 40), 0),
        (30.0, chosen(*[5_000_000, 29_000_000] * 20), 12),
        (None, chosen(*[5_000_000, 29_000_000] * 20), 0),
    ],
)
def test_a_limit_on_latency_needs_samples_that_support_a_figure(
    limit: float | None, row: Row, code: int, tmp_path: Path
) -> None:
    run = run_for(Budget(latency=limit), tmp_path, "board")
    made = make_report(run, rows=(row,), tried=(), checks=(), bundle=bundle(), board="b")
    assert made.exit_code == code
    assert made.kept is (code == 0)


def test_a_limit_on_accuracy_that_nothing_measured_is_shown_as_such(tmp_path: Path) -> None:
    run = run_for(Budget(accuracy_drop=0.01), tmp_path)
    trial = Trial(measurement=measurement(), parity=parity())
    unmeasured = TRIED.model_copy(update={"drop": None, "metric": None})
    checks = check_trial(run, bundle=bundle(), trial=trial, tried=unmeasured, reference=None)
    shown = {each.name: format_verdict(each, "emulated") for each in checks}
    assert shown["accuracy drop"] == "not measured"
