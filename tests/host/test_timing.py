"""What a deploy with a limit on latency measures on this machine, and what it is then told."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

import edgeopt
import edgeopt.trial
from edgeopt.artifact import Bundle, Method, Model, Release
from edgeopt.board import Board, Completed
from edgeopt.board.local import LocalBoard
from edgeopt.building import compile_plan, draw_samples
from edgeopt.cli.places import cache_folder
from edgeopt.cli.request import Order, Request, make_order, started
from edgeopt.compress import apply_plan, make_plan, pace_of
from edgeopt.compress.pace import Clock, predict_nodes
from edgeopt.job import Trial
from edgeopt.model.describe import facts
from edgeopt.model.load import read_model
from edgeopt.pipeline import deploy as run_deploy
from edgeopt.prepare import prepare_model
from edgeopt.target import load_target
from edgeopt.times import Times, name_kernel, read_times
from edgeopt.timing import measure_times
from edgeopt.trial import Seat
from tests.host.test_tune import NARROW, WIDE, write_mlp

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

PROFILE = """
name = "two"
title = "Two forms"
methods = ["float32", "int8-weights", "int4-blocks"]

[budget]
flash = "{flash}"

[bench]
warmup = 2
iterations = 20
samples = 3
emulated_warmup = 1
emulated_iterations = 2
emulated_samples = 3
"""


def deploy(home: Path, flash: str) -> tuple[int, dict[str, object], str]:
    (home / "two.toml").write_text(PROFILE.format(flash=flash))
    words = ["--target", "x86-64", "--model", "mlp.onnx", "--profile", "two.toml"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", "deploy", *words, "--latency", "10s", "--json"],
        cwd=home,
        env=os.environ
        | {
            "HOME": str(home),
            "EDGEOPT_DATA_DIR": str(home / "data"),
            "EDGEOPT_CACHE_DIR": str(cache_folder()),
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    # A machine that is busy ends it with 12, after the plan was chosen and run.
    assert done.returncode in (0, 12), done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def stages(report: dict[str, object]) -> list[str]:
    found = report["stages"]
    assert isinstance(found, list)
    return [each["name"] for each in found]


def known(home: Path) -> Times:
    path = home / "data" / "times" / "x86-64.native.json"
    return read_times(path, edgeopt=edgeopt.__version__, threads=1)


def ordered(home: Path, monkeypatch: pytest.MonkeyPatch, *, latency: str | None = None) -> Order:
    """Write the model and its profile, and order it for this machine."""
    write_mlp(home / "mlp.onnx")
    (home / "two.toml").write_text(PROFILE.format(flash="64MB"))
    monkeypatch.setenv("EDGEOPT_DATA_DIR", str(home / "data"))
    return make_order(
        Request(
            target="x86-64",
            project=home,
            model="mlp.onnx",
            profile=str(home / "two.toml"),
            latency=latency,
            board="local",
        )
    )


class Watched:
    """A board, and what it was asked to run."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.name, self.kind = board.name, board.kind
        self.put, self.get, self.close = board.put, board.get, board.close
        self.asked: list[tuple[str, ...]] = []

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        self.asked.append(tuple(argv))
        return self._board.run(argv, stdin=stdin, timeout=timeout)


def test_a_kernel_is_measured_among_the_bytes_of_the_others_weights_in_its_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ordered(tmp_path, monkeypatch)
    board = Watched(LocalBoard(home=tmp_path))
    with started(order) as run:
        model = prepare_model(run)
        whole = compile_plan(run, model, draw_samples(run, model))
        assert measure_times(run, board, model, whole, renew=lambda: None) == 6
        assert measure_times(run, board, model, whole, renew=lambda: None) == 0
    named = [each.index("--cold-bytes") for each in board.asked if "--cold-bytes" in each]
    launched = [each for each in board.asked if "--cold-bytes" in each]
    read = {int(each[at + 1]) for each, at in zip(launched, named, strict=True)}
    # Three of the four layers in float32; in 8 and in 4 bits, with their scales.
    others = 3 * NARROW * WIDE
    plain, *coded = sorted(read - {0}, reverse=True)
    assert plain == 4 * others
    eight = [each for each in coded if others < each < 1.3 * others]
    four = [each for each in coded if others / 2 < each < 0.9 * others]
    assert eight
    assert four
    assert sorted(eight + four) == sorted(coded)
    # The model as it is has its own weights alone, and so have the plans that tell what products
    # take among others.
    assert 0 in read
    [about] = known(tmp_path).wholes.values()
    assert set(about.scales) == {"MatMul INT8", "MatMul INT4"}
    # Both ran as a whole: the first that the profile tries, and the smallest.
    assert all(0.5 <= each <= 2 for each in about.scales.values())


def test_every_kernel_of_every_form_is_measured_once_and_plans_are_predicted_by_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mlp.onnx"
    write_mlp(path)
    _, report, _ = deploy(tmp_path, "64MB")
    assert stages(report).count("times") == 1
    times = known(tmp_path)
    [whole] = times.wholes.values()
    # Two shapes, as they came, in 8 bits and in blocks of 32 and of 16, that divide them.
    kinds = [each.kind for each in times.kernels.values()]
    assert {each: kinds.count(each) for each in kinds} == {
        "MatMul FLOAT": 2,
        "MatMul INT8": 2,
        "MatMul INT4": 2,
    }
    model = read_model(path, facts(onnx.load(path)), provenance=())
    clock = Clock(pace_of(load_target("x86-64"), threads=1), times)
    forms: tuple[Method, ...] = ("float32", "int8-weights", "int4-blocks")
    for method in forms:
        plan = make_plan(model, method, directory=tmp_path / method)
        made = apply_plan(model, plan, directory=tmp_path / method)
        keys = {each.key for each in predict_nodes(made, clock) if each.key}
        assert keys
        assert {name_kernel(each, whole.weights) for each in keys} <= set(times.kernels), method
    # Nothing of what was measured is left where deployments are.
    assert len(list((tmp_path / ".edgeopt").rglob("current"))) == 1
    # Another budget asks for the same kernels.
    _, again, _ = deploy(tmp_path, "32MB")
    assert "times" not in stages(again)
    checks = again["checks"]
    assert isinstance(checks, list)
    (latency,) = [each for each in checks if each["name"] == "latency p95"]
    # A busy machine takes longer, but no three times as long.
    assert latency["predicted"] / 3 < latency["measured"] < 3 * latency["predicted"]


@pytest.mark.parametrize("slow_runs", [1, 2])
def test_a_plan_that_nothing_is_faster_than_runs_once_more_before_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_runs: int
) -> None:
    order = ordered(tmp_path, monkeypatch, latency="10s")
    usual, ran = edgeopt.trial.try_bundle, []

    def try_bundle(seat: Seat, bundle: Bundle, model: Model) -> tuple[Release, Trial]:
        release, trial = usual(seat, bundle, model)
        ran.append(bundle.digest)
        if len(ran) > slow_runs:
            return release, trial
        # As a board that was busy with something else for that minute.
        samples = tuple(each + 60_000_000_000 for each in trial.measurement.samples_ns)
        seen = trial.measurement.model_copy(update={"samples_ns": samples})
        return release, trial.model_copy(update={"measurement": seen})

    monkeypatch.setattr(edgeopt.trial, "try_bundle", try_bundle)
    with started(order) as run:
        done = run_deploy(run, lambda: LocalBoard(home=tmp_path), reference=False)
    assert ran == [done.bundle.digest] * 2
    stages = [each.name for each in done.report.stages]
    assert stages.count("again") == 1
    latency = next(each for each in done.report.checks if each.name == "latency p95")
    assert latency.met is (slow_runs == 1)
    if slow_runs == 2:
        assert "latency p95 is 60" in done.report.failure
        assert "binds" in done.report.failure
        assert not list((tmp_path / ".edgeopt").rglob("current"))
