import contextlib
import random
import re
import statistics as reference
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.artifact import Bundle, Measurement, Release
from edgeopt.board import Board, Completed
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import stage_bundle
from edgeopt.errors import (
    BoardIncompatible,
    BudgetExceeded,
    ConfigError,
    DeployFailed,
    EdgeoptError,
    MeasurementNoisy,
)
from edgeopt.measure import (
    condition_problems,
    disturbances,
    drift_of,
    is_noisy,
    measure_release,
    percentile_bound_rank,
    require_steady,
    summarize_samples,
)
from edgeopt.program import parse_report
from edgeopt.surroundings import Around, Conditions, Memory, Process
from tests.deploy.kit import APP, DyingBoard, board_facts, leftovers, make_bundle, samples_of
from tests.samples import measurement

COUNTS = {"warmup": 1, "iterations": 5, "threads": 1, "samples": 3}


def stage(tmp_path: Path, mode: str = "good") -> tuple[Release, Bundle]:
    bundle = make_bundle(tmp_path / f"bundle-{mode}", mode=mode)
    root = PurePosixPath(tmp_path / "board")
    return stage_bundle(bundle, LocalBoard(), facts=board_facts(), app=APP, root=root), bundle


def measure(
    tmp_path: Path, mode: str = "good", *, board: Board | None = None, **changes: Any
) -> tuple[Measurement, list[Any]]:
    release, bundle = stage(tmp_path, mode)
    options: dict[str, Any] = {
        "feeds": {"x": samples_of(3)},
        "warmup": 1,
        "iterations": 5,
        "threads": 1,
    }
    return measure_release(
        release, bundle, board or LocalBoard(), directory=tmp_path / "w", **(options | changes)
    )


def test_a_run_gives_every_sample_and_every_output(tmp_path: Path) -> None:
    feed = samples_of(3, seed=7)
    measurement, outputs = measure(tmp_path, feeds={"x": feed})
    assert measurement.samples_ns == (1005, 1004, 1003, 1002, 1001)
    assert (measurement.kind, measurement.threads, measurement.invalid) == ("native", 1, ())
    assert measurement.memory.peak == 3_000_000
    assert len(measurement.boot_id) == 36
    assert len(outputs) == 1
    np.testing.assert_array_equal(outputs[0], feed)
    assert leftovers(tmp_path / "board") == [f"apps/{APP}/state"]  # it stays staged


def test_a_measurement_round_trips_through_json(tmp_path: Path) -> None:
    measurement, _ = measure(tmp_path)
    assert Measurement.model_validate_json(measurement.model_dump_json()) == measurement


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        ("illegal", BoardIncompatible, "asimd"),
        ("killed", DeployFailed, r"another program killed.*\n.*the kernel did not"),
        ("crashes", DeployFailed, "SIGSEGV"),
        ("fails", DeployFailed, "status 1: the arena cannot be mapped"),
        ("noise", DeployFailed, "cannot be read"),
        ("infinite", DeployFailed, "cannot be read"),
        ("short", DeployFailed, "1 samples instead of 5"),
        ("shape", DeployFailed, "other outputs"),
        ("link", BoardIncompatible, "cannot read"),
    ],
)
def test_a_program_that_misbehaves_is_named_and_leaves_no_run_folder(
    tmp_path: Path, mode: str, error: type[EdgeoptError], words: str
) -> None:
    with pytest.raises(error, match=words):
        measure(tmp_path, mode)
    assert leftovers(tmp_path / "board") == [f"apps/{APP}/state"]  # it stays staged


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        ((3, 4), r"predicted peak 1\.04 MB.*were available, and the kernel killed it"),
        ((None, None), "this kernel does not count what it kills"),
    ],
)
def test_a_kill_for_want_of_memory_is_one_that_the_kernel_counts(
    tmp_path: Path, counted: tuple[int | None, int | None], words: str
) -> None:
    class Counting:
        """A board whose kernel counts so many kills before the run, and after it."""

        def __init__(self) -> None:
            self.inner, self.states = LocalBoard(), [*counted]
            self.name, self.kind, self.close = self.inner.name, self.inner.kind, self.inner.close
            self.put, self.get = self.inner.put, self.inner.get

        def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
            done = self.inner.run(argv, stdin=stdin, timeout=timeout)
            if not any(line.startswith(b"available ") for line in done.stdout.splitlines()):
                return done
            kept = re.sub(rb"(?m)^oom_kill .*\n", b"", done.stdout)
            # The last is asked again when the run folder is removed.
            kills = self.states[0] if len(self.states) == 1 else self.states.pop(0)
            said = b"" if kills is None else b"oom_kill %d\n" % kills
            return replace(done, stdout=kept + said)

    with pytest.raises(BudgetExceeded, match=rf"out of memory\n.*{words}"):
        measure(tmp_path, "killed", board=Counting())


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"y": samples_of(3)}, "inputs x"),
        ({"x": samples_of(3).astype(np.float64)}, "float64"),
        ({"x": samples_of(3)[:, :3]}, r"\(3, 3\)"),
        ({"x": samples_of(0)}, "none"),
        ({"x": samples_of(6)}, "6 samples"),
    ],
)
def test_samples_that_are_not_for_the_model_are_refused_before_the_board_is_asked(
    tmp_path: Path, feeds: Mapping[str, Any], words: str
) -> None:
    board = DyingBoard(LocalBoard())
    with pytest.raises(ConfigError, match=words):
        measure(tmp_path, board=board, feeds=feeds)
    assert board.calls == []


def test_inputs_damaged_on_the_wire_never_reach_the_model(tmp_path: Path) -> None:
    board = DyingBoard(LocalBoard(), spoil=lambda content: content[:-1] + b"\x11")
    with pytest.raises(DeployFailed, match="inputs arrived damaged"):
        measure(tmp_path, board=board)


def test_a_clock_that_falls_makes_the_measurement_invalid(tmp_path: Path) -> None:
    measurement, _ = measure(tmp_path, "hot")
    assert measurement.invalid == ("the clock fell from 1500 MHz to 600 MHz",)


@pytest.mark.parametrize(
    ("first", "last", "bad"),
    [
        ("0x0", "0x0", False),
        ("0x50000", "0x50000", False),
        ("0x0", "0x50000", True),
        ("0x4", "0x0", True),
        ("0x50005", "0x50000", True),
        (None, None, False),
    ],
)
def test_throttling_counts_when_it_happened_during_the_run(
    first: str | None, last: str | None, bad: bool
) -> None:
    problems = condition_problems(Conditions(throttled=first), Conditions(throttled=last))
    assert bool(problems) == bad


def test_a_clock_that_rises_is_no_problem() -> None:
    low, high = Conditions(frequency_khz=(600000,)), Conditions(frequency_khz=(1500000,))
    assert condition_problems(low, high) == []
    assert condition_problems(high, low) != []


def valid_report() -> str:
    conditions = '{"temperature_c": null, "frequency_khz": [], "throttled": null}'
    return (
        '{"schema_version": 1, "program": "edgeopt-run", "version": "0.1.0", "clock": '
        '"CLOCK_MONOTONIC_RAW", "threads": 1, "load_ns": 5, "first_ns": 6, "samples_ns": '
        '[1, 2, 3, 4, 5], "realtime_drift_ns": -7, "memory": {"start": 1, "loaded": 2, "peak": 3, '
        '"anonymous": 1, "file_backed": 2, "minor_faults": 0, "major_faults": 0}, '
        f'"before": {conditions}, "after": {conditions}, "outputs": []}}'
    )


def test_a_report_that_keeps_the_contract_is_read() -> None:
    report = parse_report(valid_report().encode(), COUNTS)
    assert report.samples_ns == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schema_version": 1', '"schema_version": 2'),
        ('"threads": 1', '"threads": 2'),
        ('"threads": 1', '"threads": 1, "extra": 0'),
        ("[1, 2, 3, 4, 5]", "[1, 2, 3, 4]"),
        ("[1, 2, 3, 4, 5]", "[1, 2, 3, 4, 0]"),
        ("[1, 2, 3, 4, 5]", "[1, 2, 3, 4, NaN]"),
        ("[1, 2, 3, 4, 5]", "[1, 2, 3, 4, 1e400]"),
        ('"temperature_c": null', '"temperature_c": NaN'),
        ("CLOCK_MONOTONIC_RAW", "CLOCK_REALTIME"),
        ("CLOCK_MONOTONIC_RAW", "INSTRUCTIONS"),
        ('"outputs": []}', '"outputs": []'),
        ('"outputs": []}', '"outputs": []}{}'),
    ],
)
def test_a_report_that_breaks_the_contract_is_refused(old: str, new: str) -> None:
    text = valid_report().replace(old, new)
    assert text != valid_report()
    with pytest.raises(DeployFailed):
        parse_report(text.encode(), COUNTS)


@given(st.binary(max_size=400), st.integers(0, 900))
def test_a_damaged_report_is_refused_and_never_a_traceback(junk: bytes, where: int) -> None:
    whole = valid_report().encode()
    with contextlib.suppress(DeployFailed):
        parse_report(whole[:where] + junk + whole[where + len(junk) :], COUNTS)
    with pytest.raises(DeployFailed):
        parse_report(junk, COUNTS)


def test_a_report_without_end_is_refused() -> None:
    with pytest.raises(DeployFailed, match="too long"):
        parse_report(b"[" * 16_000_001, COUNTS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_statistics_are_those_of_the_textbook(seed: int) -> None:
    values = [random.Random(seed).randrange(1000, 2000) for _ in range(200)]
    found = summarize_samples(values)
    assert found.p50 == reference.median(values)
    assert found.minimum == min(values)
    assert found.p95 == sorted(values)[189]
    assert found.mad == reference.median([abs(each - found.p50) for each in values])
    assert sum(each <= found.p95 for each in values) >= 190


def test_ten_samples_give_their_largest_as_p95_and_no_bound() -> None:
    found = summarize_samples(range(1, 11))
    assert (found.p95, found.p95_bound) == (10, None)


def test_one_sample_is_enough_and_none_is_not() -> None:
    assert summarize_samples([5]).p50 == 5
    with pytest.raises(ConfigError, match="no sample"):
        summarize_samples([])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_bound_on_p95_holds_in_at_least_93_of_100_runs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rank = percentile_bound_rank(200, 0.95)
    assert rank is not None
    draws = np.sort(generator.random((2000, 200)), axis=1)
    assert np.mean(draws[:, rank - 1] >= 0.95) >= 0.93
    # A point estimate is no bound: the rank of p95 itself fails about half of the time.
    assert np.mean(draws[:, 189] >= 0.95) < 0.7


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_interval_of_the_median_covers_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(60):
        found = summarize_samples(generator.normal(100_000, 5000, size=40).astype(int).tolist())
        hits += abs(found.p50 - 100_000) <= found.half_width * 1.25
    assert hits >= 50


def test_outliers_are_counted_and_kept() -> None:
    found = summarize_samples([100, 101, 102, 103, 104, 105, 106, 107, 108, 5000])
    assert (found.outliers, found.count) == (1, 10)
    assert summarize_samples([100] * 9 + [101]).outliers == 1


def test_a_slowing_board_drifts_and_a_steady_one_does_not() -> None:
    assert drift_of([100] * 40) == 0
    assert drift_of(list(range(100, 200))) > 0.5
    assert drift_of([100, 200]) == 0


def made(samples: list[int], **changes: Any) -> Measurement:
    memory = Memory(
        peak=1, anonymous=1, file_backed=0, start=1, loaded=1, minor_faults=0, major_faults=0
    )
    values: dict[str, Any] = {
        "kind": "board",
        "board": "pi",
        "boot_id": "b",
        "digest": "d",
        "threads": 1,
        "samples_ns": tuple(samples),
        "load_ns": 1,
        "first_ns": 1,
        "memory": memory,
        "before": Conditions(),
        "after": Conditions(),
    }
    return Measurement(**(values | changes))


NOISY = [100, 200, 400, 800, 1600, 90, 3000]
STEADY = [1000, 1001, 1002, 1003, 1001, 1000, 1002]


def test_noisy_samples_support_no_figure_of_a_real_board() -> None:
    assert is_noisy(summarize_samples(NOISY))
    assert not is_noisy(summarize_samples(STEADY))
    require_steady(made(STEADY))
    with pytest.raises(MeasurementNoisy, match="is known to"):
        require_steady(made(NOISY))


def test_a_throttled_measurement_supports_no_figure() -> None:
    with pytest.raises(MeasurementNoisy, match="throttled"):
        require_steady(made(STEADY, invalid=("throttled",)))


def test_instruction_counts_are_never_noisy() -> None:
    require_steady(made(NOISY, kind="emulated"))


def disturbed(**changes: object) -> tuple[str, ...]:
    return disturbances(measurement().model_copy(update={"kind": "board", **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"around": Around(pressure_us=4_000_000, seconds=10.0)}, "waited for a processor in 40%"),
        (
            {"samples_ns": (10**9,) * 2, "process": Process(involuntary=100)},
            "took the processor 50 times a second",
        ),
        ({"drift_ns": 3_600_000_000_000}, r"was set by \+3.6e\+03 s"),
        ({"around": Around(governors=("ondemand", "performance"))}, "not controlled"),
    ],
)
def test_what_disturbed_a_measurement_is_said(changes: dict[str, object], words: str) -> None:
    (found,) = disturbed(**changes)
    assert re.search(words, found)
    assert disturbances(measurement().model_copy(update=changes)) == ()


def test_a_quiet_board_has_nothing_to_say() -> None:
    quiet = Around(governors=("performance",), pressure_us=1000, seconds=10.0)
    process = Process(involuntary=3, voluntary=900)
    assert disturbed(around=quiet, process=process, drift_ns=5_000_000) == ()


def test_a_percentile_of_too_few_samples_is_refused_and_not_guessed() -> None:
    few, enough = (summarize_samples(range(1, count + 1)) for count in (298, 299))
    assert (few.p99_bound, enough.p99_bound) == (None, 299)
    assert few.p95_bound is not None
